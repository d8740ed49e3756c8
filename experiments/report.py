"""Draws a page about a run, or about several: `iapo report`."""

from iapo_jax.cli import iapo

if __name__ == "__main__":
  iapo.run("report")

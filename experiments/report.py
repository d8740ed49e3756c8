"""Draws a page about one run or several: `iapo report`."""

from iapo_jax.cli import iapo

if __name__ == "__main__":
  iapo.run("report")

"""Repeats a step whose numbers were not finite: `iapo replay`."""

from iapo_jax.cli import iapo

if __name__ == "__main__":
  iapo.run("replay")

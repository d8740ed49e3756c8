"""Evaluates policies on the same problems: `iapo evaluate`."""

from iapo_jax.cli import iapo

if __name__ == "__main__":
  iapo.run("evaluate")

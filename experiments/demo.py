"""Trains and compares methods on sums, in minutes: `iapo demo`."""

from iapo_jax.cli import iapo

if __name__ == "__main__":
  iapo.run("demo")

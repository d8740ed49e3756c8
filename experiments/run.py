"""Trains one configuration: `iapo train`."""

from iapo_jax.cli import iapo

if __name__ == "__main__":
  iapo.run("train")

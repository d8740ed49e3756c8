"""Compiles a step for TPUs that you do not have: `iapo compile`."""

from iapo_jax.cli import iapo

if __name__ == "__main__":
  iapo.run("compile")

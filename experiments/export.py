"""Writes a run's policy as a Hugging Face folder: `iapo export`."""

from iapo_jax.cli import iapo

if __name__ == "__main__":
  iapo.run("export")

"""`python -m iapo_jax COMMAND ...`: the command `iapo`."""

from iapo_jax.cli import iapo

if __name__ == "__main__":
  iapo.main()

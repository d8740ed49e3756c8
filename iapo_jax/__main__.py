"""`python -m iapo_jax --config=FILE`: as `experiments/run.py` of a clone."""

from iapo_jax.cli import train as launch

if __name__ == "__main__":
  launch.main()

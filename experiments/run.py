"""Trains one configuration.

Examples:
  python experiments/run.py --config=configs/arithmetic.py:to_go
  python experiments/run.py --config=configs/arithmetic.py --config.seed=1
  python experiments/run.py --config=configs/arithmetic.py --dry_run

The same command again goes on where an interrupted run was saved. On several
hosts it is started on each of them, with a --workdir that all can reach:
docs/launch.md. A reward or a credit of one's own is a program like this one:
docs/own.md.
"""

from iapo_jax.cli import train as launch

if __name__ == "__main__":
  launch.main()

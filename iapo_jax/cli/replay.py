"""Repeats a step whose numbers were not finite, and finds the first NaN.

  iapo replay runs/mine/replay/rl-12

A run that stops because of such numbers keeps its last step there, and prints
this command. On the same devices the step gives the same numbers.
"""

import argparse
import pathlib

from iapo_jax.cli import command
from iapo_jax.rl import finite
from iapo_jax.run import replay


def add_arguments(parser: command.Parser) -> None:
  """Adds the arguments of the command."""
  parser.add_argument(
      "step", metavar="RUN/replay/STAGE-STEP", help="folder of the step"
  )


def run(given: argparse.Namespace) -> None:
  """Prints the step's metrics: now, and of the run."""
  found = replay.again(pathlib.Path(given.step), given.own)
  print("\n".join(_lines(found)))
  lost = finite.offenders(found.metrics)
  if not lost:
    print("every number is finite this time")
    return
  print(f"not finite: {', '.join(lost)}")
  print(f"first: {found.place or 'no NaN, only infinities'}")


def _lines(found: replay.Replayed) -> list[str]:
  """Returns a line per metric; – is one that an older version did not keep."""
  before = {name: f"{value:.6g}" for name, value in found.before.items()}
  return [
      f"{name:28} {value:12.6g}   in the run {before.get(name, '–'):>12}"
      for name, value in found.metrics.items()
  ]

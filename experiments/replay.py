"""Runs a step again whose numbers were not finite, and says where they began.

  python experiments/replay.py runs/mine/replay/rl-12

A run that stops because of such numbers keeps its last step there, and says so.
On the same devices the step comes to the same numbers.
"""

import pathlib

from iapo_jax.cli import command
from iapo_jax.core.errors import ConfigError
from iapo_jax.rl import finite
from iapo_jax.run import replay


def main(arguments: list[str]) -> None:
  """Prints the step's metrics, then and now."""
  if len(arguments) != 2:
    raise ConfigError("replay.py: needs one argument, RUN/replay/STAGE-STEP")
  found = replay.again(pathlib.Path(arguments[1]))
  for name, value in found.metrics.items():
    print(f"{name:28} {value:12.6g}   then {found.before[name]:12.6g}")
  lost = finite.offenders(found.metrics)
  if not lost:
    print("every number is finite this time")
    return
  print(f"not finite: {', '.join(lost)}")
  print(f"first: {found.place or 'no NaN, but infinities'}")


if __name__ == "__main__":
  command.run(main)

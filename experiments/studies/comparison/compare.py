"""Compares methods on a synthetic task: equal tuning, then seeds and intervals.

  python experiments/studies/comparison/compare.py --task=mixed
  python experiments/studies/comparison/compare.py --task=mixed --collect_only

Every method has four settings (`trials.py`). Each setting is trained from every
warm start and judged on validation problems. The chosen setting is trained from
every warm start with every seed and judged on test problems.

A trial is an ordinary run in a folder under --workdir. An interrupted trial
resumes. You may start the command several times at once: the processes share
the trials. --methods=grpo,dapo,to_go runs these methods only. At the end, or at
any time with --collect_only, the command adds all finished trials to one file,
--output, and packs the warm starts beside it. Trials and warm starts in these
files are not run again, even if their folders are gone.
"""

import dataclasses
import pathlib
from typing import Any

import trials
from absl import flags
from study import PLAIN, Study

from iapo_jax.cli import command
from iapo_jax.config import presets
from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError

_ROOT = pathlib.Path(__file__).parents[3]
# Updates of every run. Slips are few, so learning when to check takes longer.
STEPS = {"mixed": 80, "slips": 160}
# Accuracy that a chosen setting may lose. Slips allow two points, since the
# question is which checks survive.
SLACK = {"mixed": 0.005, "slips": 0.02}
_TASK = flags.DEFINE_enum("task", "mixed", list(STEPS), "Name in configs/.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/compare", "Folder of all runs.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Result file; docs/evidence/TASK.json by default."
)
_METHODS = flags.DEFINE_list(
    "methods", [], "Names of trials.py to run; all by default."
)
_STARTS = flags.DEFINE_integer("starts", 2, "Warm starts.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Runs by method and warm start.")
_COLLECT = flags.DEFINE_bool("collect_only", False, "Run no trials.")
_SMALL = flags.DEFINE_bool("small", False, "Tiny runs, as a check.")


def main(_: list[str]) -> None:
  """Runs missing trials and writes the results of finished ones."""
  if _SMALL.value and not _OUTPUT.value:
    raise ConfigError("--small: needs --output, so that docs/evidence is kept")
  runs = f"{_TASK.value}-small" if _SMALL.value else _TASK.value
  output = pathlib.Path(
      _OUTPUT.value or _ROOT / f"docs/evidence/{_TASK.value}.json"
  )

  def recorded() -> dict[str, Any]:
    return files.read_json(output) if output.exists() else {}

  study = Study(
      configure=presets.read(_TASK.value)["get_config"],
      methods=_methods(),
      folder=pathlib.Path(_WORKDIR.value) / runs,
      num_steps=STEPS[_TASK.value],
      slack=SLACK[_TASK.value],
      recorded=recorded(),
      packed=str(output.with_suffix("")),
      starts=_STARTS.value,
      seeds=_SEEDS.value,
      small=_SMALL.value,
  )
  if not _COLLECT.value:
    study.run()
  output.parent.mkdir(parents=True, exist_ok=True)
  with files.alone(output.parent):
    # Another process may have added to the file since.
    study = dataclasses.replace(study, recorded=recorded())
    found = {"task": _TASK.value} | study.collect()
    files.write_json(output, found)
    study.pack()
  print(f"{len(found['trials'])} trials in {output}")


def _methods() -> list[str]:
  known = trials.contenders()
  for name in _METHODS.value:
    if name not in known:
      rule = f"must be among {', '.join(known)}"
      raise ConfigError(f"--methods {name!r}: {rule}")
  chosen = _METHODS.value or list(known)
  missing = set(PLAIN) - set(chosen)
  if missing and not _COLLECT.value:
    rule = f"needs {', '.join(sorted(missing))}: settings are chosen beside it"
    raise ConfigError(f"--methods {','.join(chosen)!r}: {rule}")
  return chosen


if __name__ == "__main__":
  command.run(main)

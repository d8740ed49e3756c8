"""Compares methods on a pretrained language model: runs, results, table.

  python experiments/studies/lm/lm_study.py
  python experiments/studies/lm/lm_study.py --collect_only

Trains every method of `lm_trials.METHODS` from each of several warm starts with
each of several seeds, all with the settings of `configs/smollm2.py`, which are
not tuned. Each policy is judged on the test problems. Then its probes are
measured on rollouts: `calibration_gap` of docs/metrics.md, in a step with
learning rate 0, since methods that credit no information run no probes in
training.

A run is an ordinary run in a folder under --workdir, and an interrupted one
goes on. Results are added to --output, docs/evidence/lm.json by default, and
the table to docs/lm.md. Runs in that file are not run again; the checkpoints of
a finished run are deleted, but not those of a warm start.
"""

import pathlib

from absl import flags
from lm_trials import Study, Trial, fill, plan, table

from iapo_jax.cli import command
from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError

_ROOT = pathlib.Path(__file__).parents[3]
_CONFIG = flags.DEFINE_string("config", "smollm2:legs", "NAME:TASK.")
_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/lm_study", "Folder of all runs."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Result file; docs/evidence/lm.json by default."
)
_PAGE = flags.DEFINE_string(
    "page", None, "Page with the table; docs/lm.md by default, empty for none."
)
_STARTS = flags.DEFINE_integer("starts", 2, "Warm starts.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs by method and warm start.")
_COLLECT = flags.DEFINE_bool("collect_only", False, "Run nothing.")
_SMALL = flags.DEFINE_bool("small", False, "Tiny runs, as a check.")


def main(_: list[str]) -> None:
  """Runs what is missing, and writes results as they come."""
  if _SMALL.value and (_OUTPUT.value is None or _PAGE.value is None):
    rule = "needs --output=FILE and --page=, so that the results are kept"
    raise ConfigError(f"--small: {rule}")
  output = pathlib.Path(_OUTPUT.value or _ROOT / "docs/evidence/lm.json")
  page = _ROOT / "docs/lm.md" if _PAGE.value is None else _PAGE.value
  study = Study(_CONFIG.value, pathlib.Path(_WORKDIR.value), _SMALL.value)
  found = study.recorded(output)
  done = {Trial(x["method"], x["start"], x["seed"]) for x in found}
  waiting = [] if _COLLECT.value else plan(_STARTS.value, _SEEDS.value)
  waiting = [trial for trial in waiting if trial not in done]
  for number, trial in enumerate(waiting, start=1):
    print(f"\n== {number} of {len(waiting)}: {trial.folder}", flush=True)
    found = [*found, study.run(trial)]
    files.write_json(output, {"config": study.name, "trials": found})
    study.clean(trial)
    if page:
      fill(pathlib.Path(page), found)
  print(f"\n{table(found)}\n\n{len(found)} runs in {output}")
  if page:
    fill(pathlib.Path(page), found)


if __name__ == "__main__":
  command.run(main)

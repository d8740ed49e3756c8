"""Methods compared on a synthetic task: tuned alike, then seeds and intervals.

  python experiments/compare.py --task=mixed
  python experiments/compare.py --task=slips --methods=grpo,to_go
  python experiments/compare.py --task=mixed --collect_only

Every method has four settings (`iapo_jax/trials.py`), tried from the first warm
start and judged on validation problems. The chosen one is trained from every
warm start with every seed, and judged on the test problems. Trials are runs
like those of `run.py`, in folders of their own: finished ones are not run
again, interrupted ones go on, and the command may be started several times at
once: each takes what no other has. At the end, or with --collect_only at any
time, what is finished is written to one file, --output.
"""

import dataclasses
import importlib.util
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import misplaced
from absl import flags
from ml_collections import ConfigDict

from iapo_jax import advantages, cli, files, logs, trainer, trials
from iapo_jax import config as config_lib
from iapo_jax import workdir as workdir_lib
from iapo_jax.errors import ConfigError
from iapo_jax.train_step import Probing
from iapo_jax.trials import Trial

_ROOT = pathlib.Path(__file__).parent.parent
TASKS = ("mixed", "slips")
_TASK = flags.DEFINE_enum("task", "mixed", TASKS, "Of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/compare", "Folder of all runs.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Result file; docs/evidence/TASK.json by default."
)
_METHODS = flags.DEFINE_list(
    "methods", [], "Contenders of iapo_jax/trials.py; all by default."
)
_STARTS = flags.DEFINE_integer("starts", 2, "Warm starts.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Of each method and warm start.")
_COLLECT = flags.DEFINE_bool("collect_only", False, "Run nothing.")
_SMALL = flags.DEFINE_bool("small", False, "Few steps, to see that it works.")

_WAIT_SECONDS = 5.0
_PLAIN = ("grpo", "dapo")


def main(_: list[str]) -> None:
  """Runs what is missing, and writes what is there."""
  study = Study(_methods(), pathlib.Path(_WORKDIR.value) / _TASK.value)
  if not _COLLECT.value:
    study.finish(study.warm_starts())
    study.finish([
        study.trial(trial) for trial in trials.tuning(study.methods)
    ])
    study.finish([
        study.trial(trial)
        for trial in trials.final(
            study.chosen(), starts=_STARTS.value, seeds=_SEEDS.value
        )
    ])
  output = _OUTPUT.value or _ROOT / f"docs/evidence/{_TASK.value}.json"
  found = study.collect()
  files.write_json(pathlib.Path(output), found)
  print(f"{len(found['trials'])} trials in {output}")


def _methods() -> list[str]:
  known = trials.contenders()
  for name in _METHODS.value:
    if name not in known:
      rule = f"must be among {', '.join(known)}"
      raise ConfigError(f"--methods {name!r}: {rule}")
  chosen = _METHODS.value or list(known)
  missing = set(_PLAIN) - set(chosen)
  if missing and not _COLLECT.value:
    rule = f"needs {', '.join(sorted(missing))}: settings are chosen beside it"
    raise ConfigError(f"--methods {','.join(chosen)!r}: {rule}")
  return chosen


@dataclasses.dataclass(frozen=True)
class Planned:
  """A run that is to be.

  Attributes:
    folder: of it.
    config: of it.
    probing: of its train step, where it is not its own.
  """

  folder: pathlib.Path
  config: ConfigDict
  probing: Probing | None = None


class Study:
  """All runs of a task.

  Attributes:
    methods: names of contenders.
    folder: of the runs.
  """

  def __init__(self, methods: Sequence[str], folder: pathlib.Path) -> None:
    """Reads the configuration file of the task.

    Args:
      methods: names of contenders.
      folder: of the runs.
    """
    self.methods = methods
    self.folder = folder
    self._contenders = trials.contenders()
    path = _ROOT / "configs" / f"{_TASK.value}.py"
    spec = importlib.util.spec_from_file_location("task_config", path)
    self._config = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(self._config)

  def warm_starts(self) -> list[Planned]:
    """All that the methods begin from."""
    kinds = {self._contenders[name].early_answers for name in self.methods}
    return [
        self.warm_start(start, early)
        for early in sorted(kinds, reverse=True)
        for start in range(_STARTS.value)
    ]

  def warm_start(self, start: int, early: bool = True) -> Planned:
    """A warm start, with examples of early answers or without."""
    config = self._config.get_config("sft")
    config.seed = start
    name = f"start-{start}"
    if not early:
      config.warm_start.early_share = 0.0
      name += "-never-early"
    if _SMALL.value:
      config.warm_start.num_steps = 2
    return Planned(self.folder / name, _sized(config))

  def trial(self, trial: Trial) -> Planned:
    """A trial."""
    contender = self._contenders[trial.method]
    config = self._config.get_config(contender.variant)
    fields = {**contender.fixed, **contender.settings[trial.setting]}
    config.update_from_flattened_dict(fields)
    config.seed = trial.seed
    config.warm_start.num_steps = 0
    start = self.warm_start(trial.start, contender.early_answers)
    config.init_from = str(start.folder)
    config.prompts_per_step = 8
    config.num_steps = 2 if _SMALL.value else 80
    if config.credit.mode not in advantages.TOKEN_CREDITS:
      config.probe.stride = 0  # and its cost is none
    # Once, at the end: tuning is by the validation problems.
    config.evaluation.every = config.num_steps
    probing = misplaced.run_probes if contender.misplaced else None
    return Planned(self.folder / trial.name, _sized(config), probing)

  def finish(self, runs: Sequence[Planned]) -> None:
    """Runs what is not finished, but for what another process runs."""
    while missing := [run for run in runs if not _is_finished(run.folder)]:
      ours = [run for run in missing if self._take(run)]
      if not ours:
        time.sleep(_WAIT_SECONDS)

  def _take(self, run: Planned) -> bool:
    """Whether this process had the run; another one may."""
    if _is_finished(run.folder):
      return False
    print(f"\n== {run.folder}", flush=True)
    try:
      trainer.train(
          config_lib.parse(run.config),
          run.folder,
          programs=self.folder / workdir_lib.PROGRAMS,
          probing=run.probing,
      )
    except workdir_lib.BusyError:
      return False
    return True

  def chosen(self) -> dict[str, int]:
    """The setting of each method, by its validation results."""
    results = {
        method: [
            validation(self.trial(trial).folder)
            for trial in trials.tuning([method])
        ]
        for method in self._tuned
    }
    best = max(x["accuracy"] for name in _PLAIN for x in results[name])
    found = {
        method: trials.choose(self._contenders[method], tried, best)
        for method, tried in results.items()
    }
    for method in self.methods:
      if (other := self._contenders[method].setting_of) in found:
        found[method] = found[other]
    return found

  @property
  def _tuned(self) -> list[str]:
    return [x for x in self.methods if not self._contenders[x].setting_of]

  def collect(self) -> dict[str, Any]:
    """What is finished, as JSON has it."""
    tuned = [
        self._record(trial, validation)
        for trial in trials.tuning(self.methods)
        if _is_finished(self.trial(trial).folder)
    ]
    complete = [
        method
        for method in self.methods
        if method not in self._tuned
        or sum(x["method"] == method for x in tuned) == trials.TUNED
    ]
    chosen = {}
    if set(_PLAIN) <= set(complete):
      chosen = Study(complete, self.folder).chosen()
    found = [
        self._record(trial, summary)
        for trial in trials.final(
            chosen, starts=_STARTS.value, seeds=_SEEDS.value
        )
        if _is_finished(self.trial(trial).folder)
    ]
    starts = [
        {"start": i} | summary(self.warm_start(i).folder)
        for i in range(_STARTS.value)
        if _is_finished(self.warm_start(i).folder)
    ]
    return {
        "task": _TASK.value,
        "warm_starts": starts,
        "settings": {
            method: [dict(fields) for fields in contender.settings]
            for method, contender in self._contenders.items()
            if method in self.methods
        },
        "chosen": chosen,
        "tuning": tuned,
        "trials": found,
    }

  def _record(self, trial: Trial, read: Any) -> dict[str, Any]:
    folder = self.trial(trial).folder
    where = {"method": trial.method, "setting": trial.setting}
    where |= {"start": trial.start, "seed": trial.seed}
    return where | read(folder) | _cost(folder)


def _sized(config: ConfigDict) -> ConfigDict:
  """The configuration as --small has it."""
  if _SMALL.value:
    config.data.arithmetic.update(
        {"train_problems": 96, "validation_problems": 24, "test_problems": 48}
    )
    config.evaluation.update({"problems": 24, "batch_size": 48})
    config.model.update({"d_model": 16, "mlp_dim": 32})
  return config


def _is_finished(folder: pathlib.Path) -> bool:
  return (folder / workdir_lib.SUMMARY).exists()


def summary(folder: pathlib.Path) -> dict[str, float]:
  """The test result of a run."""
  found = files.read_json(folder / workdir_lib.SUMMARY)
  return {k: _short(v) for k, v in found.items() if not isinstance(v, str)}


def validation(folder: pathlib.Path) -> dict[str, float]:
  """The last validation result of a run."""
  found = logs.stage_metrics(folder, "validation")[-1]
  return {k: _short(v) for k, v in found.items() if not isinstance(v, str)}


def _cost(folder: pathlib.Path) -> dict[str, float]:
  """What training put through the network, and how far calibration was off."""
  steps: list[Mapping[str, Any]] = logs.stage_metrics(folder, "rl")
  config = workdir_lib.load_config(folder)
  rows = config.sequences_per_step
  found = {
      "sampled_tokens": rows * sum(x["length/completion"] for x in steps),
      "probe_tokens": rows * sum(x.get("probe/tokens", 0) for x in steps),
      "step_seconds": statistics.median(
          x["time/step_seconds"] for x in steps
      ),
      "first_calibration_gap": steps[0].get("probe/calibration_gap", 0.0),
      "last_calibration_gap": steps[-1].get("probe/calibration_gap", 0.0),
  }
  return {name: _short(value) for name, value in found.items()}


def _short(value: Any) -> Any:
  """Six digits of a float: files that people read differences of."""
  return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
  cli.run(main)

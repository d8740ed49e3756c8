"""All runs of a comparison: their plans, how they run, and their results."""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import misplaced
import starts
import trials
from ml_collections import ConfigDict
from trials import Trial

from iapo_jax.config import parsing as config_lib
from iapo_jax.config.credits import CREDITS
from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError
from iapo_jax.rl.own import NOTHING, Own
from iapo_jax.run import logs, trainer
from iapo_jax.run import workdir as workdir_lib

Record = Mapping[str, Any]

PLAIN = ("grpo", "dapo")  # settings are chosen beside these
_WAIT_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Planned:
  """A run with its folder, configuration and replaced parts of the step."""

  folder: pathlib.Path
  config: ConfigDict
  own: Own = NOTHING

  def is_finished(self) -> bool:
    """Returns whether the run is finished.

    Raises ConfigError if the folder holds another run.
    """
    if not workdir_lib.is_finished(self.folder):
      return False
    workdir_lib.check_holds(self.folder, config_lib.parse(self.config))
    return True


@dataclasses.dataclass(frozen=True)
class Study:
  """All runs of a comparison on one task.

  Attributes:
    configure: makes a new configuration of a variant of the task.
    methods: names of contenders.
    folder: holds the folders of all runs.
    num_steps: of every run.
    slack: accuracy that a setting may lose against the best plain method.
    recorded: an earlier result of `collect`, possibly from another machine;
      its trials are not run again.
    packed: path prefix of the archives of warm starts; packed warm starts are
      not trained again. None disables archives.
    starts: number of warm starts of each kind.
    seeds: number of runs from each warm start.
    small: whether all runs are tiny, as a check that they work.
  """

  configure: Callable[[str], ConfigDict]
  methods: Sequence[str]
  folder: pathlib.Path
  num_steps: int
  slack: float
  recorded: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  packed: str | None = None
  starts: int = 2
  seeds: int = 5
  small: bool = False

  def run(self) -> None:
    """Runs the missing trials: first tuning, then those of chosen settings.

    Raises ConfigError if a record belongs to another configuration.
    """
    self.run_trials(trials.tuning(self.methods, starts=self.starts))
    chosen = self.chosen()
    self.run_trials(
        trials.final(chosen, starts=self.starts, seeds=self.seeds)
    )

  def run_trials(self, wanted: Iterable[Trial]) -> None:
    """Runs trials that are neither recorded nor finished, and their starts."""
    missing = [x for x in wanted if self._recorded(x) is None]
    known = trials.contenders()
    begins = {(x.start, known[x.method].early_answers) for x in missing}
    warm_starts = [self.warm_start(*x) for x in sorted(begins)]
    for planned in warm_starts:
      self._unpack(planned)
    self.finish(warm_starts)
    self.finish([self.trial(x) for x in missing])

  def _unpack(self, planned: Planned) -> None:
    file = self._packed(planned)
    if file and file.exists() and not planned.folder.exists():
      starts.unpack(file, planned.folder)

  def _packed(self, planned: Planned) -> pathlib.Path | None:
    if self.packed is None:
      return None
    return pathlib.Path(f"{self.packed}-{planned.folder.name}.tar.gz")

  def pack(self) -> None:
    """Packs finished warm starts that are not packed yet."""
    for start, early in itertools.product(range(self.starts), (True, False)):
      planned = self.warm_start(start, early)
      file = self._packed(planned)
      if file and not file.exists() and planned.is_finished():
        starts.pack(planned.folder, file)

  def warm_start(self, start: int, early: bool = True) -> Planned:
    """Plans a warm start, with examples of early answers or without."""
    config = self.configure("sft")
    config.seed = start
    name = f"start-{start}"
    if not early:
      config.warm_start.early_share = 0.0
      name += "-never-early"
    if self.small:
      config.warm_start.num_steps = 2
    return Planned(self.folder / name, self._sized(config))

  def trial(self, trial: Trial) -> Planned:
    """Plans a trial."""
    contender = trials.contenders()[trial.method]
    config = self.configure(contender.variant)
    fields = {**contender.fixed, **contender.settings[trial.setting]}
    config.update_from_flattened_dict(fields)
    config.seed = trial.seed
    config.warm_start.num_steps = 0
    config.init_from = str(self._start_of(trial).folder)
    config.prompts_per_step = 8
    config.num_steps = 2 if self.small else self.num_steps
    credit = config.credit
    read = CREDITS[credit.mode].reads_information
    if not read or credit.information == "none":
      config.probe.stride = 0  # unread probes are not run
    _judge(config, tuning=trial.seed == trials.TUNING_SEED)
    own = Own(probing=misplaced.run_probes if contender.misplaced else None)
    return Planned(self.folder / trial.name, self._sized(config), own)

  def _start_of(self, trial: Trial) -> Planned:
    """Plans the warm start that a trial begins from."""
    early = trials.contenders()[trial.method].early_answers
    return self.warm_start(trial.start, early)

  def _sized(self, config: ConfigDict) -> ConfigDict:
    """Reduces the configuration if the study is small."""
    if self.small:
      config.data.arithmetic.update({
          "operands": 3, "train_problems": 96, "validation_problems": 24,
          "test_problems": 48,
      })  # fmt: skip
      config.rollout.max_tokens = 60
      config.evaluation.update({"problems": 24, "batch_size": 64})
      config.model.update({"d_model": 16, "mlp_dim": 32})
    return config

  def finish(self, runs: Sequence[Planned]) -> None:
    """Runs unfinished runs and waits for those of other processes."""
    while missing := [run for run in runs if not run.is_finished()]:
      ours = [run for run in missing if self._take(run)]
      if not ours:
        time.sleep(_WAIT_SECONDS)

  def _take(self, run: Planned) -> bool:
    """Runs it, unless it is finished or another process runs it now."""
    if run.is_finished():
      return False
    print(f"\n== {run.folder}", flush=True)
    try:
      trainer.train(
          config_lib.parse(run.config),
          run.folder,
          programs=self.folder / workdir_lib.PROGRAMS,
          own=run.own,
      )
    except workdir_lib.BusyError:
      return False
    return True

  def chosen(self) -> dict[str, int]:
    """Chooses the setting of each method by its validation results."""
    results = {
        method: trials.means_of_settings(
            self._results(trials.tuning([method], starts=self.starts))
        )
        for method in self._tuned
    }
    best = max(x["accuracy"] for name in PLAIN for x in results[name])
    found = {
        method: trials.choose(
            trials.contenders()[method], tried, best, slack=self.slack
        )
        for method, tried in results.items()
    }
    for method in self.methods:
      if (other := trials.contenders()[method].setting_of) in found:
        found[method] = found[other]
    return found

  @property
  def _tuned(self) -> list[str]:
    return [x for x in self.methods if not trials.contenders()[x].setting_of]

  def collect(self) -> dict[str, Any]:
    """Returns all finished and recorded results of all contenders, as JSON."""
    if set(self.methods) < set(trials.contenders()):
      return dataclasses.replace(
          self, methods=list(trials.contenders())
      ).collect()
    tuned = self._results(trials.tuning(self.methods, starts=self.starts))
    expected = trials.TUNED * self.starts
    complete = [
        method
        for method in self.methods
        if method not in self._tuned
        or sum(x["method"] == method for x in tuned) == expected
    ]
    chosen = {}
    if set(PLAIN) <= set(complete):
      chosen = dataclasses.replace(self, methods=complete).chosen()
    return {
        "warm_starts": self._summaries_of_starts(),
        "settings": {
            method: [dict(fields) for fields in contender.settings]
            for method, contender in trials.contenders().items()
        },
        "chosen": chosen,
        "tuning": self._with_recorded("tuning", tuned),
        "trials": self._with_recorded(
            "trials",
            self._results(
                trials.final(chosen, starts=self.starts, seeds=self.seeds)
            ),
        ),
    }

  def _with_recorded(
      self, kind: str, found: Sequence[Record]
  ) -> list[Record]:
    """Returns `found`, followed by the records of other trials."""
    def of(row: Record) -> tuple[Any, ...]:
      return tuple(row[field.name] for field in dataclasses.fields(Trial))

    there = {of(row) for row in found}
    return [*found, *(x for x in self._kept(kind) if of(x) not in there)]

  def _results(self, wanted: Iterable[Trial]) -> list[Record]:
    """Returns the results of trials that are recorded or finished."""
    return [
        found for x in wanted if (found := self.result(x)) is not None
    ]

  def result(self, trial: Trial) -> Record | None:
    """Returns the result of a recorded or finished trial, else None."""
    if (kept := self._recorded(trial)) is not None:
      return kept
    planned = self.trial(trial)
    if not planned.is_finished():
      return None
    folder = planned.folder
    tuning = trial.seed == trials.TUNING_SEED
    found = validation(folder) if tuning else summary(folder)
    made = {
        "configuration": self._configuration(trial),
        "begun_from": _name_of(self._start_of(trial)),
    }
    return dataclasses.asdict(trial) | made | found | _cost(folder)

  def _recorded(self, trial: Trial) -> Record | None:
    """Returns the record of a trial.

    Raises ConfigError if it belongs to another configuration.
    """
    key = dataclasses.asdict(trial)
    for kept in (*self._kept("tuning"), *self._kept("trials")):
      if all(kept[name] == value for name, value in key.items()):
        if kept.get("configuration") != self._configuration(trial):
          raise ConfigError(
              f"{trial.name}: its record is of another configuration, one that"
              " is no longer run; use another --output"
          )
        return kept
    return None

  def _kept(self, kind: str) -> Sequence[Record]:
    return self.recorded.get(kind, [])

  def _configuration(self, trial: Trial) -> str:
    """Returns a digest of the configuration's fields that are not defaults.

    So records stay valid if a new version adds fields.
    """
    planned = self.trial(trial)
    parts = [
        _changed(x.config) for x in (planned, self._start_of(trial))
    ]
    parts[0].pop("init_from")
    text = json.dumps([*parts, planned.own.probing is None], sort_keys=True)
    return _digest(text)

  def _summaries_of_starts(self) -> list[Record]:
    """Returns the results of recorded or finished warm starts."""
    found = {x["begun_from"]: x for x in self._kept("warm_starts")}
    for start, early in itertools.product(range(self.starts), (True, False)):
      if (planned := self.warm_start(start, early)).is_finished():
        name = _name_of(planned)
        made = {"start": start, "early_answers": early, "begun_from": name}
        found[name] = made | summary(planned.folder)
    return sorted(
        found.values(),
        key=lambda x: (not x.get("early_answers", True), x["start"]),
    )


def _name_of(start: Planned) -> str:
  """Returns a name for the weights of a warm start, a digest of its result.

  The same seed gives other weights on another kind of processor, and only
  trials from the same weights are pairs.
  """
  found = summary(start.folder)
  text = json.dumps({**found, "seconds": 0}, sort_keys=True)
  return _digest(text)


def _judge(config: ConfigDict, *, tuning: bool) -> None:
  """Sets validation problems for tuning, and test problems for the rest."""
  if tuning:
    config.evaluation.every = config.num_steps
    config.evaluation.samples = 4
    config.data.test_problems = 8  # the result is not used
  else:
    config.evaluation.every = 0
    config.evaluation.samples = 2


def _changed(config: ConfigDict) -> dict[str, Any]:
  """Returns the fields that differ from the defaults."""
  usual = config_lib.flatten(config_lib.Config())
  flat = config_lib.flatten(config_lib.parse(config))
  return {name: value for name, value in flat.items() if value != usual[name]}


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def summary(folder: pathlib.Path) -> dict[str, float]:
  """Reads the test result of a run."""
  found = files.read_json(folder / workdir_lib.SUMMARY)
  return {k: _short(v) for k, v in found.items() if not isinstance(v, str)}


def validation(folder: pathlib.Path) -> dict[str, float]:
  """Reads the last validation result of a run."""
  found = logs.stage_metrics(folder, "validation")[-1]
  return {k: _short(v) for k, v in found.items() if not isinstance(v, str)}


def _cost(folder: pathlib.Path) -> dict[str, float]:
  """Reads tokens, seconds and calibration gaps of a run's training."""
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
  """Rounds a float to six digits, so that diffs of files are readable."""
  return float(f"{value:.6g}") if isinstance(value, float) else value

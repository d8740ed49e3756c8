"""The runs of the study of a language model, their results and the table."""

import dataclasses
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from iapo_jax.config import demos, parsing, presets
from iapo_jax.core import files, intervals, markdown
from iapo_jax.core.errors import ConfigError
from iapo_jax.run import logs, trainer
from iapo_jax.run import workdir as workdir_lib

METHODS = {
    "grpo": "GRPO",
    "length_penalty": "length penalty",
    "to_go": "IAPO to_go",
    "chance": "chance of the gold answer, priced",
}
_WARM_START = "sft"
_GAP = "probe/calibration_gap"
_KEPT = (
    "accuracy", "mean_tokens", "mean_reasoning_tokens", "mean_answer_tokens",
    "format_rate", "cut_rate", "problems", "seconds",
)  # fmt: skip

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Trial:
  """A run of a method from a warm start (a seed), or a warm start itself."""

  method: str
  start: int
  seed: int

  @property
  def folder(self) -> pathlib.Path:
    """The folder of the run in that of all runs."""
    place = pathlib.Path(f"start-{self.start}") / self.method
    return place if self.method == _WARM_START else place / f"seed-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Study:
  """All runs of one task.

  Attributes:
    task: NAME:TASK, whose variants are `sft` and methods.
    workdir: folder of all runs.
    small: whether runs are tiny.
  """

  task: str
  workdir: pathlib.Path
  small: bool = False

  @property
  def name(self) -> str:
    """What the result file says of it."""
    return f"{self.task} (small)" if self.small else self.task

  def folder(self, trial: Trial) -> pathlib.Path:
    """Returns the folder of a run."""
    return self.workdir / trial.folder

  def run(self, trial: Trial) -> Record:
    """Trains a policy, measures its probes and returns its record."""
    programs = self.workdir / workdir_lib.PROGRAMS
    places = {
        self.folder(trial): self._configure(trial),
        self._measured(trial): self._measuring(trial),
    }
    for folder, config in places.items():
      trainer.train(parsing.parse(config), folder, programs=programs)
    (probes,) = logs.stage_metrics(self._measured(trial), "rl")
    summary = files.read_json(self.folder(trial) / workdir_lib.SUMMARY)
    return {
        **dataclasses.asdict(trial),
        **{name: summary[name] for name in _KEPT},
        "calibration_gap": probes[_GAP],
    }

  def clean(self, trial: Trial) -> None:
    """Deletes the checkpoints of a recorded run that nothing begins from."""
    places = [self._measured(trial)]
    if trial.method != _WARM_START:
      places.append(self.folder(trial))
    for place in places:
      shutil.rmtree(place / "checkpoints", ignore_errors=True)

  def recorded(self, output: pathlib.Path) -> list[Record]:
    """Returns the runs in a result file, which must be of this study."""
    if not output.exists():
      return []
    kept = files.read_json(output)
    if kept["config"] != self.name:
      raise ConfigError(
          f"--output = {str(output)!r}: has results of {kept['config']}, not of"
          f" {self.name}; name another file, --workdir and --page"
      )
    return kept["trials"]

  def _measured(self, trial: Trial) -> pathlib.Path:
    """Returns the folder of the run that measures a policy's probes."""
    folder = self.folder(trial)
    return folder.with_name(f"{folder.name}-probes")

  def _configure(self, trial: Trial) -> ml_collections.ConfigDict:
    config = presets.load(f"{self.task}-{trial.method}")
    config.seed = trial.start
    if trial.method != _WARM_START:
      # Other prompts and samples than in any warm start.
      config.seed = 1000 * (trial.start + 1) + trial.seed
      config.warm_start.num_steps = 0
      start = Trial(_WARM_START, trial.start, trial.start)
      config.init_from = str(self.folder(start))
    return self._sized(config)

  def _measuring(self, trial: Trial) -> ml_collections.ConfigDict:
    """Returns a run of one step that changes nothing but has probes."""
    config = presets.load(f"{self.task}-to_go")
    config.warm_start.num_steps = 0
    config.init_from = str(self.folder(trial))
    config.prompts_per_step = 8
    config.optimizer.update({"learning_rate": 0.0, "warmup_steps": 0})
    config.evaluation.every = 0
    made = config.data.task == "reasoning_gym"
    # Its own evaluation is not used.
    (config.data.gym if made else config.data).test_problems = 4
    config = self._sized(config)
    config.num_steps = 1
    return config

  def _sized(
      self, config: ml_collections.ConfigDict
  ) -> ml_collections.ConfigDict:
    if self.small:
      demos.read(self.task.partition(":")[0]).shrink(config)
    return config


def plan(starts: int, seeds: int) -> list[Trial]:
  """Returns all runs: seed by seed, so that methods stay comparable.

  A warm start comes before the first run from it.
  """
  planned: dict[Trial, None] = {}
  for seed in range(seeds):
    for start in range(starts):
      planned[Trial(_WARM_START, start, start)] = None
      planned |= dict.fromkeys(Trial(m, start, seed) for m in METHODS)
  return list(planned)


def table(found: Sequence[Record]) -> str:
  """Tabulates means and differences to GRPO, of all starts and of each.

  Differences are paired: both runs share the warm start and the seed.
  """
  head = [
      "from", "method", "runs", "accuracy", "tokens", "after the thinking",
      "format", "calibration gap, nats", "accuracy − GRPO's, points",
      "tokens, % of GRPO's",
  ]  # fmt: skip
  starts = sorted({x["start"] for x in found})
  groups = [("all", starts)] if len(starts) > 1 else []
  groups += [(f"start {start}", [start]) for start in starts]
  rows = []
  for label, chosen in groups:
    here = [x for x in found if x["start"] in chosen]
    for method, name in ({_WARM_START: "warm start"} | METHODS).items():
      mine = [x for x in here if x["method"] == method]
      if mine:
        rows.append([label, name, str(len(mine)), *_cells(mine, here)])
  return markdown.table(head, rows)


def _cells(mine: Sequence[Record], here: Sequence[Record]) -> list[str]:
  """Returns means of some runs, and their differences to GRPO's."""
  plain = {
      (x["start"], x["seed"]): x for x in here if x["method"] == "grpo"
  }
  pairs = [
      (x, plain[x["start"], x["seed"]])
      for x in mine
      if x["method"] not in (_WARM_START, "grpo")
      and (x["start"], x["seed"]) in plain
  ]
  points = [100 * (a["accuracy"] - b["accuracy"]) for a, b in pairs]
  shares = [100 * a["mean_tokens"] / b["mean_tokens"] for a, b in pairs]
  shown = {
      "accuracy": ".3f",
      "mean_tokens": ".1f",
      "mean_answer_tokens": ".1f",
      "format_rate": ".2f",
      "calibration_gap": ".2f",
  }
  return [
      *(
          _interval([x[name] for x in mine], form)
          for name, form in shown.items()
      ),
      _interval(points, "+.1f"),
      _interval(shares, ".0f"),
  ]


def _interval(values: Sequence[float], form: str) -> str:
  """Formats a mean, with its 95 % interval if there are several values."""
  if not values:
    return ""
  if len(values) == 1:
    return format(values[0], form)
  found = intervals.of_mean(values)
  return (
      f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}})"
  )


def fill(page: pathlib.Path, found: Sequence[Record]) -> None:
  """Replaces the text between the marks `<!-- results -->` of a page."""
  mark = "<!-- results -->"
  text = page.read_text(encoding="utf-8")
  between = re.compile(f"{mark}.*{mark}", re.DOTALL)
  written = f"{mark}\n\n{table(found)}\n\n{mark}"
  files.write_text(page, between.sub(lambda _: written, text))

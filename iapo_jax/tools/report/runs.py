"""The data of runs that the page shows, read from their folders."""

import dataclasses
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from iapo_jax.config import parsing as config_lib
from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError
from iapo_jax.run import logs
from iapo_jax.run import workdir as workdir_lib

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
  """The files of one run.

  Attributes:
    folder: of the run.
    config: fields by their dotted names.
    lines: of metrics.jsonl, by stage.
    samples: lines of samples.jsonl.
    evaluations: lines of evaluations.jsonl.
    warnings: lines of warnings.jsonl.
    summary: test results; None while the run is not finished.
  """

  folder: pathlib.Path
  config: Record
  lines: dict[str, list[Record]]
  samples: list[Record]
  evaluations: list[Record]
  warnings: list[Record]
  summary: Record | None


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that differ only in their seed, at least one, shown as one."""

  label: str
  runs: tuple[Run, ...]

  def curve(self, stage: str, metric: str) -> list[list[tuple[int, float]]]:
    """Returns the (step, value) points of every run that has the metric."""
    curves = [
        [(line["step"], line[metric]) for line in run.lines.get(stage, [])
         if metric in line]
        for run in self.runs
    ]  # fmt: skip
    return [curve for curve in curves if curve]

  def finished(self, metric: str) -> list[float]:
    """Returns a test result of every finished run."""
    return [run.summary[metric] for run in self.runs if run.summary]

  @property
  def is_control(self) -> bool:
    """Whether this is plain GRPO."""
    config = self.runs[0].config
    return config["credit.mode"] == "grpo" and config["num_steps"] > 0


def read(folder: pathlib.Path) -> Run:
  """Reads a run, finished or not.

  Raises:
    ConfigError: if the folder holds no run, or one of an older version.
  """
  lines: dict[str, list[Record]] = {}
  config = config_lib.flatten(workdir_lib.load_config(folder))
  for line in logs.read(folder, logs.METRICS):
    lines.setdefault(line["stage"], []).append(line)
  samples = logs.read(folder, logs.SAMPLES)
  if not all("group_advantage" in record for record in samples):
    raise ConfigError(
        f"{str(folder / logs.SAMPLES)!r}: has records of an older version,"
        " without group_advantage; the run must be made anew to be drawn"
    )
  path = folder / workdir_lib.SUMMARY
  summary = files.read_json(path) if path.exists() else None
  return Run(
      folder=folder,
      config=config,
      lines=lines,
      samples=samples,
      evaluations=logs.read(folder, logs.EVALUATIONS),
      warnings=logs.read(folder, logs.WARNINGS),
      summary=summary,
  )


def read_groups(
    folders: Mapping[str, Sequence[pathlib.Path]],
) -> list[Group]:
  """Reads runs by label, in order.

  Raises:
    ConfigError: if a folder holds no run, or if runs of one label differ in
      more than their seed.
  """
  groups = [
      Group(label, tuple(read(folder) for folder in members))
      for label, members in folders.items()
  ]
  for group in groups:
    _check_seeds(group)
  return groups


def _check_seeds(group: Group) -> None:
  """Raises ConfigError if the runs differ in more than their seed."""
  first, *others = group.runs
  seeds = [run.config["seed"] for run in group.runs]
  if len(set(seeds)) < len(seeds):
    raise ConfigError(
        f"runs labelled {group.label!r}: have the seeds {seeds}; each must be"
        " there once"
    )
  for other in others:
    for field, value in first.config.items():
      # Each seed starts from its own warm start.
      if field not in ("seed", "init_from") and other.config[field] != value:
        raise ConfigError(
            f"runs labelled {group.label!r}: differ in config.{field},"
            f" {value!r} and {other.config[field]!r}; label them apart"
        )


def mean_and_error(
    group: Group, metric: str
) -> tuple[float, float | None] | None:
  """Returns the mean of a test result over seeds, and its standard error.

  The error is over seeds if there are several, else over problems, or None if
  the summary lacks it. Without a finished run the result is None.
  """
  values = group.finished(metric)
  if not values:
    return None
  if len(values) > 1:
    error = statistics.stdev(values) / len(values) ** 0.5
  else:
    errors = [run.summary.get(f"{metric}_se") for run in group.runs
              if run.summary]  # fmt: skip
    error = errors[0]
  return statistics.mean(values), error


def before_and_after(group: Group) -> tuple[list[int], list[int]] | None:
  """Returns completion lengths of the first and last validation, all seeds."""
  before: list[int] = []
  after: list[int] = []
  for run in group.runs:
    if len(run.evaluations) > 1:
      before += _flat(run.evaluations[0]["lengths"])
      after += _flat(run.evaluations[-1]["lengths"])
  return (before, after) if before else None


def examples(run: Run, *, correct: int = 2, wrong: int = 1) -> list[Record]:
  """Returns recorded completions worth showing.

  These are the first record of the run, then so many correct and wrong ones of
  its last recorded step.
  """
  if not run.samples:
    return []
  first, last = run.samples[0]["step"], run.samples[-1]["step"]
  shown = [run.samples[0]] if first < last else []
  latest = [s for s in run.samples if s["step"] == last]
  shown += [s for s in latest if s["correct"]][:correct]
  return shown + [s for s in latest if not s["correct"]][:wrong]


def _flat(rows: Sequence[Sequence[int]]) -> list[int]:
  return [value for row in rows for value in row]

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
    quantised: tensors of each type in the weights that it comes from; empty if
      none was quantised.
  """

  folder: pathlib.Path
  config: Record
  lines: dict[str, list[Record]]
  samples: list[Record]
  evaluations: list[Record]
  warnings: list[Record]
  summary: Record | None
  quantised: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Group:
  """One or more runs that differ only in their seed, shown together."""

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
        " without group_advantage; train the run again to draw it"
    )
  summary = folder / workdir_lib.SUMMARY
  return Run(
      folder=folder,
      config=config,
      lines=lines,
      samples=samples,
      evaluations=logs.read(folder, logs.EVALUATIONS),
      warnings=logs.read(folder, logs.WARNINGS),
      summary=files.read_json(summary) if summary.exists() else None,
      quantised=workdir_lib.quantised(folder),
  )


def read_groups(
    folders: Mapping[str, Sequence[pathlib.Path]],
) -> list[Group]:
  """Reads runs by label, in order.

  Raises:
    ConfigError: if a folder holds no run, or if runs of one label differ in
      more than their seed.
  """
  groups = []
  for label, members in folders.items():
    groups.append(Group(label, tuple(read(folder) for folder in members)))
    _check_seeds(groups[-1])
  return groups


def _check_seeds(group: Group) -> None:
  """Raises ConfigError if the runs differ in more than their seed."""
  first, *others = group.runs
  seeds = [run.config["seed"] for run in group.runs]
  if len(set(seeds)) < len(seeds):
    raise ConfigError(
        f"runs labelled {group.label!r}: have the seeds {seeds}; each must"
        " occur once"
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
  the summary lacks it. The result is None without a finished run, or if a run
  of an older version lacks the metric.
  """
  summaries = [run.summary for run in group.runs if run.summary]
  if not all(metric in summary for summary in summaries):
    return None
  values = [summary[metric] for summary in summaries]
  if len(values) > 1:
    error = statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), error
  return (values[0], summaries[0].get(f"{metric}_se")) if values else None


def before_and_after(group: Group) -> tuple[list[int], list[int]] | None:
  """Returns completion lengths of the first and last validation, all seeds."""
  before, after = (
      [
          length
          for run in group.runs
          if len(run.evaluations) > 1
          for completions in run.evaluations[at]["lengths"]
          for length in completions
      ]
      for at in (0, -1)
  )
  return (before, after) if before else None


def examples(run: Run) -> list[Record]:
  """Returns recorded completions worth showing.

  These are the run's first record, and two correct and one wrong of its last
  recorded step.
  """
  if not run.samples:
    return []
  first, last = run.samples[0]["step"], run.samples[-1]["step"]
  shown = [run.samples[0]] if first < last else []
  latest = [s for s in run.samples if s["step"] == last]
  shown += [s for s in latest if s["correct"]][:2]
  return shown + [s for s in latest if not s["correct"]][:1]

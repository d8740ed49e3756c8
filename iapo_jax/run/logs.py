"""What a run writes down: metrics, completions, evaluations, warnings.

  metrics.jsonl       a line a step: stage, step, metrics by name
  samples.jsonl       whole completions, token by token
  evaluations.jsonl   lengths and correctness of every validation completion
  warnings.jsonl      what was warned of
  tensorboard/STAGE, wandb/   metrics.jsonl once more, of `boards`

Names and units are in docs/metrics.md. Lines are flushed one by one. A number
that is not finite is null in them, and NaN when they are read. A run that
resumes cuts the files back to its checkpoint: the steps after it are repeated
identically, so that no line is missing or there twice.
"""

import json
import os
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any, Self

import tqdm

from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError
from iapo_jax.rl import finite
from iapo_jax.run.boards import WRITTEN, TensorBoard, WeightsAndBiases

Metrics = dict[str, float]

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
EVALUATIONS = "evaluations.jsonl"
WARNINGS = "warnings.jsonl"
FILES = (METRICS, SAMPLES, EVALUATIONS, WARNINGS)
Board = TensorBoard | WeightsAndBiases


class RunLog:
  """The log files of a workdir, which is this process's own."""

  def __init__(
      self,
      workdir: pathlib.Path,
      position: Mapping[str, int] | None = None,
      *,
      wandb: str = "off",
  ) -> None:
    """Opens the logs where a checkpoint left them.

    Args:
      workdir: of the run.
      position: bytes of each file to keep, of `position`. By default the logs
        begin anew, and what there was is renamed to NAME.1, NAME.2, ...
        (TensorBoard's files are deleted: they say nothing that the lines do
        not).
      wandb: `off`, `offline` or `online`.

    Raises:
      ConfigError: where a file is shorter than that, or W&B does not start.
    """
    self._workdir = workdir
    for name in FILES:
      if position is None:
        _set_aside(workdir / name)
      else:
        _cut(workdir / name, position.get(name, 0))
    self._files = {
        name: (workdir / name).open("a", encoding="utf-8") for name in FILES
    }
    self._boards: list[Board] = [TensorBoard(workdir)]
    if wandb != "off":
      anew = position is None
      self._boards.append(WeightsAndBiases(workdir, wandb, anew=anew))
    for line in read(workdir, METRICS):
      for board in self._boards:
        board.write(line)

  def write(self, stage: str, step: int, metrics: Metrics) -> None:
    """Appends metrics.

    Args:
      stage: `warm_start`, `rl` or `validation`.
      step: of the stage, counted from 1; 0 is before the first.
      metrics: by name.
    """
    line = {"stage": stage, "step": step} | metrics | {WRITTEN: time.time()}
    self._append(METRICS, line)
    for board in self._boards:
      board.write(line)

  def write_samples(self, records: Iterable[dict[str, Any]]) -> None:
    """Appends completions, of `samples.records`."""
    for record in records:
      self._append(SAMPLES, record)

  def write_evaluation(self, record: dict[str, Any]) -> None:
    """Appends what every completion of an evaluation was."""
    self._append(EVALUATIONS, record)

  def warn(self, stage: str, step: int, text: str) -> None:
    """Shows a warning, and keeps it.

    Args:
      stage: it is about.
      step: of the stage.
      text: for people.
    """
    tqdm.tqdm.write(f"warning: {stage} step {step}: {text}")
    self._append(WARNINGS, {"stage": stage, "step": step, "warning": text})

  def position(self) -> dict[str, int]:
    """Bytes of each file, once they are on the disk."""
    for file in self._files.values():
      os.fsync(file.fileno())
    return {name: file.tell() for name, file in self._files.items()}

  def _append(self, name: str, record: dict[str, Any]) -> None:
    line = json.dumps(finite.as_json(record), allow_nan=False)
    self._files[name].write(line + "\n")
    self._files[name].flush()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    for file in self._files.values():
      file.close()
    for board in self._boards:
      board.close()


class NoLog:
  """Of a process that is not the first: that one writes down for all."""

  def write(self, stage: str, step: int, metrics: Metrics) -> None:
    """As `RunLog.write`."""

  def write_samples(self, records: Iterable[dict[str, Any]]) -> None:
    """As `RunLog.write_samples`."""

  def write_evaluation(self, record: dict[str, Any]) -> None:
    """As `RunLog.write_evaluation`."""

  def warn(self, stage: str, step: int, text: str) -> None:
    """As `RunLog.warn`."""

  def position(self) -> dict[str, int]:
    """Of files that are not its own."""
    return {}

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    """Nothing was opened."""


# Of any process.
Log = RunLog | NoLog


def read(workdir: pathlib.Path, name: str) -> list[dict[str, Any]]:
  """The lines of a log file.

  Args:
    workdir: of a run.
    name: one of `FILES`.

  Returns:
    Its records; none where there is no such file. A last line without its
    end, which a killed run may leave, is not counted.

  Raises:
    ConfigError: for a line that is no JSON object.
  """
  path = workdir / name
  if not path.exists():
    return []
  records = []
  text = path.read_text(encoding="utf-8", errors="replace")
  for number, line in enumerate(text.split("\n")[:-1], 1):
    try:
      record = json.loads(line)
    except (ValueError, RecursionError):
      record = None
    if not isinstance(record, dict):
      raise ConfigError(f"{str(path)!r}: line {number} is no JSON object")
    records.append(finite.from_json(record))
  return records


def stage_metrics(workdir: pathlib.Path, stage: str) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl of a stage.

  Args:
    workdir: of a run.
    stage: `warm_start`, `rl` or `validation`.

  Returns:
    Its records, in order.

  Raises:
    ConfigError: for a line that is no JSON object.
  """
  return [line for line in read(workdir, METRICS) if line["stage"] == stage]


def _cut(path: pathlib.Path, size: int) -> None:
  """Shortens a file to what a checkpoint knows of it."""
  found = path.stat().st_size if path.exists() else 0
  if found < size:
    raise ConfigError(
        f"{str(path)!r}: has {found} bytes, but the checkpoint to go on from"
        f" knows of {size}; put the file back, or use another --workdir"
    )
  if found > size:
    os.truncate(path, size)


def _set_aside(path: pathlib.Path) -> None:
  if path.exists() and path.stat().st_size:
    path.rename(files.numbered(path, "."))

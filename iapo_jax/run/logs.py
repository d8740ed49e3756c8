"""The log files of a run: metrics, completions, evaluations, warnings.

  metrics.jsonl       a line per step: stage, step, metrics by name
  samples.jsonl       whole completions, token by token
  evaluations.jsonl   lengths and correctness of every validation completion
  warnings.jsonl      all warnings
  tensorboard/STAGE, wandb/   metrics.jsonl again, written by `boards`

docs/metrics.md gives names and units. Every line is flushed. A number that is
not finite is written as null and read as NaN. A resumed run cuts the files back
to its checkpoint: it repeats the steps after that identically, so no line is
missing or doubled.
"""

import json
import os
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any, Self, TextIO

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


class RunLog:
  """The log files of a workdir, written by one process."""

  def __init__(
      self,
      workdir: pathlib.Path | None,
      position: Mapping[str, int] | None = None,
      *,
      wandb: str = "off",
  ) -> None:
    """Opens the logs where a checkpoint left them.

    `workdir=None` makes a log that writes nothing, for every process but the
    first. `position`, from `RunLog.position`, has the bytes of each file to
    keep. None begins the logs anew and renames existing ones to NAME.1, NAME.2,
    ... (existing TensorBoard files are deleted: they repeat the lines). `wandb`
    is `off`, `offline` or `online`. Raises `ConfigError` if a file is shorter
    than its position or W&B does not start.
    """
    self._files: dict[str, TextIO] = {}
    self._boards: list[TensorBoard | WeightsAndBiases] = []
    if workdir is None:
      return
    for name in FILES:
      if position is None:
        _set_aside(workdir / name)
      else:
        _cut(workdir / name, position.get(name, 0))
    for name in FILES:
      self._files[name] = (workdir / name).open("a", encoding="utf-8")
    self._boards.append(TensorBoard(workdir))
    if wandb != "off":
      anew = position is None
      self._boards.append(WeightsAndBiases(workdir, wandb, anew=anew))
    for line in read(workdir, METRICS):
      for board in self._boards:
        board.write(line)

  def write(self, stage: str, step: int, metrics: Metrics) -> None:
    """Appends metrics; `stage` is `warm_start`, `rl` or `validation`.

    Steps count from 1; 0 is before the first.
    """
    line = {"stage": stage, "step": step} | metrics | {WRITTEN: time.time()}
    self._append(METRICS, line)
    for board in self._boards:
      board.write(line)

  def write_samples(self, records: Iterable[dict[str, Any]]) -> None:
    """Appends completions, made by `samples.records`."""
    for record in records:
      self._append(SAMPLES, record)

  def write_evaluation(self, record: dict[str, Any]) -> None:
    """Appends the results of every completion of an evaluation."""
    self._append(EVALUATIONS, record)

  def warn(self, stage: str, step: int, text: str) -> None:
    """Prints and logs a warning about a step of a stage."""
    if self._files:
      tqdm.tqdm.write(f"warning: {stage} step {step}: {text}")
    self._append(WARNINGS, {"stage": stage, "step": step, "warning": text})

  def position(self) -> dict[str, int]:
    """Syncs the files to disk and returns the bytes of each."""
    for file in self._files.values():
      os.fsync(file.fileno())
    return {name: file.tell() for name, file in self._files.items()}

  def _append(self, name: str, record: dict[str, Any]) -> None:
    if self._files:
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


def read(workdir: pathlib.Path, name: str) -> list[dict[str, Any]]:
  """Returns the records of a log file, `name` being one of `FILES`.

  Returns none if there is no such file. Leaves out a last line without its end,
  which a killed run may leave. Raises `ConfigError` for a line that is not a
  JSON object.
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
      raise ConfigError(f"{str(path)!r}: line {number} is not a JSON object")
    records.append(finite.from_json(record))
  return records


def stage_metrics(workdir: pathlib.Path, stage: str) -> list[dict[str, Any]]:
  """Returns the lines of metrics.jsonl of a stage, in order.

  `stage` is `warm_start`, `rl` or `validation`. Raises `ConfigError` as `read`
  does.
  """
  return [line for line in read(workdir, METRICS) if line["stage"] == stage]


def _cut(path: pathlib.Path, size: int) -> None:
  """Cuts a file back to the size that a checkpoint recorded."""
  found = path.stat().st_size if path.exists() else 0
  if found < size:
    raise ConfigError(
        f"{str(path)!r}: has {found} bytes, but had {size} when the checkpoint"
        " was saved; restore the file, or use another --workdir"
    )
  if found > size:
    os.truncate(path, size)


def _set_aside(path: pathlib.Path) -> None:
  if path.exists() and path.stat().st_size:
    path.rename(files.numbered(path, "."))

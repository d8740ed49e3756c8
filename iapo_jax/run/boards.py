"""Metrics for drawing programs: TensorBoard and Weights & Biases.

Both receive the lines of metrics.jsonl and nothing else. A resumed run sends
them all lines again.
"""

import importlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Mapping
from typing import Any

from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError, fail

WRITTEN = "time/written"
_ABOUT = ("stage", "step", WRITTEN)
_TENSORBOARD = "tensorboard"
_WANDB = "wandb"
_NAME = "wandb.json"


class TensorBoard:
  """Event files, one folder per stage.

  Does not use tensorboardX's SummaryWriter: its thread loses unwritten events
  when the process is killed, hangs when the disk is full, and renames metrics
  (pass@1 to pass_1).
  """

  def __init__(self, workdir: pathlib.Path) -> None:
    """Deletes existing event files."""
    # Imports torch if it is installed, which takes seconds.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event

    self._open, self._event = EventsWriter, Event
    self._folder = workdir / _TENSORBOARD
    self._writers: dict[str, EventsWriter] = {}
    shutil.rmtree(self._folder, ignore_errors=True)

  def write(self, line: Mapping[str, Any]) -> None:
    """Adds a line of metrics.jsonl."""
    stage = line["stage"]
    if stage not in self._writers:
      folder = self._folder / stage
      folder.mkdir(parents=True)
      self._writers[stage] = self._open(str(folder / "events"))
    event = self._event(step=line["step"], wall_time=line.get(WRITTEN, 0))
    for name, number in line.items():
      if name not in _ABOUT:
        event.summary.value.add(tag=name, simple_value=number)
    self._writers[stage].write_event(event)
    self._writers[stage].flush()

  def close(self) -> None:
    """Closes the files."""
    for writer in self._writers.values():
      writer.close()


class WeightsAndBiases:
  """A W&B run: `STAGE/NAME` for every metric, over `STAGE/step`.

  Its step is the number of the line. A resumed run repeats the lines after its
  checkpoint identically, so lines that the server has are not sent again.
  Offline, all lines are written again.
  """

  def __init__(
      self, workdir: pathlib.Path, mode: str, *, anew: bool = True
  ) -> None:
    """Opens the W&B run of a workdir; `mode` is `offline` or `online`.

    `anew` begins a new W&B run instead of continuing the workdir's. W&B's
    environment variables (WANDB_PROJECT, WANDB_ENTITY, ...) apply; the default
    project is `iapo_jax`. Raises `ConfigError` if W&B is not installed or does
    not start.
    """
    try:
      wandb = importlib.import_module("wandb")
    except ImportError as error:
      rule = f"needs W&B: pip install wandb ({error})"
      fail("log.wandb", mode, rule)
    shutil.rmtree(workdir / _WANDB, ignore_errors=True)
    try:
      self._run = wandb.init(
          project=os.environ.get("WANDB_PROJECT", "iapo_jax"),
          id=_name_of(workdir, anew),
          name=workdir.resolve().name,
          dir=str(workdir),
          resume="allow",
          config=files.read_json(workdir / "config.json"),
          settings=wandb.Settings(
              mode=mode, silent=True, console="off", disable_git=True,
              disable_code=True,
          ),
      )  # fmt: skip
    except (wandb.Error, OSError) as error:
      fail("log.wandb", mode, f"W&B does not start: {error}")
    self._there = self._run.starting_step
    self._next = 0
    self._stages: set[str] = set()

  def write(self, line: Mapping[str, Any]) -> None:
    """Adds a line of metrics.jsonl."""
    number, stage = self._next, line["stage"]
    self._next += 1
    if number < self._there:
      return
    if stage not in self._stages:
      self._run.define_metric(f"{stage}/step", hidden=True)
      self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
      self._stages.add(stage)
    values = {
        f"{stage}/{name}": value
        for name, value in line.items()
        if name != "stage"
    }
    self._run.log(values, step=number, commit=True)

  def close(self) -> None:
    """Waits until everything is sent or on disk."""
    self._run.finish()


def _name_of(workdir: pathlib.Path, anew: bool) -> str:
  """Returns the id of the W&B run, which a resumed run keeps."""
  path = workdir / _NAME
  if anew or not path.exists():
    files.write_json(path, {"id": uuid.uuid4().hex[:12]})
  found = files.read_json(path).get("id")
  if not isinstance(found, str):
    raise ConfigError(f"{str(path)!r}: has no id; delete the file")
  return found

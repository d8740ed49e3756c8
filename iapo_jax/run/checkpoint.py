"""Orbax checkpoints of a stage, and which of them can be trusted.

A stage's folder holds one folder per step:

  params/    the policy alone, so that another run can start from it without
             the optimizer's moments
  rest/      the rest of the train state
  progress/  steps done, positions in the data and in the logs
  metrics/   of the validation at that step, if there was one
  checksums.json

Orbax commits a step by renaming its folder. The checksums are written after
that, and from then on the step counts: a step without checksums is
half-written, a step that does not match them is damaged. Neither is ever loaded
or overwritten. Orbax also renames the steps that it deletes, so a folder that
lacks files is damaged and not in the middle of a deletion.

Several processes write a step together, each the shards of its devices. The
first process does everything else.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from iapo_jax.core import files, processes, sharding
from iapo_jax.core.errors import ConfigError, SaveError
from iapo_jax.core.types import Params, PyTree, TrainState
from iapo_jax.rl.state import StateSpec
from iapo_jax.run import memory

STAGES = ("warm_start", "rl")  # in the order they run
_CHECKSUMS = "checksums.json"
# TensorStore does not raise OSError; its messages contain the code.
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")
_SMALL = 2**20  # bytes; a quick check reads only files up to this size
_HALF_WRITTEN = ".orbax-checkpoint-tmp"
_REMOVED = "removed"  # Orbax moves dropped steps here; `_finish` deletes them


@dataclasses.dataclass(frozen=True)
class Progress:
  """The position of a stage when it was saved.

  Attributes:
    done: steps of the stage.
    data: state of the Grain iterator; its next batch is of step `done` + 1.
    logs: bytes of each log file.
    skipped: steps in a row, up to `done`, without any update.
    seconds: time of the run until then, over its starts; what was lost with an
      interruption does not count.
  """

  done: int
  data: dict[str, Any]
  logs: dict[str, int]
  skipped: int = 0
  seconds: float = 0.0


class Checkpoints:
  """A stage's checkpoints: its start, the newest few and the best few.

  `save` copies a step to the host and returns; writing goes on while training
  continues. The step counts from the first `poll` that finds it written, or
  from `settle`.
  """

  def __init__(
      self, folder: pathlib.Path, *, keep_last: int, keep_best: int
  ) -> None:
    """Opens a stage's folder for writing and deletes half-written steps.

    Keeps the `keep_last` newest checkpoints and the `keep_best` ones with the
    highest validation accuracy.
    """
    self.folder = folder.absolute()
    processes.on_first(lambda: _clear(self.folder))
    policy = keep.AnyPreservationPolicy([
        keep.LatestN(keep_last),
        keep.CustomSteps([0]),
        keep.BestN(
            get_metric_fn=_accuracy,
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        ),
    ])
    self._manager = ocp.CheckpointManager(
        self.folder,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=_accuracy,  # without it Orbax writes no metrics
            todelete_subdir=_REMOVED,
            enable_async_checkpointing=True,
        ),
    )
    self._pending: int | None = None  # the step that is being written
    self._sealed = False  # whether it counts; only the first process knows

  def save(
      self,
      state: TrainState,
      progress: Progress,
      metrics: dict[str, float] | None = None,
  ) -> None:
    """Begins to write checkpoint `progress.done`; first settles the one before.

    The arrays of `state` may be donated after the call. `metrics` are those of
    the validation at this step. Raises `SaveError` if this checkpoint or the
    one before it cannot be written.
    """
    self.settle()
    processes.everywhere(lambda: self._check_space(state, progress.done))
    processes.everywhere(lambda: self._begin(state, progress, metrics))
    self._pending, self._sealed = progress.done, False

  def poll(self) -> None:
    """Makes the last step count if it is written; does not wait.

    Raises `SaveError` if the step could not be written.
    """
    if self._pending is None or self._sealed or not processes.is_first():
      return
    if not self._manager.is_saving_in_progress():
      self._wait()
      self._finish()

  def settle(self) -> None:
    """Waits until the last step is written and counts.

    All processes must call it. Raises `SaveError` if the step could not be
    written.
    """
    if self._pending is None:
      return
    processes.everywhere(self._wait)
    processes.on_first(self._finish)
    self._pending = None

  def _begin(
      self,
      state: TrainState,
      progress: Progress,
      metrics: dict[str, float] | None,
  ) -> None:
    """Begins to write this process's part."""
    with self._explained(progress.done), _quiet():
      # Orbax warns of every save without metrics.
      self._manager.save(
          progress.done,
          args=ocp.args.Composite(
              params=ocp.args.StandardSave(state.params),
              rest=ocp.args.StandardSave(state.replace(params=None)),
              progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
          ),
          metrics=metrics,
          force=True,
      )

  def _wait(self) -> None:
    """Waits until this process's part of the pending step is written."""
    with self._explained(self._pending), _quiet():
      self._manager.wait_until_finished()

  def _finish(self) -> None:
    """Makes the written pending step count, once."""
    if self._sealed:
      return
    with self._explained(self._pending):
      seal(self.folder / str(self._pending))
    self._sealed = True
    # Deletes replaced steps only after the newest step counts.
    shutil.rmtree(self.folder / _REMOVED, ignore_errors=True)

  @contextlib.contextmanager
  def _explained(self, step: int) -> Iterator[None]:
    """Turns errors of the operating system into `SaveError`."""
    try:
      yield
    except Exception as error:
      reason = _system_error(error)
      if reason is None:
        raise
      raise SaveError(
          f"checkpoint {self.folder / str(step)} could not be written"
          f" ({reason}); the same command continues from the checkpoint before"
          " it, or starts over if there is none"
      ) from error

  def _check_space(self, state: TrainState, step: int) -> None:
    """Raises `SaveError` if space is short, before TensorStore's threads do."""
    needed = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(state)
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    )
    free = shutil.disk_usage(self.folder).free
    with self._explained(step):
      if free < needed:
        raise OSError(
            f"it needs {memory.readable(needed)}, the disk has"
            f" {memory.readable(free)} left"
        )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
    if failure is None:
      self.settle()
    elif jax.process_count() > 1:
      return  # The other processes may be gone: do not wait for them.
    elif not issubclass(failure, SaveError):
      self.settle()
    self._manager.close()


def stage_folder(workdir: pathlib.Path, stage: str) -> pathlib.Path:
  """Returns the folder of a stage's checkpoints."""
  return workdir / "checkpoints" / stage


def exists(workdir: pathlib.Path) -> bool:
  """Returns whether a workdir holds any checkpoint, complete or not."""
  return any(_folders(stage_folder(workdir, stage)) for stage in STAGES)


def steps(folder: pathlib.Path) -> list[int]:
  """Returns the completely written steps of a stage, in order."""
  return [
      step for step in _folders(folder)
      if (folder / str(step) / _CHECKSUMS).exists()
  ]  # fmt: skip


def _folders(folder: pathlib.Path) -> list[int]:
  """Returns the steps that have a folder, sealed or not."""
  if not folder.is_dir():
    return []
  return sorted(
      int(path.name) for path in folder.iterdir() if path.name.isdecimal()
  )


def fault(folder: pathlib.Path, step: int) -> str | None:
  """Reads every byte of a checkpoint and describes its fault in a few words.

  Returns None if the checkpoint is as it was written.
  """
  try:
    return _find_fault(folder / str(step))
  except OSError as error:
    return f"cannot be read ({error.strerror})"


def _find_fault(path: pathlib.Path, *, quick: bool = False) -> str | None:
  """Does the work of `fault`; raises `OSError` if a file cannot be read.

  A quick check compares only the sizes of large files.
  """
  if not path.is_dir():
    return "is not there"
  try:
    expected = json.loads((path / _CHECKSUMS).read_text(encoding="utf-8"))
  except FileNotFoundError:
    return "was not completely written"
  except ValueError:
    expected = None
  if not isinstance(expected, dict):
    return f"has a damaged {_CHECKSUMS}"
  try:
    found = _checksums(path, _SMALL if quick else None)
  except FileNotFoundError:
    return "is being removed"
  for name in sorted(expected.keys() | found.keys()):
    if name not in found:
      return f"lacks {name}"
    size, digest = expected.get(name, (None, None))
    if found[name] not in ((size, digest), (size, None)):
      return f"is damaged in {name}"
  return None


def newest_intact(folder: pathlib.Path) -> int | None:
  """Returns the newest checkpoint of a stage that is as it was written, if any.

  Moves damaged ones to `checkpoints/damaged` and prints a warning. Checkpoints
  older than the newest intact one get a quick check: their large files are
  compared by size only, and read when one is loaded. The caller must be the
  only writer of the folder. Raises `OSError` if a checkpoint cannot be read: it
  may be intact, so nothing is moved.
  """
  newest = None
  for step in reversed(_folders(folder)):
    problem = _find_fault(folder / str(step), quick=newest is not None)
    if problem is None:
      newest = step if newest is None else newest
      continue
    kept = _set_aside(folder / str(step))
    print(
        f"warning: checkpoint {folder / str(step)} {problem}; it is not used"
        f" and was moved to {kept}",
        flush=True,
    )
  return newest


def restore(
    folder: pathlib.Path, step: int, spec: StateSpec
) -> tuple[TrainState, Progress]:
  """Restores an intact checkpoint; each device reads only its own shards."""
  wanted = sharding.placed_shapes(spec.shapes, spec.shardings)
  options = ocp.CheckpointManagerOptions(read_only=True)
  with (
      _quiet(),
      ocp.CheckpointManager(folder.absolute(), options=options) as manager,
  ):
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardRestore(wanted.params),
            rest=ocp.args.StandardRestore(wanted.replace(params=None)),
            progress=ocp.args.JsonRestore(),
        ),
    )
  state = restored["rest"].replace(params=restored["params"])
  return state, Progress(**restored["progress"])


def load_params(
    folder: pathlib.Path,
    step: int,
    shapes: PyTree,
    shardings: PyTree,
    *,
    verify: bool = True,
) -> Params:
  """Loads a checkpoint's policy; each device reads only its own shards.

  `verify=False` skips the search for faults, for a caller that has just done
  it. Raises `ConfigError` if the checkpoint is missing, half-written or
  damaged.
  """
  problem = fault(folder, step) if verify else None
  if problem:
    raise ConfigError(f"checkpoint {str(folder / str(step))!r}: {problem}")
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(
        folder.absolute() / str(step) / "params",
        sharding.placed_shapes(shapes, shardings),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences Orbax's log, which repeats every error that Orbax raises.

  Stays quiet after an exception, because Orbax's threads still log then.
  """
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)
  yield
  logging.set_verbosity(verbosity)


def _system_error(error: Exception) -> str | None:
  """Returns the operating system's reason, None for another kind of error."""
  if isinstance(error, OSError):
    return error.strerror or str(error)
  code = _OS_ERROR.search(str(error))
  return os.strerror(int(code[1])) if code else None


def _accuracy(metrics: dict[str, float]) -> float:
  return metrics["accuracy"]


def _checksums(
    path: pathlib.Path, largest: int | None = None
) -> dict[str, tuple[int, str | None]]:
  """Returns size and SHA-256 of every file of a checkpoint, by relative name.

  Does not read files over `largest` bytes: their digest is None.
  """
  found = {}
  for file in sorted(path.rglob("*")):
    if file.is_file() and file.name != _CHECKSUMS:
      size, digest = file.stat().st_size, None
      if largest is None or size <= largest:
        with file.open("rb") as stream:
          digest = hashlib.file_digest(stream, "sha256").hexdigest()
      found[file.relative_to(path).as_posix()] = (size, digest)
  return found


def seal(path: pathlib.Path) -> None:
  """Writes a checkpoint's checksums atomically: from now on it counts."""
  files.write_json(path / _CHECKSUMS, _checksums(path))


def _clear(folder: pathlib.Path) -> None:
  """Deletes half-written steps and what is left of deleted ones."""
  if not folder.is_dir():
    return
  shutil.rmtree(folder / _REMOVED, ignore_errors=True)
  for path in sorted(folder.iterdir()):
    if _HALF_WRITTEN in path.name:
      shutil.rmtree(path)
      print(
          f"warning: checkpoint {path} was not completely written; it is"
          " deleted",
          flush=True,
      )


def _set_aside(path: pathlib.Path) -> pathlib.Path:
  """Moves a checkpoint out of its stage's folder; overwrites nothing."""
  kept = path.parent.parent / "damaged"
  kept.mkdir(exist_ok=True)
  name = kept / f"{path.parent.name}-{path.name}"
  return path.rename(files.numbered(name, "-"))

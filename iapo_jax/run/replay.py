"""Steps whose numbers were not finite, kept to run again.

  replay/STAGE-STEP/state        the state before the step
  replay/STAGE-STEP/batch.npz    its batch
  replay/STAGE-STEP/metrics.json its metrics; null is not finite
  replay/STAGE-STEP/own.json     names of the user's parts, if there were any

A step is a function of its state and batch, so these are enough, except for the
user's parts: running it again needs the same ones.
"""

import dataclasses
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from iapo_jax.core import files, processes, sharding
from iapo_jax.core.errors import ConfigError
from iapo_jax.core.types import Prompts, PyTree, TrainState
from iapo_jax.rl import finite
from iapo_jax.rl.own import NOTHING, Own
from iapo_jax.rl.warm_start import Demonstrations
from iapo_jax.run import (
  assembly,
  checkpoint,
  debugging,
  places,
  resumption,
  workdir,
)
from iapo_jax.run.assembly import Assembly

_STATE = "state"
_BATCH = "batch.npz"
_METRICS = "metrics.json"
_OWN = "own.json"


@dataclasses.dataclass(frozen=True)
class Replayed:
  """A step that was run again.

  Attributes:
    before: the metrics of the first run, NaN where they were not finite.
    place: where in this package NaN appears first; None if there is no NaN.
  """

  metrics: dict[str, float]
  before: dict[str, float]
  place: str | None


def folder(run: pathlib.Path) -> pathlib.Path:
  """Returns the folder of a run's kept steps."""
  return run / "replay"


def keep(
    place: pathlib.Path,
    state: TrainState,
    batch: PyTree,
    metrics: Mapping[str, float],
    own: str = "",
) -> None:
  """Keeps a step without any update; all processes must call this.

  `place` is the step's folder, STAGE-STEP. `state` is the one after the step;
  only its step count has changed. `own` names the user's parts. Does nothing if
  the step is kept already: it was the same. Raises `OSError` if a file cannot
  be written.
  """
  # The metrics are written last: if they exist, so does the rest.
  if processes.on_first((place / _METRICS).exists):
    return
  state = state.replace(step=jax.jit(lambda step: step - 1)(state.step))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(place.absolute() / _STATE, state, force=True)
  arrays = {
      jax.tree_util.keystr(path): leaf
      for path, leaf in jax.tree.leaves_with_path(processes.gather(batch))
  }

  def write() -> None:
    np.savez(place / _BATCH, **arrays)
    if own:
      files.write_json(place / _OWN, {"own": own})
    files.write_json(place / _METRICS, finite.as_json(metrics))

  processes.on_first(write)


def again(place: pathlib.Path, own: Own = NOTHING) -> Replayed:
  """Runs a kept step again and looks for the first NaN.

  `place` is a folder that `keep` wrote, still inside its run. Raises
  `ConfigError` if nothing is kept there, its run is gone, or `own` is not what
  the step had.
  """
  named = re.fullmatch(rf"({'|'.join(checkpoint.STAGES)})-\d+", place.name)
  if not named or not (place / _METRICS).exists():
    raise ConfigError(
        f"{str(place)!r}: must be a step that a stopped run kept,"
        f" RUN/replay/STAGE-STEP; {_kept_by(place)}"
    )
  _check_own(place, own)
  run = place.absolute().parent.parent
  parts = assembly.assemble(workdir.load_config(run), home=run, own=own)
  workdir.check_data(parts, run)
  before = finite.from_json(files.read_json(place / _METRICS))
  step, arguments = _step_of(parts, run, place, named[1])
  # The step consumes its state (donation); the search needs it too.
  state = jax.tree.map(jnp.copy, arguments[0])
  metrics = step(state, *arguments[1:])[1].numbers()
  lost = finite.offenders(metrics)
  nan = debugging.first_nan(step, *arguments) if lost else None
  return Replayed(metrics, before, nan)


def _kept_by(place: pathlib.Path) -> str:
  """Says what a folder is, and which steps its run keeps."""
  seen = places.look(place)
  run = place if seen.kind is places.Kind.RUN else seen.found
  if seen.kind not in (
      places.Kind.RUN, places.Kind.CHECKPOINT, places.Kind.PART,
  ):  # fmt: skip
    return places.explain(place, "run")
  steps = sorted(folder(run).glob("*-*"))
  if not steps:
    return f"the run {str(run)!r} keeps none"
  return f"the run {str(run)!r} keeps {', '.join(map(str, steps))}"


def _check_own(place: pathlib.Path, own: Own) -> None:
  path, theirs = place / _OWN, ""
  if path.exists():
    theirs = files.read_json(path)["own"]
  if own.described != theirs:
    raise ConfigError(
        f"{str(place)!r}: the step ran with own parts {theirs or 'none'!r}, not"
        f" with {own.described or 'none'!r}; call"
        " iapo_jax.cli.iapo.run('replay', own=...) with the same Own"
    )


def _step_of(
    parts: Assembly,
    run: pathlib.Path,
    place: pathlib.Path,
    stage: str,
) -> tuple[Any, tuple[PyTree, ...]]:
  """Returns the jitted step and its arguments."""
  prompts = Prompts(0, 0, 0, 0, 0)
  if stage == "rl":
    made = assembly.reinforcement_stage(parts)
    train = assembly.train_step_of(parts, made)
    batch = _read_batch(place, prompts, parts)
  else:
    made = assembly.warm_start_stage(parts)
    train = assembly.warm_start_step_of(parts, made)
    batch = _read_batch(place, Demonstrations(prompts, 0, 0), parts)
  size = len(jax.tree.leaves(batch)[0])
  batch = sharding.put_rows(batch, parts.mesh, size)
  wanted = sharding.placed_shapes(made.spec.shapes, made.spec.shardings)
  with ocp.StandardCheckpointer() as checkpointer:
    state = checkpointer.restore(place.absolute() / _STATE, wanted)
  if stage != "rl":
    return train, (state, batch)
  reference = None
  if parts.cfg.loss.kl_weight:
    began = resumption.reference(parts, run)
    reference = assembly.reference_of(parts, made, began)
  return train, (state, reference, batch)


def _read_batch(
    place: pathlib.Path, like: PyTree, parts: Assembly
) -> PyTree:
  """Reads NumPy arrays into a tree like `like`."""
  try:
    with np.load(place / _BATCH, allow_pickle=False) as file:
      arrays = dict(file)
    whose = ".prompts" if isinstance(like, Demonstrations) else ""
    if f"{whose}.rows" not in arrays:  # an older version did not keep them
      arrays[f"{whose}.rows"] = _rows_of(
          arrays[f"{whose}.tokens"], arrays[f"{whose}.gold"], parts
      )
    return jax.tree.map_with_path(
        lambda path, _: arrays[jax.tree_util.keystr(path)], like
    )
  except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
    raise ConfigError(f"{str(place / _BATCH)!r}: is damaged") from error


def _rows_of(
    tokens: np.ndarray, gold: np.ndarray, parts: Assembly
) -> np.ndarray:
  """Finds train problems by their tokens and gold answers."""
  table = parts.task.tables["train"].prompts
  known = {
      (prompt.tobytes(), answer.tobytes()): row
      for prompt, answer, row in zip(
          table.tokens, table.gold, table.rows, strict=True
      )
  }
  pairs = zip(tokens, gold, strict=True)
  return np.array([known[x.tobytes(), y.tobytes()] for x, y in pairs], np.int32)

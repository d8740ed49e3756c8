"""Orbax: a run's state, and the policy of a finished run."""

import pathlib

import jax
import orbax.checkpoint as ocp

from iapo_jax.config import ConfigError
from iapo_jax.types import Params, PyTree, TrainState

_FOLDER = "checkpoints"


def save(workdir: pathlib.Path, state: TrainState) -> None:
  """Writes the state at its step; returns when it is on disk.

  The policy is an item of its own, so that another run can start from it
  without the optimizer's moments.

  Args:
    workdir: of the run.
    state: to write.
  """
  step = int(state.step)
  with ocp.CheckpointManager(_folder(workdir)) as manager:
    if step in manager.all_steps():
      manager.delete(step)  # of the same run, which was started over
    manager.save(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            rest=ocp.args.StandardSave(state.replace(params=None)),
        ),
        force=True,
    )
    manager.wait_until_finished()


def load_params(
    workdir: pathlib.Path, shapes: PyTree, shardings: PyTree
) -> Params:
  """The latest policy of a run, each shard read by the devices that keep it.

  Args:
    workdir: of the run.
    shapes: of the parameters.
    shardings: where they shall lie.

  Returns:
    The parameters.

  Raises:
    ConfigError: where there is no checkpoint.
  """
  if not _folder(workdir).is_dir():
    raise ConfigError(
        f"config.init_from = {str(workdir)!r}: holds no checkpoint"
    )
  target = jax.tree.map(
      lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
      shapes,
      shardings,
  )
  with ocp.CheckpointManager(_folder(workdir)) as manager:
    step = manager.latest_step()
    if step is None:
      raise ConfigError(
          f"config.init_from = {str(workdir)!r}: holds no checkpoint"
      )
    restored = manager.restore(
        step,
        args=ocp.args.Composite(params=ocp.args.StandardRestore(target)),
    )
  return restored["params"]


def _folder(workdir: pathlib.Path) -> pathlib.Path:
  return workdir.absolute() / _FOLDER

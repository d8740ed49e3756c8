"""Finds where an interrupted run continues: newest state and reference.

The first process looks for checkpoints and all processes load what it found,
so that they never disagree.
"""

import dataclasses
import functools
import pathlib

from iapo_jax.core import processes
from iapo_jax.core.errors import ConfigError
from iapo_jax.core.types import Params, TrainState
from iapo_jax.run import assembly, checkpoint, sources
from iapo_jax.run.assembly import Assembly
from iapo_jax.run.checkpoint import Progress


@dataclasses.dataclass(frozen=True)
class Saved:
  """Where an interrupted run continues; `stage` is `warm_start` or `rl`."""

  stage: str
  state: TrainState
  progress: Progress


def find(parts: Assembly, workdir: pathlib.Path) -> Saved | None:
  """Restores the newest intact checkpoint of the latest stage that has one.

  The workdir must be locked. The state is placed on the run's mesh, even if it
  was saved on another one. Returns None if there is no checkpoint.
  """
  stages = {
      "warm_start": assembly.warm_start_stage,
      "rl": assembly.reinforcement_stage,
  }
  for name in reversed(checkpoint.STAGES):
    folder = checkpoint.stage_folder(workdir, name)
    look = functools.partial(checkpoint.newest_intact, folder)
    step = processes.on_first(look)
    if step is not None:
      print(f"resumes at {name} step {step} of {folder}", flush=True)
      spec = stages[name](parts).spec
      return Saved(name, *checkpoint.restore(folder, step, spec))
  return None


def reference(parts: Assembly, workdir: pathlib.Path) -> Params | None:
  """Returns the policy that interrupted reinforcement learning began with.

  Loads the checkpoint at step 0 or, if that is damaged, its original. Raises
  `ConfigError` if neither is intact.
  """
  intact = processes.on_first(lambda: _intact_reference(parts, workdir))
  if intact is None:
    return sources.start(parts)
  return sources.load(parts, sources.named(intact), verify=False)


def _intact_reference(parts: Assembly, workdir: pathlib.Path) -> str | None:
  """Returns the path of an intact checkpoint; None for the pretrained model."""
  cfg, other = parts.cfg, None
  start = sources.Source(workdir, "rl", 0)
  problem = start.fault()
  if not problem:
    return str(start)
  # The checkpoint that it was copied from holds the same weights.
  if cfg.warm_start.num_steps:
    other = sources.Source(workdir, "warm_start", cfg.warm_start.num_steps)
  elif cfg.init_from:
    other = sources.named(cfg.init_from)
  elif cfg.model.pretrained:
    name = cfg.model.pretrained
    print(f"warning: checkpoint {start} {problem}; {name} is read instead")
    return None
  if other and other.fault() is None:
    print(f"warning: checkpoint {start} {problem}; {other} is read instead")
    return str(other)
  raise ConfigError(
      f"checkpoint {start} {problem}; the KL penalty needs that policy: start"
      " over in another --workdir"
  )

"""A run on its way: what its stages and its evaluations share."""

import dataclasses
import pathlib

from iapo_jax.config.schema import Config
from iapo_jax.core import compilation
from iapo_jax.rl.own import NOTHING, Own
from iapo_jax.run import evaluation
from iapo_jax.run.assembly import Assembly
from iapo_jax.run.logs import Log


@dataclasses.dataclass(frozen=True)
class Run:
  """A run on its way.

  Attributes:
    parts: what it is made of.
    workdir: its folder, locked by the first process.
    log: its log files, which are that process's.
    sampler: of its evaluations.
    meter: of what compiling costs.
    own: parts of the train step that are a user's.
  """

  parts: Assembly
  workdir: pathlib.Path
  log: Log
  sampler: evaluation.Sampler
  meter: compilation.Meter
  own: Own = NOTHING

  @property
  def cfg(self) -> Config:
    """The checked configuration."""
    return self.parts.cfg

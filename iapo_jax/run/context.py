"""The objects that the stages and evaluations of a run share."""

import dataclasses
import pathlib
import time

from iapo_jax.config.schema import Config
from iapo_jax.core import compilation
from iapo_jax.run import evaluation
from iapo_jax.run.assembly import Assembly
from iapo_jax.run.logs import RunLog


@dataclasses.dataclass(frozen=True)
class Run:
  """A run in progress.

  Attributes:
    workdir: its folder, locked by the first process.
    log: its log files; writes nothing in other processes.
    meter: measures what compiling costs.
    began: when it began, in seconds of `time.perf_counter`; earlier starts
      count as if they had just been.
  """

  parts: Assembly
  workdir: pathlib.Path
  log: RunLog
  sampler: evaluation.Sampler
  meter: compilation.Meter
  began: float

  @property
  def cfg(self) -> Config:
    """The checked configuration."""
    return self.parts.cfg

  @property
  def seconds(self) -> float:
    """The time of the run so far, over its starts."""
    return time.perf_counter() - self.began

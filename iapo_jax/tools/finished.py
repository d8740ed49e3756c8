"""Trains from Python: takes a configuration, returns a finished run."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from iapo_jax.config import parsing, presets
from iapo_jax.config.schema import Config
from iapo_jax.core import files
from iapo_jax.rl.own import NOTHING, Own
from iapo_jax.run import logs, trainer
from iapo_jax.run import workdir as workdir_lib
from iapo_jax.tools import loaded
from iapo_jax.tools.report import page


@dataclasses.dataclass(frozen=True)
class Finished:
  """A finished run.

  Attributes:
    workdir: its folder.
  """

  workdir: pathlib.Path

  @property
  def config(self) -> Config:
    """The configuration that it ran."""
    return workdir_lib.load_config(self.workdir)

  @property
  def metrics(self) -> dict[str, Any]:
    """The evaluation on the test split; docs/metrics.md has the units."""
    return files.read_json(self.workdir / workdir_lib.SUMMARY)

  def history(self, stage: str = "rl") -> list[dict[str, Any]]:
    """Returns metrics of each step of `warm_start`, `rl` or `validation`."""
    return logs.stage_metrics(self.workdir, stage)

  def policy(self, checkpoint: str = "last") -> loaded.Policy:
    """Loads a checkpoint: last, best, or an RL step."""
    return loaded.load(self.workdir, checkpoint=checkpoint)

  def report(self, output: str | pathlib.Path | None = None) -> pathlib.Path:
    """Draws the page of the run, in WORKDIR/report by default.

    Returns:
      The page, one HTML file.
    """
    folder = pathlib.Path(output or self.workdir / "report")
    runs = {self.workdir.resolve().name: [self.workdir]}
    return page.write(runs, folder, title="IAPO run")


def train(
    config: str | Mapping[str, Any],
    *,
    workdir: str | pathlib.Path,
    own: Own = NOTHING,
) -> Finished:
  """Trains a run, or continues an interrupted one.

  Args:
    config: the name of a configuration, such as `arithmetic:to_go`; or a
      ConfigDict, such as `iapo_jax.config.presets.load` returns; or a nested
      mapping of fields, where missing fields have their defaults.
    workdir: folder of the run. If it holds this run, finished, nothing is
      trained.
    own: your reward, credit or probes.

  Raises:
    ConfigError: if the configuration, its data, the devices or the workdir
      break a rule.
  """
  if isinstance(config, str):
    config = presets.load(config)
  place = pathlib.Path(workdir)
  trainer.train(
      parsing.parse(config),
      place,
      programs=place / workdir_lib.PROGRAMS,
      own=own,
  )
  return Finished(place)

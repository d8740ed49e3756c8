"""Trains a configuration.

  iapo train --config=arithmetic:to_go
  iapo train --config=configs/arithmetic.py --config.seed=1
  iapo train --config=arithmetic --dry_run

Without --config it lists the configurations. The same command continues an
interrupted run from its last checkpoint. To use several hosts, start it on each
of them with a --workdir that all can reach: docs/launch.md.
"""

import argparse
import pathlib

from iapo_jax.cli import command, configuration
from iapo_jax.run import trainer
from iapo_jax.run import workdir as workdir_lib


def add_arguments(parser: command.Parser) -> None:
  """Adds the arguments of the command."""
  configuration.add_argument(parser)
  parser.add_argument(
      "--workdir", help="folder of the run; runs/NAME[-VARIANT] by default"
  )
  parser.add_argument(
      "--dry_run",
      action="store_true",
      help="print the plan; compile nothing, and write only to a temporary"
      " folder",
  )
  command.add_process_arguments(parser)


def run(given: argparse.Namespace) -> None:
  """Parses the configuration and trains."""
  command.join_processes(given)
  cfg, label = configuration.load(given.config, given.overrides)
  workdir = pathlib.Path(given.workdir or pathlib.Path("runs") / label)
  trainer.train(
      cfg,
      workdir,
      dry_run=given.dry_run,
      programs=workdir / workdir_lib.PROGRAMS,
      own=given.own,
  )

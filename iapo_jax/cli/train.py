"""The command that trains: its flags, and what it does."""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from iapo_jax.cli import command
from iapo_jax.rl.own import NOTHING, Own
from iapo_jax.run import trainer
from iapo_jax.run import workdir as workdir_lib


def main(own: Own = NOTHING) -> None:
  """Runs the command; a program calls this once, and nothing after it.

  Args:
    own: parts of the train step that are the program's.
  """
  _define_flags()
  command.run(lambda _: _train(own))


def _define_flags() -> None:
  config_flags.DEFINE_config_file(
      "config", None, "Configuration file, with a variant after a colon."
  )
  flags.DEFINE_string(
      "workdir", None, "Folder of the run; runs/NAME[-VARIANT] by default."
  )
  flags.DEFINE_bool(
      "dry_run", False, "Print the plan; write and compile nothing."
  )
  command.define_process_flags()
  flags.mark_flag_as_required("config")
  for name in ("config", "workdir", "dry_run"):
    # So that --help of the program has them.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def _train(own: Own) -> None:
  """Parses the configuration and trains."""
  command.join_processes()
  cfg, file = command.load_config()
  given = flags.FLAGS.workdir
  workdir = pathlib.Path(given) if given else _default_workdir(file)
  trainer.train(
      cfg,
      workdir,
      dry_run=flags.FLAGS.dry_run,
      programs=workdir / workdir_lib.PROGRAMS,
      own=own,
  )


def _default_workdir(config_file: str) -> pathlib.Path:
  """runs/NAME[-VARIANT] for configs/NAME.py[:VARIANT]."""
  path, _, variant = config_file.partition(":")
  name = pathlib.Path(path).stem
  return pathlib.Path("runs") / (f"{name}-{variant}" if variant else name)

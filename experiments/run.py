"""Trains one configuration.

Examples:
  python experiments/run.py --config=configs/arithmetic.py:to_go
  python experiments/run.py --config=configs/arithmetic.py --config.seed=1
  python experiments/run.py --config=configs/arithmetic.py --dry_run

The same command again goes on where an interrupted run was saved. On several
hosts it is started on each of them, with a --workdir that all can reach:
docs/launch.md.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from iapo_jax import cli, trainer
from iapo_jax import workdir as workdir_lib

config_flags.DEFINE_config_file(
    "config", None, "Configuration file, with a variant after a colon."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; runs/NAME[-VARIANT] by default."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the plan; write and compile nothing."
)
cli.define_process_flags()
flags.mark_flag_as_required("config")


def default_workdir(config_file: str) -> pathlib.Path:
  """runs/NAME[-VARIANT] for configs/NAME.py[:VARIANT]."""
  path, _, variant = config_file.partition(":")
  name = pathlib.Path(path).stem
  return pathlib.Path("runs") / (f"{name}-{variant}" if variant else name)


def main(_: list[str]) -> None:
  """Parses the configuration and trains."""
  cli.join_processes()
  cfg, file = cli.load_config()
  workdir = pathlib.Path(_WORKDIR.value or default_workdir(file))
  trainer.train(
      cfg,
      workdir,
      dry_run=_DRY_RUN.value,
      programs=workdir / workdir_lib.PROGRAMS,
  )


if __name__ == "__main__":
  cli.run(main)

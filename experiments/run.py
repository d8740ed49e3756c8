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

from iapo_jax import cli, processes, trainer
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
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address",
    None,
    "HOST:PORT of the first of several processes, where neither a TPU VM nor"
    " SLURM tells.",
)
_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many they are."
)
_PROCESS = flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0."
)
flags.mark_flag_as_required("config")


def default_workdir(config_file: str) -> pathlib.Path:
  """runs/NAME[-VARIANT] for configs/NAME.py[:VARIANT]."""
  path, _, variant = config_file.partition(":")
  name = pathlib.Path(path).stem
  return pathlib.Path("runs") / (f"{name}-{variant}" if variant else name)


def main(_: list[str]) -> None:
  """Parses the configuration and trains."""
  processes.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
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

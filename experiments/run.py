"""Trains one configuration.

python experiments/run.py --config=configs/arithmetic.py:to_go
python experiments/run.py --config=configs/arithmetic.py --config.seed=1
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from iapo_jax import config as config_lib
from iapo_jax import trainer

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, with a variant after a colon."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; runs/NAME[-VARIANT] by default."
)


def default_workdir(config_file: str) -> pathlib.Path:
  """runs/NAME[-VARIANT] for configs/NAME.py[:VARIANT]."""
  path, _, variant = config_file.partition(":")
  name = pathlib.Path(path).stem
  return pathlib.Path("runs") / (f"{name}-{variant}" if variant else name)


def main(_: list[str]) -> None:
  """Parses the configuration and trains."""
  cfg = config_lib.parse(_CONFIG.value)
  file = config_flags.get_config_filename(flags.FLAGS["config"])
  workdir = _WORKDIR.value or default_workdir(file)
  trainer.train(cfg, pathlib.Path(workdir))


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  flags.mark_flag_as_required("config")
  try:
    app.run(main)
  except config_lib.ConfigError as error:
    sys.exit(f"error: {error}")

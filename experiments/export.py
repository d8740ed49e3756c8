"""Writes a run's policy as a Hugging Face folder; a CPU is enough.

  python experiments/export.py runs/arithmetic-to_go --output=exported
  python experiments/export.py RUN --output=FOLDER --checkpoint=best \
      --dtype=bfloat16

The folder has weights (safetensors), config.json, generation_config.json, the
tokenizer and a model card; `transformers.AutoModelForCausalLM` loads it, and so
does another run: `--config.model.pretrained=FOLDER`. With float32 the weights
are exactly those of the checkpoint.
"""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX is imported

from absl import flags

from iapo_jax.cli import command
from iapo_jax.core.errors import ConfigError
from iapo_jax.run import sources
from iapo_jax.tools import export

_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; must be new.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "last", "last, best, or a step of reinforcement learning."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ("float32", "bfloat16", "float16"), "Of the weights."
)
_FAMILY = flags.DEFINE_string(
    "family", "", "model_type of a run that began from nothing, if another."
)
_SHARD = flags.DEFINE_float(
    "max_shard_gb", 5.0, "Of a file of weights.", lower_bound=1e-6
)
flags.mark_flag_as_required("output")


def main(arguments: list[str]) -> None:
  """Finds the checkpoint, writes the folder."""
  if len(arguments) != 2:
    raise ConfigError("give the folder of one run")
  source = sources.chosen(pathlib.Path(arguments[1]), _CHECKPOINT.value)
  output = pathlib.Path(_OUTPUT.value)
  written = export.export(
      source,
      output,
      dtype=_DTYPE.value,
      max_shard_bytes=int(_SHARD.value * 1e9),
      family=_FAMILY.value,
  )
  print(f"exported {source} to {output}: {', '.join(written)}")


if __name__ == "__main__":
  command.run(main)

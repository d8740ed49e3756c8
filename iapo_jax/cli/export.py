"""Writes a run's policy as a Hugging Face folder; a CPU is enough.

  iapo export runs/arithmetic-to_go --output=exported
  iapo export RUN --output=FOLDER --checkpoint=best --dtype=bfloat16

The folder has weights (safetensors), config.json, generation_config.json, the
tokenizer and a model card; `transformers.AutoModelForCausalLM` loads it, and so
does another run: `--config.model.pretrained=FOLDER`. With float32 the weights
are exactly those of the checkpoint.
"""

import argparse
import os
import pathlib

import jax

from iapo_jax.cli import command
from iapo_jax.run import sources
from iapo_jax.tools import export


def add_arguments(parser: command.Parser) -> None:
  """Adds the arguments of the command."""
  add = parser.add_argument
  add("run", metavar="RUN", help="folder of a run")
  add("--output", required=True, help="folder to write; must be new")
  add("--checkpoint", default="last", help="last, best or an RL step")
  add(
      "--dtype",
      default="float32",
      choices=("float32", "bfloat16", "float16"),
      help="dtype of the weights",
  )
  add(
      "--family",
      default="",
      help="another model_type, for a run that began from random weights",
  )
  add(
      "--max_shard_gb",
      default=5.0,
      type=command.at_least(1e-6, float),
      help="largest file of weights, in GB",
  )


def run(given: argparse.Namespace) -> None:
  """Finds the checkpoint and writes the folder."""
  if "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")
  source = sources.chosen(pathlib.Path(given.run), given.checkpoint)
  output = pathlib.Path(given.output)
  written = export.export(
      source,
      output,
      dtype=given.dtype,
      max_shard_bytes=int(given.max_shard_gb * 1e9),
      family=given.family,
  )
  print(f"exported {source} to {output}: {', '.join(written)}")

"""How much memory loading a checkpoint takes, beside the weights themselves.

  python benchmarks/loading.py --gigabytes=3

Writes a random bfloat16 checkpoint of about that size to a temporary folder
and loads it in a process of its own. Prints JSON: bytes of the weights, the
process's peak over what it held before (the runtime: Python, JAX, transformers)
and their ratio. Linux only: it reads /proc/self/status.
"""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl import app, flags

from iapo_jax.config.model import ModelConfig
from iapo_jax.hf import families, folder, names, weights

_SIZE = flags.DEFINE_float("gigabytes", 3.0, "Of weights.", lower_bound=1e-3)
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ("bfloat16", "float32"), "They are loaded as."
)
_FOLDER = flags.DEFINE_string("folder", None, "Load this one; used inside.")

_LAYER = ModelConfig(
    family="qwen2", vocab_size=32_768, num_layers=1, d_model=2048,
    num_heads=16, num_kv_heads=4, head_dim=128, mlp_dim=8192, qkv_bias=True,
)  # fmt: skip


def make(place: pathlib.Path, gigabytes: float) -> None:
  """Writes a random checkpoint, a file for every layer."""
  letters = names.sizes(_LAYER)
  per_layer = 2 * sum(
      math.prod(names.tensor_shape(tensor, letters))
      for tensor in names.tensors(_LAYER)
      if tensor.in_layers
  )
  count = max(1, round(gigabytes * 1e9 / per_layer))
  cfg = dataclasses.replace(_LAYER, num_layers=count)
  families.config_of(cfg).save_pretrained(place)
  rng, weight_map = np.random.default_rng(0), {}
  groups = [[t for t in names.tensors(cfg) if not t.in_layers]]
  groups += [[t for t in names.tensors(cfg) if t.in_layers]] * count
  for i, group in enumerate(groups):
    content = {
        tensor.name.format(i - 1): rng.standard_normal(
            names.tensor_shape(tensor, letters), dtype=np.float32
        ).astype(jnp.bfloat16)
        for tensor in group
    }
    file = f"model-{i:05d}.safetensors"
    safetensors.numpy.save_file(content, place / file, {"format": "pt"})
    weight_map |= dict.fromkeys(content, file)
  index = {"weight_map": weight_map}
  path = place / "model.safetensors.index.json"
  path.write_text(json.dumps(index), encoding="utf-8")


def peak() -> int:
  """The most memory that this process ever held, in bytes."""
  status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
  line = next(x for x in status.splitlines() if x.startswith("VmHWM"))
  return int(line.split()[1]) * 1024


def measure(place: pathlib.Path, dtype: str) -> dict[str, float]:
  """Loads a checkpoint in this process."""
  cfg = folder.read_model(place)
  jnp.zeros(1).block_until_ready()  # starts the runtime
  before = peak()
  params = weights.load(place, cfg, dtype=dtype)
  held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  over = peak() - before
  return {
      "weights_bytes": held,
      "peak_over_runtime_bytes": over,
      "runtime_bytes": before,
      "ratio": over / held,
  }


def main(_: list[str]) -> None:
  """Makes, then loads in a fresh process."""
  if _FOLDER.value:
    print(json.dumps(measure(pathlib.Path(_FOLDER.value), _DTYPE.value)))
    return
  with tempfile.TemporaryDirectory() as place:
    make(pathlib.Path(place), _SIZE.value)
    flags_inside = [f"--folder={place}", f"--dtype={_DTYPE.value}"]
    done = subprocess.run(
        [sys.executable, __file__, *flags_inside],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
  print(done.stdout, end="")


if __name__ == "__main__":
  app.run(main)

"""The training of `configs/qwen_math.py` with Llama 3 Instruct models.

  python experiments/run.py --config=configs/llama_math.py
  python experiments/run.py --config=configs/llama_math.py:3b-dapo

The sizes are `1b` (default) and `3b` (Llama 3.2), and `8b` (Llama 3.1). Data
sets and methods are those of `configs/qwen_math.py`.

The weights are gated. Accept their licence on the hub and log in
(`hf auth login`), or set --config.model.pretrained=FOLDER to a local folder.
The paper has no results for Llama, so the weights of information and
exploration are 1 and 1, untuned. This file was never run with published
weights.
"""

import ml_collections

from iapo_jax.config import presets


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """Returns a variant of `math` for this family."""
  return presets.read("math")["get_config"](variant, family="llama")

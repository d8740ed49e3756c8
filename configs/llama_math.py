"""The training of `configs/qwen_math.py` with Llama 3 Instruct models.

  python experiments/run.py --config=configs/llama_math.py
  python experiments/run.py --config=configs/llama_math.py:3b-dapo

Sizes `1b` (default) and `3b` (Llama 3.2), `8b` (Llama 3.1); data sets and
credit modes as there. The weights are gated: accept their licence on the hub
and log in (`hf auth login`), or name a local folder with
--config.model.pretrained=FOLDER. The paper has no Llama: the weights of
information and exploration are 1 and 1 and were never searched for. Nothing of
this was run with published weights.
"""

import ml_collections

from iapo_jax.config import presets


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """A variant of `math` of this family."""
  return presets.read("math")["get_config"](variant, family="llama")

"""The training of `configs/qwen_math.py` with Gemma instruction models.

  python experiments/run.py --config=configs/gemma_math.py
  python experiments/run.py --config=configs/gemma_math.py:2b-gsm8k-to_go

The sizes are `1b` (Gemma 3, default), `2b` and `9b` (Gemma 2). Data sets and
methods are those of `configs/qwen_math.py`. Gemma's chat template supports no
system message, so the instructions begin the first user message.

The weights are gated. Accept their licence on the hub and log in
(`hf auth login`), or set --config.model.pretrained=FOLDER to a local folder.
The paper has no results for Gemma, so the weights of information and
exploration are 1 and 1, untuned. `1b` has one key/value head, which mesh.tensor
cannot split. So 8 devices need --config.prompts_per_step=16
--config.loss.micro_batches=2. This file was never run with published weights.
"""

import ml_collections

from iapo_jax.config import presets


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """Returns a variant of `math` for this family."""
  return presets.read("math")["get_config"](variant, family="gemma")

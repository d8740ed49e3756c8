"""The training of `configs/qwen_math.py` with Gemma instruction models.

  python experiments/run.py --config=configs/gemma_math.py
  python experiments/run.py --config=configs/gemma_math.py:2b-gsm8k-to_go

Sizes `1b` (Gemma 3, default), `2b` and `9b` (Gemma 2); data sets and credit
modes as there. Gemma's chat template knows no system message: the instructions
begin the user's first one. The weights are gated: accept their licence on the
hub and log in (`hf auth login`), or name a local folder with
--config.model.pretrained=FOLDER. The paper has no Gemma: the weights of
information and exploration are 1 and 1 and were never searched for. `1b` has
one key/value head, which mesh.tensor cannot split: 8 devices need
--config.prompts_per_step=16 --config.loss.micro_batches=2. Nothing of this was
run with published weights.
"""

import ml_collections

from iapo_jax.config import presets


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """A variant of `math` of this family."""
  return presets.read("math")["get_config"](variant, family="gemma")

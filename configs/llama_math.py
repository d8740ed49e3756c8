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

from iapo_jax.config import recipes
from iapo_jax.config.recipes import Size


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """The configuration of a variant.

  Args:
    variant: as above.

  Returns:
    The configuration.

  Raises:
    ConfigError: for an unknown variant.
  """
  sizes = {
      "1b": Size("meta-llama/Llama-3.2-1B-Instruct", {}),
      "3b": Size("meta-llama/Llama-3.2-3B-Instruct", {}),
      "8b": Size(
          "meta-llama/Llama-3.1-8B-Instruct",
          {},
          prompts_per_step=16,
          micro_batches=2,
          sharded=True,
      ),
  }
  return recipes.mathematics(variant, sizes)

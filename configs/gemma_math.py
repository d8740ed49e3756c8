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
      "1b": Size("google/gemma-3-1b-it", {}),
      "2b": Size("google/gemma-2-2b-it", {}),
      "9b": Size(
          "google/gemma-2-9b-it",
          {},
          prompts_per_step=16,
          micro_batches=2,
          sharded=True,
      ),
  }
  config = recipes.mathematics(variant, sizes)
  config.data.instructions = "user"
  return config

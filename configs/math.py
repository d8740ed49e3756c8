"""The paper's reinforcement learning on mathematics, for a family of models.

  iapo train --config=math:qwen-0.5b-gsm8k-length_penalty

A variant joins these words by `-`, in any order; each may be left out: a family
(`qwen`, default; `llama`; `gemma`), one of its sizes, a data set (`gsm8k`,
default; `math500`; `dapo`) and a method of docs/method.md (`paper`, default).
`qwen_math`, `llama_math` and `gemma_math` are single families; their files list
what was verified.
"""

import dataclasses
from collections.abc import Mapping

import ml_collections

from iapo_jax.config import methods, parsing, presets


@dataclasses.dataclass(frozen=True)
class Size:
  """A pretrained model, and how its batch is split.

  Attributes:
    pretrained: the model's name on the hub.
    weights: (w_info, w_explore) of the paper's credit, by data set; (1, 1) for
      data sets without tuned values.
    prompts_per_step: q.
    micro_batches: `loss.micro_batches`.
    sharded: whether weights and Adam's moments are split over all devices.
  """

  pretrained: str
  weights: Mapping[str, tuple[float, float]] = dataclasses.field(
      default_factory=dict
  )
  prompts_per_step: int = 12
  micro_batches: int = 3
  sharded: bool = False


DATA = ("gsm8k", "math500", "dapo")
LARGE = {"prompts_per_step": 16, "micro_batches": 2, "sharded": True}
FAMILIES = {
    "qwen": {
        "0.5b": Size(
            "Qwen/Qwen2.5-0.5B-Instruct",
            {"gsm8k": (1, 1), "math500": (1, 1e-6), "dapo": (1e-6, 1e-2)},
        ),
        "1.5b": Size(
            "Qwen/Qwen2.5-1.5B-Instruct",
            {"gsm8k": (1, 1), "math500": (1e-6, 1e-6), "dapo": (1e-2, 1e-4)},
        ),
        "7b": Size(
            "Qwen/Qwen2.5-7B-Instruct",
            {"gsm8k": (1, 1e-6), "math500": (1e-6, 1e-6), "dapo": (1e-6, 1e-6)},
            **LARGE,
        ),
    },
    "llama": {
        "1b": Size("meta-llama/Llama-3.2-1B-Instruct"),
        "3b": Size("meta-llama/Llama-3.2-3B-Instruct"),
        "8b": Size("meta-llama/Llama-3.1-8B-Instruct", **LARGE),
    },
    "gemma": {
        "1b": Size("google/gemma-3-1b-it"),
        "2b": Size("google/gemma-2-2b-it"),
        "9b": Size("google/gemma-2-9b-it", **LARGE),
    },
}


def get_config(
    variant: str | None = None, family: str | None = None
) -> ml_collections.ConfigDict:
  """Returns the configuration of a variant, which omits a given `family`."""
  if family is None:
    named = [x for x in FAMILIES if x in (variant or "").split("-")]
    family = named[0] if named else "qwen"
    rest = [x for x in (variant or "").split("-") if x and x != family]
    variant = "-".join(rest)
  sizes = FAMILIES[family]
  size, data, method = presets.parts(variant, (sizes, DATA, methods.NAMES))
  config = parsing.default()
  config.seed = 42
  _set_model(config, sizes[size])
  config.group_size = 8
  config.rollout.max_tokens = 2048
  config.reward.grader = "host"
  config.loss.head_chunk = 64
  config.optimizer.update({"learning_rate": 1e-6, "clip_norm": 1.0})
  config.evaluation.update({
      "every": 50,
      "problems": 50,
      "samples": 32,
      "batch_size": 256,
      "checkpoint": "best",
  })
  set_data(config, data)
  if data == "math500":
    config.probe.elicitation = "</think>\n<answer>\\boxed{"
  methods.choose(config, method)
  if method in ("paper", "faithful"):
    info, explore = sizes[size].weights.get(data, (1.0, 1.0))
    config.credit.update({"info_weight": info, "explore_weight": explore})
  if method == "chance":
    config.probe.answer_tokens = 8  # the first digit is not the whole answer
    # A completion raises the chance by at most 1, and the longest one, of 2,048
    # tokens, costs about 1.
    config.credit.cost = 5e-4
  if family == "gemma":  # its chat template supports no system message
    config.data.instructions = "user"
  return config


def _set_model(config: ml_collections.ConfigDict, size: Size) -> None:
  config.model.update({
      "pretrained": size.pretrained, "dtype": "bfloat16", "remat": True,
  })  # fmt: skip
  config.prompts_per_step = size.prompts_per_step
  config.loss.micro_batches = size.micro_batches
  if size.sharded:
    config.mesh.update({"data": 1, "fsdp": -1})


def set_data(config: ml_collections.ConfigDict, data: str) -> None:
  """Sets the data set, one of `DATA`, and the number of steps it gives.

  Set `prompts_per_step` before.
  """
  config.data.update({
      "task": "dapo_math" if data == "dapo" else data,
      "prompt": "instructed",
      "chat_template": True,
      "max_prompt_tokens": 512,
      "max_gold_tokens": 64,
      "validation_problems": 50,
      "split": "published" if data == "gsm8k" else "80_20",
  })
  # One pass over the train problems, but four over the 350 of MATH-500.
  drawn = {"gsm8k": 7423, "math500": 4 * 350, "dapo": 5550}[data]
  config.num_steps = drawn // config.prompts_per_step
  if data == "math500":
    # Gives more than the five checkpoints from which `best` chooses.
    config.evaluation.every = 20
    # The longest prompts have over 900 tokens, and their problems are ordinary.
    config.data.max_prompt_tokens = 1024
  if data == "dapo":
    config.data.update({"first_rows": 7000, "overlong": "skip"})

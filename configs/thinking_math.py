r"""Shortens models that already think, on mathematics.

  iapo train --config=thinking_math:r1_1.5b-math500-length_penalty

A variant joins these words by `-`, in any order; each may be left out: a model
(`qwen3_0.6b`, default; `qwen3_1.7b`; `qwen3_4b`; `r1_1.5b`; `r1_7b`;
`smollm3_3b`), a data set (`gsm8k`, default; `math500`; `dapo`) and a method of
docs/method.md (`paper`, default). docs/thinking.md explains the choices.

The format is `thinker`: thinking, then a solution with `\boxed{}`. A completion
has at most 8,192 tokens, and there is a probe after every 64th. Evaluations
sample as the authors of each model ask (temperature 0.6, top-p 0.95; Qwen3 also
top-k 20); training samples from the whole distribution at temperature 1.

`qwen3_0.6b`, `qwen3_1.7b` and `r1_1.5b` are set for one device of 80 GB, by
arithmetic: Qwen3's cache takes 112 KiB a token and decoding holds it nearly
twice. The other models split heads over 4 devices and weights over all, such as
16 of 16 GB. docs/scaling.md has the memory of the programs that were compiled.
Nobody has run this file with published weights: no number of it is known, and
learning rate, credit weights and lengths are untuned.
"""

import dataclasses
from collections.abc import Mapping

import ml_collections

from iapo_jax.config import methods, parsing, presets


@dataclasses.dataclass(frozen=True)
class Model:
  """A pretrained model, and how its batch is split.

  Attributes:
    pretrained: the model's name on the hub.
    sampling: fields of the evaluation, as its authors ask.
    prompts_per_step: q.
    micro_batches: `loss.micro_batches`.
    sharded: whether heads are split over 4 devices, and weights and Adam's
      moments over all.
  """

  pretrained: str
  sampling: Mapping[str, float]
  prompts_per_step: int = 4
  micro_batches: int = 32
  sharded: bool = False


MOST_TOKENS = 8192
NUCLEUS = {"temperature": 0.6, "top_p": 0.95}
QWEN3 = NUCLEUS | {"top_k": 20}
SHARDED = {"micro_batches": 8, "sharded": True}
MODELS = {
    "qwen3_0.6b": Model("Qwen/Qwen3-0.6B", QWEN3),
    "qwen3_1.7b": Model(
        "Qwen/Qwen3-1.7B", QWEN3, prompts_per_step=2, micro_batches=16
    ),
    "qwen3_4b": Model("Qwen/Qwen3-4B", QWEN3, **SHARDED),
    "r1_1.5b": Model("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", NUCLEUS),
    "r1_7b": Model(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", NUCLEUS, **SHARDED
    ),
    "smollm3_3b": Model("HuggingFaceTB/SmolLM3-3B", NUCLEUS, **SHARDED),
}
# `faithful` is defined by a probe at every token.
METHODS = tuple(name for name in methods.NAMES if name != "faithful")


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration of a variant."""
  math = presets.read("math")
  kinds = (MODELS, math["DATA"], METHODS)
  name, data, method = presets.parts(variant, kinds)
  model = MODELS[name]
  config = parsing.default()
  config.seed = 42
  config.format.preset = "thinker"
  config.model.update({
      "pretrained": model.pretrained, "dtype": "bfloat16", "remat": True,
  })  # fmt: skip
  config.prompts_per_step = model.prompts_per_step
  config.group_size = 8
  config.loss.update({
      "micro_batches": model.micro_batches, "head_chunk": 64,
  })  # fmt: skip
  if model.sharded:
    config.mesh.update({"data": 1, "fsdp": -1, "tensor": 4})
  config.rollout.max_tokens = MOST_TOKENS
  config.reward.grader = "host"
  config.optimizer.update({"learning_rate": 1e-6, "clip_norm": 1.0})
  config.evaluation.update({
      "every": 50, "problems": 50, "samples": 8, "checkpoint": "best",
      # No more completions at a time than in training: a cache is large.
      "batch_size": 8 * model.prompts_per_step,
      **model.sampling,
  })  # fmt: skip
  math["set_data"](config, data)
  methods.choose(config, method)
  config.probe.stride = 64
  if method == "chance":
    config.probe.answer_tokens = 8  # the first digit is not the whole answer
    # A completion raises the chance by at most 1; the longest one costs 1.
    config.credit.cost = 1 / MOST_TOKENS
  return config

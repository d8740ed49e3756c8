"""The cases of `step.py`, and what every contestant gets of one.

A checkpoint with random weights, a tokenizer and prompts, in a folder as
Hugging Face has them. The tokenizer's words are numbers, one a token. It knows
two tokens more than the model, EOS and padding: what the model cannot sample
ends no completion, so that each has all its tokens and nobody pays for that.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import tokenizers
import transformers
from flax import linen as nn

from iapo_jax.hf import families, weights
from iapo_jax.model_config import ModelConfig
from iapo_jax.models import transformer
from iapo_jax.types import KeyDomain

_SEED = 0


@dataclasses.dataclass(frozen=True)
class Case:
  """A model and the batch of a step.

  Attributes:
    model: the decoder.
    prompts: q.
    group: samples of each.
    prompt_tokens: of every prompt.
    new_tokens: of every completion.
    micro_batches: that ours and Tunix make of an update.
  """

  model: ModelConfig
  prompts: int
  group: int
  prompt_tokens: int
  new_tokens: int
  micro_batches: int = 4

  @property
  def sequences(self) -> int:
    """Of a step."""
    return self.prompts * self.group

  @property
  def tokens(self) -> int:
    """That a step generates."""
    return self.sequences * self.new_tokens


def named() -> dict[str, Case]:
  """Every case; `tiny` is for tests of the benchmark itself."""
  qwen2 = ModelConfig(family="qwen2", qkv_bias=True, tie_embeddings=True)
  tiny = dataclasses.replace(
      qwen2, vocab_size=64, num_layers=2, d_model=32, num_heads=2,
      num_kv_heads=1, head_dim=16, mlp_dim=64,
  )  # fmt: skip
  small = dataclasses.replace(
      qwen2, vocab_size=1024, num_layers=4, d_model=128, num_heads=4,
      num_kv_heads=2, head_dim=32, mlp_dim=512,
  )  # fmt: skip
  large = dataclasses.replace(
      qwen2, vocab_size=32_000, num_layers=8, d_model=384, num_heads=6,
      num_kv_heads=2, head_dim=64, mlp_dim=1024,
  )  # fmt: skip
  return {
      "tiny": Case(
          tiny, 2, 4, prompt_tokens=8, new_tokens=8, micro_batches=2
      ),
      "small": Case(small, 8, 8, prompt_tokens=32, new_tokens=64),
      "large": Case(large, 4, 8, prompt_tokens=128, new_tokens=256),
  }


def write(
    case: Case, folder: pathlib.Path, *, steps: int, **more: Any
) -> pathlib.Path:
  """Writes checkpoint, tokenizer and job.

  Args:
    case: what to write.
    folder: that exists.
    steps: for how many there shall be prompts.
    more: of the job.

  Returns:
    The job's file, which workers read.
  """
  checkpoint = folder / "checkpoint"
  checkpoint.mkdir()
  length = case.prompt_tokens + case.new_tokens
  theirs = families.config_of(
      dataclasses.replace(case.model, max_positions=length),
      architectures=["Qwen2ForCausalLM"],
      dtype="float32",
  )
  theirs.save_pretrained(checkpoint)
  params = nn.unbox(transformer.init(KeyDomain.WEIGHTS.key(_SEED), case.model))
  weights.save(checkpoint, params, case.model, dtype="float32")
  _tokenizer(case.model.vocab_size).save_pretrained(checkpoint)
  shape = (steps * case.prompts, case.prompt_tokens)
  rng = np.random.default_rng(_SEED)
  job = {
      "checkpoint": str(checkpoint),
      "prompts": rng.integers(case.model.vocab_size, size=shape).tolist(),
      "prompts_per_step": case.prompts,
      "group_size": case.group,
      "prompt_tokens": case.prompt_tokens,
      "new_tokens": case.new_tokens,
      "micro_batches": case.micro_batches,
      "eos_id": case.model.vocab_size,
      "pad_id": case.model.vocab_size + 1,
      "kl_weight": 0.04,
      "learning_rate": 1e-5,
      "seed": _SEED,
      "steps": steps,
  }
  path = folder / "job.json"
  path.write_text(json.dumps(job | more), encoding="utf-8")
  return path


def _tokenizer(size: int) -> transformers.PreTrainedTokenizerFast:
  words = {str(i): i for i in range(size)} | {"<eos>": size, "<pad>": size + 1}
  core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words))
  core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
      tokenizer_object=core, eos_token="<eos>", pad_token="<pad>"
  )


def flops(case: Case) -> float:
  """Floating-point operations that one step needs, by arithmetic.

  A multiplication and an addition count as two, matrix products only. A token
  passing forward costs twice the weights of its layers, twice those of the
  head where it predicts, and 4 · layers · heads · head width for each token it
  attends to. Of the b · t completion tokens that is needed once to generate
  them, once for the reference and three times for the update (the backward
  pass costs two forward passes). Prompts are needed once a group, in each of
  these, and predict nothing: what a program does beyond that, in padding,
  masked scores or prompts encoded again, is not counted.

  Args:
    case: of the step.

  Returns:
    How many.
  """
  m, p, t = case.model, case.prompt_tokens, case.new_tokens
  width = m.num_heads * m.head_dim
  keys = 2 * m.num_kv_heads * m.head_dim
  layer = m.d_model * (2 * width + keys) + 3 * m.d_model * m.mlp_dim
  layers, head = m.num_layers * layer, m.vocab_size * m.d_model
  attended = 4 * m.num_layers * width
  prompt = 2 * layers * p + attended * p * (p + 1) / 2
  completion = 2 * (layers + head) * t
  completion += attended * (t * p + t * (t + 1) / 2)
  passes = 1 + 1 + 3
  return passes * (case.prompts * prompt + case.sequences * completion)


def parameters(checkpoint: pathlib.Path) -> int:
  """How many numbers a checkpoint holds."""
  shapes = weights.Reader(checkpoint).header().values()
  return int(sum(np.prod(shape) for shape, _ in shapes))

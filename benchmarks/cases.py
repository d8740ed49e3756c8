"""The benchmarks' cases, and what every contestant gets of one.

For `step.py` that is a checkpoint with random weights, a tokenizer and prompts,
in a folder as Hugging Face has them. The tokenizer's words are numbers, one a
token. It knows two tokens more than the model, EOS and padding: what the model
cannot sample ends no completion, so that each has all its tokens and nobody
pays for that.
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import numpy as np
import tokenizers
import transformers
from flax import linen as nn

from iapo_jax.config.model import ModelConfig, RopeConfig
from iapo_jax.core.types import KeyDomain
from iapo_jax.hf import families, weights
from iapo_jax.models import transformer
from iapo_jax.run import costs

_SEED = 0
_CHAT = (
    "{% for m in messages %}{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}assistant\n{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Case(costs.Batch):
  """A batch, and how it is trained on.

  Attributes:
    micro_batches: that Tunix makes of an update, and ours on one device.
    devices: that ours spreads a batch over, of a core each or all of one; what
      was measured to be faster. With few sequences on each, a large vocabulary
      is read once more for every device.
    rehearsal: whether it only shows that a benchmark runs: programs are
      compiled with the caller's flags, and peaks measured on small products.
  """

  micro_batches: int = 4
  devices: int = 1
  rehearsal: bool = False


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
          tiny,
          2,
          4,
          prompt_tokens=8,
          new_tokens=8,
          micro_batches=2,
          rehearsal=True,
      ),
      "small": Case(small, 8, 8, prompt_tokens=32, new_tokens=64, devices=2),
      "large": Case(large, 4, 8, prompt_tokens=128, new_tokens=256),
  }


def published() -> dict[str, ModelConfig]:
  """The shapes of Qwen2.5 models and of some that think, for random weights."""
  qwen2 = ModelConfig(
      family="qwen2", qkv_bias=True, tie_embeddings=True,
      rope=RopeConfig(theta=1e6), vocab_size=151_936,
  )  # fmt: skip
  qwen3 = ModelConfig(
      family="qwen3", qk_norm="head", tie_embeddings=True,
      rope=RopeConfig(theta=1e6), vocab_size=151_936, num_kv_heads=8,
      head_dim=128,
  )  # fmt: skip
  return {
      "0.5b": dataclasses.replace(
          qwen2, num_layers=24, d_model=896, num_heads=14, num_kv_heads=2,
          head_dim=64, mlp_dim=4864,
      ),
      "1.5b": dataclasses.replace(
          qwen2, num_layers=28, d_model=1536, num_heads=12, num_kv_heads=2,
          head_dim=128, mlp_dim=8960,
      ),
      "7b": dataclasses.replace(
          qwen2, num_layers=28, d_model=3584, num_heads=28, num_kv_heads=4,
          head_dim=128, mlp_dim=18_944, vocab_size=152_064,
          tie_embeddings=False,
      ),
      "32b": dataclasses.replace(
          qwen2, num_layers=64, d_model=5120, num_heads=40, num_kv_heads=8,
          head_dim=128, mlp_dim=27_648, vocab_size=152_064,
          tie_embeddings=False,
      ),
      "qwen3_0.6b": dataclasses.replace(
          qwen3, num_layers=28, d_model=1024, num_heads=16, mlp_dim=3072,
      ),
      "qwen3_4b": dataclasses.replace(
          qwen3, num_layers=36, d_model=2560, num_heads=32, mlp_dim=9728,
      ),
      "r1_1.5b": dataclasses.replace(
          qwen2, num_layers=28, d_model=1536, num_heads=12, num_kv_heads=2,
          head_dim=128, mlp_dim=8960, tie_embeddings=False,
          rope=RopeConfig(theta=1e4),
      ),
      "r1_7b": dataclasses.replace(
          qwen2, num_layers=28, d_model=3584, num_heads=28, num_kv_heads=4,
          head_dim=128, mlp_dim=18_944, vocab_size=152_064,
          tie_embeddings=False, rope=RopeConfig(theta=1e4),
      ),
  }  # fmt: skip


def rehearsed() -> dict[str, ModelConfig]:
  """Shapes that a CPU has done with in seconds, with and without a head."""
  tiny = named()["tiny"].model
  wide = dataclasses.replace(
      tiny, vocab_size=4096, d_model=64, num_heads=4, num_kv_heads=2,
      mlp_dim=256, tie_embeddings=False,
  )  # fmt: skip
  return {"tiny": tiny, "wide": wide}


def expected(case: Case) -> dict[str, Any]:
  """What `protocol.counted` must say of a step's rollout."""
  return {
      "prompt_lengths": [case.prompt_tokens],
      "completion_lengths": [case.new_tokens],
      "tokens": case.tokens,
  }


def write_config(case: Case, folder: pathlib.Path, dtype: str) -> None:
  """Writes the decoder's config.json as Hugging Face has it."""
  length = case.prompt_tokens + case.new_tokens
  theirs = families.config_of(
      dataclasses.replace(case.model, max_positions=length),
      architectures=["Qwen2ForCausalLM"],
      dtype=dtype,
  )
  theirs.save_pretrained(folder)


def write_shape(model: ModelConfig, folder: pathlib.Path) -> None:
  """Writes all of a pretrained model but its weights: to compile a run.

  The tokenizer is of bytes. The elicitation of `think_answer` has as many
  tokens as Qwen2's tokenizer makes of it, six, so that probes cost as much; of
  `thinker` it has 12, two more.

  Args:
    model: the decoder.
    folder: that exists.
  """
  write_config(Case(model, 1, 1, 512, 32_768 - 512), folder, "bfloat16")
  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  core = tokenizers.Tokenizer(
      tokenizers.models.BPE({x: i for i, x in enumerate(letters)}, [])
  )
  core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
      add_prefix_space=False
  )
  core.decoder = tokenizers.decoders.ByteLevel()
  core.add_tokens([
      "</", "think", ">\n", "answer", "**\n", "**", "Final", " Answer", "boxed",
  ])  # fmt: skip
  transformers.PreTrainedTokenizerFast(
      tokenizer_object=core,
      eos_token="<|im_end|>",
      pad_token="<|endoftext|>",
      chat_template=_CHAT,
  ).save_pretrained(folder)


def job_of(case: Case, *, steps: int) -> dict[str, Any]:
  """What every contestant is told of a case.

  Args:
    case: of the job.
    steps: for how many there shall be prompts.

  Returns:
    Values of JSON.
  """
  shape = (steps * case.prompts, case.prompt_tokens)
  rng = np.random.default_rng(_SEED)
  return {
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
      "rehearsal": case.rehearsal,
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
  write_config(case, checkpoint, "float32")
  params = nn.unbox(transformer.init(KeyDomain.WEIGHTS.key(_SEED), case.model))
  weights.save(checkpoint, params, case.model, dtype="float32")
  _tokenizer(case.model.vocab_size).save_pretrained(checkpoint)
  job = job_of(case, steps=steps) | {"checkpoint": str(checkpoint)}
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


def spread(case: Case) -> np.ndarray:
  """int32[b]: lengths from t / 8 to t, in an order of their own."""
  lengths = np.linspace(case.new_tokens // 8, case.new_tokens, case.sequences)
  return np.random.default_rng(_SEED).permutation(lengths.astype(np.int32))


def size(model: ModelConfig) -> int:
  """How many weights a decoder has."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  shapes = jax.eval_shape(lambda key: transformer.init(key, model), key)
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def parameters(checkpoint: pathlib.Path) -> int:
  """How many numbers a checkpoint holds."""
  shapes = weights.Reader(checkpoint).header().values()
  return int(sum(np.prod(shape) for shape, _ in shapes))

"""Costs of a step by arithmetic: operations, and bytes that must be read.

Counts a multiplication and an addition as two operations, and matrix products
only. Leaves out padding, masked scores and repeated encoding of prompts. Counts
every completion at its maximum length.
"""

import dataclasses

from iapo_jax.config.model import ModelConfig
from iapo_jax.config.schema import Config


@dataclasses.dataclass(frozen=True)
class Batch:
  """A model and the batch of a step.

  Attributes:
    prompts: q.
    group: g, samples per prompt.
    prompt_tokens: p, of every prompt.
    new_tokens: t, of every completion.
  """

  model: ModelConfig
  prompts: int
  group: int
  prompt_tokens: int
  new_tokens: int

  @property
  def sequences(self) -> int:
    """b, completions of a step."""
    return self.prompts * self.group

  @property
  def tokens(self) -> int:
    """Tokens of all completions."""
    return self.sequences * self.new_tokens


def batch_of(c: Config) -> Batch:
  """Returns the full batch of a configuration."""
  return Batch(
      c.model,
      c.prompts_per_step,
      c.group_size,
      c.data.max_prompt_tokens,
      c.rollout.max_tokens,
  )


def layer_weights(m: ModelConfig) -> int:
  """Returns the number of weights in the matrices of all layers."""
  width = m.num_heads * m.head_dim
  keys = 2 * m.num_kv_heads * m.head_dim
  layer = m.d_model * (2 * width + keys) + 3 * m.d_model * m.mlp_dim
  return m.num_layers * layer


def attended_flops(m: ModelConfig) -> int:
  """Returns a token's operations per attended token: scores and sums."""
  return 4 * m.num_layers * m.num_heads * m.head_dim


def pass_flops(batch: Batch) -> float:
  """Returns the operations of one forward pass.

  A token costs twice the weights of its layers, twice those of the head where
  it predicts, and 4 · layers · heads · head width for each token it attends to.
  Each prompt is encoded once per group and predicts nothing.
  """
  m, p, t = batch.model, batch.prompt_tokens, batch.new_tokens
  layers, head = layer_weights(m), m.vocab_size * m.d_model
  prompt = 2 * layers * p + attended_flops(m) * p * (p + 1) / 2
  completion = 2 * (layers + head) * t
  completion += attended_flops(m) * (t * p + t * (t + 1) / 2)
  return batch.prompts * prompt + batch.sequences * completion


def step_flops(batch: Batch) -> float:
  """Returns the operations of one step without probes.

  A pass is needed once to generate completions, once for the reference and
  three times for the update (the backward pass costs two forward passes).
  """
  return 5 * pass_flops(batch)


def probe_flops(batch: Batch, stride: int, width: int) -> float:
  """Returns the operations of probes at 0, stride, 2 · stride, ... and the end.

  A probe has `width` tokens and predicts only the token after the last.
  """
  m, p, t = batch.model, batch.prompt_tokens, batch.new_tokens
  at = [*range(0, t, stride), t]
  attended = sum(width * (p + i) + width * (width + 1) / 2 for i in at)
  dense = 2 * layer_weights(m) * width + 2 * m.vocab_size * m.d_model
  each = len(at) * dense + attended_flops(m) * attended
  return batch.sequences * each


def weight_reads(batch: Batch, width: int) -> float:
  """Returns the bytes of weights that decoding reads.

  All weights are read once per token for the whole batch, in numbers of `width`
  bytes.
  """
  m = batch.model
  factors = layer_weights(m) + m.vocab_size * m.d_model
  return width * batch.new_tokens * factors


def cache_reads(batch: Batch, width: int) -> float:
  """Returns the bytes of keys and values that decoding reads.

  Every token reads the prompt's once per group, and those of its completion so
  far, in numbers of `width` bytes.
  """
  m, p, t = batch.model, batch.prompt_tokens, batch.new_tokens
  slots = batch.prompts * t * p + batch.sequences * t * (t + 1) / 2
  return width * 2 * m.num_layers * m.num_kv_heads * m.head_dim * slots

"""What a step needs by arithmetic: operations, and bytes that must be read.

A multiplication and an addition count as two operations, matrix products only.
What a program does beyond that, in padding, masked scores or prompts encoded
again, is not counted. Completions have all their tokens.
"""

import dataclasses

from iapo_jax.config.model import ModelConfig
from iapo_jax.config.schema import Config


@dataclasses.dataclass(frozen=True)
class Batch:
  """A model and the batch of a step.

  Attributes:
    model: the decoder.
    prompts: q.
    group: g, samples of each.
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
    """b, of a step."""
    return self.prompts * self.group

  @property
  def tokens(self) -> int:
    """Of all completions."""
    return self.sequences * self.new_tokens


def batch_of(c: Config) -> Batch:
  """The batch of a configuration, filled up."""
  return Batch(
      c.model,
      c.prompts_per_step,
      c.group_size,
      c.data.max_prompt_tokens,
      c.rollout.max_tokens,
  )


def layer_weights(m: ModelConfig) -> int:
  """Factors of the products in all layers."""
  width = m.num_heads * m.head_dim
  keys = 2 * m.num_kv_heads * m.head_dim
  layer = m.d_model * (2 * width + keys) + 3 * m.d_model * m.mlp_dim
  return m.num_layers * layer


def attended_flops(m: ModelConfig) -> int:
  """Operations of a token for each that it attends to: scores and sums."""
  return 4 * m.num_layers * m.num_heads * m.head_dim


def pass_flops(batch: Batch) -> float:
  """Operations of one forward pass.

  A token costs twice the weights of its layers, twice those of the head where
  it predicts, and 4 · layers · heads · head width for each token it attends to.
  Prompts are needed once a group and predict nothing.

  Args:
    batch: its prompts and completions pass.

  Returns:
    How many.
  """
  m, p, t = batch.model, batch.prompt_tokens, batch.new_tokens
  layers, head = layer_weights(m), m.vocab_size * m.d_model
  prompt = 2 * layers * p + attended_flops(m) * p * (p + 1) / 2
  completion = 2 * (layers + head) * t
  completion += attended_flops(m) * (t * p + t * (t + 1) / 2)
  return batch.prompts * prompt + batch.sequences * completion


def step_flops(batch: Batch) -> float:
  """Operations that one step needs without probes.

  A pass is needed once to generate completions, once for the reference and
  three times for the update (the backward pass costs two forward passes).
  """
  return 5 * pass_flops(batch)


def probe_flops(batch: Batch, stride: int, width: int) -> float:
  """Operations that probing needs.

  Args:
    batch: whose completions are probed, at positions 0, stride, 2 · stride, ...
      and the last.
    stride: between probes.
    width: c, tokens of a probe; only what follows the last is predicted.

  Returns:
    How many.
  """
  m, p, t = batch.model, batch.prompt_tokens, batch.new_tokens
  at = [*range(0, t, stride), t]
  attended = sum(width * (p + i) + width * (width + 1) / 2 for i in at)
  dense = 2 * layer_weights(m) * width + 2 * m.vocab_size * m.d_model
  each = len(at) * dense + attended_flops(m) * attended
  return batch.sequences * each


def weight_reads(batch: Batch, width: int) -> float:
  """Bytes of weights that decoding reads, once a token for the whole batch.

  Args:
    batch: what is sampled.
    width: bytes of a number in the compute dtype.

  Returns:
    How many.
  """
  m = batch.model
  factors = layer_weights(m) + m.vocab_size * m.d_model
  return width * batch.new_tokens * factors


def cache_reads(batch: Batch, width: int) -> float:
  """Bytes of keys and values that decoding reads.

  At every token those of the prompts once a group, and those of the
  completions' tokens so far.

  Args:
    batch: what is sampled.
    width: bytes of a number in the compute dtype.

  Returns:
    How many.
  """
  m, p, t = batch.model, batch.prompt_tokens, batch.new_tokens
  slots = batch.prompts * t * p + batch.sequences * t * (t + 1) / 2
  return width * 2 * m.num_layers * m.num_kv_heads * m.head_dim * slots

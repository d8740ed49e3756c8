"""Early-exit probes: "if you had to answer now", after every token.

A probe is c new tokens (the elicitation) that see the prompt and the
completion up to their position in the rollout's own cache. Many positions are
probed in one forward pass, as extra rows that share one segment row; keys and
values are never copied.
"""

import chex
import jax
import jax.numpy as jnp

from iapo_jax import sharding
from iapo_jax.model_config import ModelConfig
from iapo_jax.models import head, transformer
from iapo_jax.types import (
    Array,
    Context,
    Params,
    TokenStatistics,
)


def count(last: int | Array, stride: int) -> int | Array:
  """How many of 0, stride, 2 · stride, ... and `last` there are up to it."""
  return -(-last // stride) + 1


@jax.named_scope("probes")
def answer_statistics(
    params: Params,
    context: Context,
    first_positions: Array,
    lengths: Array,
    elicitation: Array,
    targets: Array,
    *,
    cfg: ModelConfig,
    temperature: float = 1.0,
    stride: int = 1,
    chunk: int = 16,
    head_chunk: int = 128,
) -> TokenStatistics:
  """The next-token distribution after (prompt, o_1..o_i, elicitation).

  The answer entropy H_i is `.entropy[:, i]`; `.logprob` and `.hit` say how
  well the probe knows the target (usually the gold answer's first token).
  IAPO's early exit, arXiv 2602.19049; exact at every position, and the same
  for every chunk size.

  Args:
    params: weights in the compute dtype.
    context: the prompt and completion segments of a `Rollout`.
    first_positions: int32[b], the position of slot 0 of each sequence.
    lengths: int32[b], the last position to probe (R); 0 probes H_0 only.
    elicitation: int32[c].
    targets: int32[b], the token whose probability is reported.
    cfg: the decoder.
    temperature: of the distribution.
    stride: positions 0, stride, 2 · stride, ... are probed, and the last of
      every sequence; between them entropies and log-probabilities are
      interpolated linearly, and `hit` is the earlier probe's.
    chunk: probes of every sequence in one forward pass. The passes end with
      the longest of `lengths`.
    head_chunk: positions of a pass whose logits exist at one time.

  Returns:
    Statistics [b, t + 1] for i = 0..t; 0 and False beyond `lengths`.
  """
  chex.assert_rank([first_positions, lengths, elicitation, targets], 1)
  slots = context[1].visible.shape[1]
  rows = first_positions.shape[0]
  most = count(slots - 1, stride)
  chunk = min(chunk, most)

  def probe(index: Array, found: TokenStatistics) -> TokenStatistics:
    """Fills probes index · chunk .. (index + 1) · chunk − 1."""
    at = stride * (index * chunk + jnp.arange(chunk))
    at = jnp.minimum(at, lengths[:, None])
    stats = head.token_statistics(
        params,
        _ask(params, context, first_positions, at, elicitation, cfg),
        jnp.broadcast_to(targets[:, None], (rows, chunk)),
        cfg=cfg,
        temperature=temperature,
        chunk=head_chunk,
    )
    return jax.tree.map(
        lambda log, new: jax.lax.dynamic_update_slice(
            log, new, (0, index * chunk)
        ),
        found,
        stats,
    )

  shape = (rows, most + -most % chunk)
  empty = TokenStatistics(
      logprob=jnp.zeros(shape),
      entropy=jnp.zeros(shape),
      hit=jnp.zeros(shape, bool),
  )
  passes = -(-count(jnp.max(lengths), stride) // chunk)
  found = jax.lax.fori_loop(0, passes, probe, empty)
  return _at_every_slot(found, lengths, slots, stride)


def _ask(
    params: Params,
    context: Context,
    first_positions: Array,
    at: Array,
    elicitation: Array,
    cfg: ModelConfig,
) -> Array:
  """[b, m, d]: what follows the elicitation after positions int32[b, m]."""
  prompt, completion = context
  (rows, many), width = at.shape, elicitation.shape[0]
  # Position i sees slots 0..i. Rows are sequence-major.
  seen = jnp.arange(completion.visible.shape[1]) <= at.reshape(-1, 1)
  begin = (first_positions[:, None] + at + 1).reshape(-1, 1)
  tokens = jnp.broadcast_to(elicitation, (rows * many, width))
  hidden, _ = transformer.extend(
      params,
      sharding.constrain(tokens, "batch", "length"),
      begin + jnp.arange(width),
      (prompt, completion.replace(visible=seen)),
      cfg=cfg,
  )
  return hidden[:, -1].reshape(rows, many, -1)


def _at_every_slot(
    found: TokenStatistics, lengths: Array, slots: int, stride: int
) -> TokenStatistics:
  """Statistics [b, slots] from those of every `stride`-th position.

  The last probe of a sequence is at its length, whatever the stride.
  """
  at = jnp.arange(slots)
  before = at // stride
  end = jnp.minimum((before + 1) * stride, lengths[:, None])
  share = (at - before * stride) / jnp.maximum(end - before * stride, 1)
  probed = at <= lengths[:, None]

  def spread(x: Array) -> Array:
    first = x[:, before]
    after = x[:, jnp.minimum(before + 1, x.shape[1] - 1)]
    if x.dtype == bool:
      return jnp.where(share < 1, first, after) & probed
    mixed = jnp.where(share < 1, first + share * (after - first), after)
    return jnp.where(probed, mixed, 0.0)

  return jax.tree.map(spread, found)

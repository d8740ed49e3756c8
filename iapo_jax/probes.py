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
  prompt, completion = context
  slots = completion.visible.shape[1]
  rows, width = first_positions.shape[0], elicitation.shape[0]
  most = -(-(slots - 1) // stride) + 1
  chunk = min(chunk, most)

  def probe(index: Array, found: TokenStatistics) -> TokenStatistics:
    """Fills probes index · chunk .. (index + 1) · chunk − 1."""
    # [b, m]: position i sees slots 0..i. Rows are sequence-major.
    at = stride * (index * chunk + jnp.arange(chunk))
    at = jnp.minimum(at, lengths[:, None])
    seen = jnp.arange(slots) <= at.reshape(-1, 1)
    begin = (first_positions[:, None] + at + 1).reshape(-1, 1)
    tokens = jnp.broadcast_to(elicitation, (rows * chunk, width))
    hidden, _ = transformer.extend(
        params,
        sharding.constrain(tokens, "batch", "length"),
        begin + jnp.arange(width),
        (prompt, completion.replace(visible=seen)),
        cfg=cfg,
    )
    stats = head.token_statistics(
        params,
        hidden[:, -1].reshape(rows, chunk, -1),
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
  passes = -(-jnp.max(lengths) // stride) // chunk + 1
  found = jax.lax.fori_loop(0, passes, probe, empty)
  return _at_every_slot(found, lengths, slots, stride)


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

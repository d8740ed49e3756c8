"""Selects the completions and tokens that carry loss."""

import chex
import jax.numpy as jnp

from iapo_jax.core import draws, masked
from iapo_jax.core.types import Array


def shortest(lengths: Array, *, group_size: int, keep: int) -> Array:
  """Marks the `keep` shortest members of each group; earlier ones win ties.

  GFPO, arXiv 2508.09726. `lengths` int32[b], prompt-major; `keep` in 1 ..
  `group_size`. Returns bool[b].
  """
  chex.assert_rank(lengths, 1)
  grouped = lengths.reshape(-1, group_size)
  order = jnp.argsort(grouped, axis=1, stable=True)
  rank = jnp.argsort(order, axis=1, stable=True)
  return (rank < keep).reshape(-1)


def with_spread(
    rewards: Array, *, group_size: int, kept: Array | None = None
) -> Array:
  """Marks the members of groups whose rewards differ.

  DAPO (arXiv 2503.14476) samples until a batch holds only these. A program of
  fixed shapes masks the others instead. `rewards` fp32[b], prompt-major; `kept`
  bool[b], the members that are compared (None: all). Returns bool[b].
  """
  chex.assert_rank(rewards, 1)
  grouped = rewards.reshape(-1, group_size)
  there = jnp.ones_like(grouped, bool)
  if kept is not None:
    there = kept.reshape(-1, group_size)
  spread = masked.differ(grouped, there)
  return jnp.repeat(spread[:, 0], group_size)


def truncated(
    mask: Array,
    key: Array,
    *,
    always: int,
    short: int,
    probability: float,
) -> Array:
  """Marks the tokens that a stochastic truncation of completions keeps.

  Keeps the first `always` tokens. Keeps each later token with `probability` if
  the completion has fewer than `short` tokens, and drops it otherwise. S-GRPO,
  arXiv 2504.20834.

  `mask` bool[b, t] marks the tokens of each completion, a prefix of its row.
  Draws depend only on `key` and the numbers of row and token. Returns bool[b,
  t], false wherever `mask` is false.
  """
  chex.assert_rank(mask, 2)
  at = jnp.arange(mask.shape[1])
  uniform = draws.uniform(key, *mask.shape)
  lengths = jnp.sum(mask, axis=1, keepdims=True)
  late = (lengths < short) & (uniform < probability)
  return mask & ((at < always) | late)

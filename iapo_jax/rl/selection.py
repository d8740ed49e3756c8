"""Masks of the loss: the completions and tokens that learn."""

import chex
import jax
import jax.numpy as jnp

from iapo_jax.core import draws, masked

Array = jax.Array


def shortest(lengths: Array, *, group_size: int, keep: int) -> Array:
  """The `keep` shortest members of each group, earlier ones first among equals.

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
  """Members of groups whose rewards differ.

  DAPO (arXiv 2503.14476) samples until a batch holds only these; a program of
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
  """Tokens left by a stochastic truncation of completions.

  The first `always` tokens stay. Each later token stays with `probability` in
  completions of fewer than `short` tokens, and goes in longer ones. S-GRPO,
  arXiv 2504.20834.

  `mask` bool[b, t] marks the tokens of each completion, a prefix of its row.
  Draws depend on `key` and the numbers of row and token alone. Returns bool[b,
  t], false wherever `mask` is.
  """
  chex.assert_rank(mask, 2)
  at = jnp.arange(mask.shape[1])
  uniform = draws.uniform(key, *mask.shape)
  lengths = jnp.sum(mask, axis=1, keepdims=True)
  late = (lengths < short) & (uniform < probability)
  return mask & ((at < always) | late)

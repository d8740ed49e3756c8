"""Tokens that the environment writes in the policy's place."""

import dataclasses
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from iapo_jax.core.types import Array


@dataclasses.dataclass(frozen=True)
class Planting:
  """Tokens that the environment writes in the policy's place.

  Attributes:
    rate: probability that a token which can be replaced is.
    after: such a token follows as many tokens of the completion as there are
      entries here, each one of its entry's ids, the oldest first.
    values: it is one of these, and another one of them, any as likely as the
      next, takes its place.
  """

  rate: float
  after: tuple[tuple[int, ...], ...]
  values: tuple[int, ...]


def plant(
    tokens: Array,
    count: Array,
    sampled: Array,
    row_keys: Array,
    rule: Planting,
) -> tuple[Array, Array]:
  """Replaces sampled tokens where the rule says so, at its rate.

  Args:
    tokens: int32[b, t], of which `count` are written.
    count: int32[].
    sampled: int32[b], what the policy would write next.
    row_keys: PRNG keys [b], the same at every count; it is folded in.
    rule: which tokens, how often, and by what.

  Returns:
    int32[b], what is written; bool[b], whether the environment chose it.
  """
  chex.assert_rank([tokens, sampled], [2, 1])
  width, size = len(rule.after), len(rule.values)
  # Nothing stands before the first token.
  padded = jnp.pad(tokens, ((0, 0), (width, 0)), constant_values=-1)
  before = jax.lax.dynamic_slice_in_dim(padded, count, width, axis=1)
  is_value = sampled[:, None] == jnp.asarray(rule.values, jnp.int32)
  keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, count)
  uniforms = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
  planted = follows(before, rule.after) & jnp.any(is_value, axis=1)
  planted &= uniforms[:, 0] < rule.rate
  # 1 .. size - 1 places further on, around the end: any but its own.
  steps = 1 + (uniforms[:, 1] * (size - 1)).astype(jnp.int32)
  place = jnp.argmax(is_value, axis=1) + jnp.minimum(steps, size - 1)
  other = jnp.asarray(rule.values, jnp.int32)[place % size]
  return jnp.where(planted, other, sampled), planted


def follows(before: Array, pattern: Sequence[Sequence[int]]) -> Array:
  """Whether every token is one of those that its entry allows.

  Args:
    before: int32[..., n].
    pattern: n sets of ids.

  Returns:
    bool[...].
  """
  chex.assert_axis_dimension(before, -1, len(pattern))
  matches = [
      jnp.isin(before[..., i], jnp.asarray(ids, jnp.int32))
      for i, ids in enumerate(pattern)
  ]
  return jnp.all(jnp.stack(matches, axis=-1), axis=-1)

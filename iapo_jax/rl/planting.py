"""Plants tokens: the environment writes them in place of the policy."""

import dataclasses
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from iapo_jax.core.types import Array


@dataclasses.dataclass(frozen=True)
class Planting:
  """A rule for tokens that the environment writes in place of the policy.

  Attributes:
    rate: probability that a token that matches the rule is replaced.
    after: the ids allowed at each place before the token, oldest place first.
    values: the ids that can be replaced. The replacement is another of them,
      drawn uniformly.
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
  """Replaces sampled tokens that match the rule, at its rate.

  Args:
    tokens: int32[b, t], of which `count` are written.
    count: int32[].
    sampled: int32[b], the policy's next tokens.
    row_keys: PRNG keys [b], the same at every count; `count` is folded in.
    rule: the rule of the task.

  Returns:
    int32[b], the tokens to write; bool[b], whether the environment chose them.
  """
  chex.assert_rank([tokens, sampled], [2, 1])
  width, size = len(rule.after), len(rule.values)
  # −1 stands for the missing tokens before the first one; it matches no id.
  padded = jnp.pad(tokens, ((0, 0), (width, 0)), constant_values=-1)
  before = jax.lax.dynamic_slice_in_dim(padded, count, width, axis=1)
  is_value = sampled[:, None] == jnp.asarray(rule.values, jnp.int32)
  keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, count)
  uniforms = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
  planted = follows(before, rule.after) & jnp.any(is_value, axis=1)
  planted &= uniforms[:, 0] < rule.rate
  # Moving 1 .. size - 1 places on, cyclically, reaches every other value.
  steps = 1 + (uniforms[:, 1] * (size - 1)).astype(jnp.int32)
  place = jnp.argmax(is_value, axis=1) + jnp.minimum(steps, size - 1)
  other = jnp.asarray(rule.values, jnp.int32)[place % size]
  return jnp.where(planted, other, sampled), planted


def follows(before: Array, pattern: Sequence[Sequence[int]]) -> Array:
  """Returns whether token i of `before` is in set i of `pattern`, for every i.

  `before` int32[..., n] with n sets; returns bool[...].
  """
  chex.assert_axis_dimension(before, -1, len(pattern))
  matches = [
      jnp.isin(before[..., i], jnp.asarray(ids, jnp.int32))
      for i, ids in enumerate(pattern)
  ]
  return jnp.all(jnp.stack(matches, axis=-1), axis=-1)

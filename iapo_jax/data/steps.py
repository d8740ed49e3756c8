"""Counts how often a policy checks right and wrong results of its steps."""

import dataclasses

import jax.numpy as jnp
from flax import struct

from iapo_jax.core.types import Array
from iapo_jax.rl.planting import follows


@dataclasses.dataclass(frozen=True)
class StepTokens:
  """Tokens of the steps `b 5 + 1 = 6` of a sum.

  Attributes:
    names: tokens that name steps.
    numbers: tokens of 0, 1, 2, ...
    equals: the token before a result.
    check: the token that opens a check.
    max_total: the largest result; the smallest is 0.
  """

  names: tuple[int, ...]
  numbers: tuple[int, ...]
  plus: int
  minus: int
  equals: int
  check: int
  max_total: int

  @property
  def before_result(self) -> tuple[tuple[int, ...], ...]:
    """Allowed ids at each place before a result, the oldest place first."""
    signs = (self.plus, self.minus)
    return self.names, self.numbers, signs, self.numbers, (self.equals,)


@struct.dataclass
class CheckCounts:
  """Numbers of wrong and right results, and how many a check follows, int32."""

  wrong: Array
  wrong_checked: Array
  right: Array
  right_checked: Array


def count_checks(
    tokens: Array, lengths: Array, steps: StepTokens
) -> CheckCounts:
  """Counts the steps `b x ± y = z` of completions int32[b, t].

  A result z is right if it is x ± y clipped to 0 .. `max_total`. It does not
  matter whether the policy or the environment wrote it, or what the problem
  asks. Results inside a check do not count, since no step name precedes them. A
  result at the end of its completion has no check.

  Returns:
    Counts [b].
  """
  pattern = steps.before_result
  # before[..., i] is the token len(pattern) - i places before each.
  before = jnp.stack(
      [_shifted(tokens, len(pattern) - i) for i in range(len(pattern))], axis=-1
  )
  live = jnp.arange(tokens.shape[1]) < lengths[:, None]
  stated, is_number = _value(tokens, steps)
  is_result = live & is_number & follows(before, pattern)
  start, _ = _value(before[..., 1], steps)
  operand, _ = _value(before[..., 3], steps)
  sign = jnp.where(before[..., 2] == steps.plus, 1, -1)
  expected = jnp.clip(start + sign * operand, 0, steps.max_total)
  right = is_result & (stated == expected)
  wrong = is_result & (stated != expected)
  checked = _shifted(jnp.where(live, tokens, -1), -1) == steps.check
  return CheckCounts(
      *(jnp.sum(x, axis=1) for x in (wrong, wrong & checked)),
      *(jnp.sum(x, axis=1) for x in (right, right & checked)),
  )


def _shifted(tokens: Array, places: int) -> Array:
  """Returns tokens[:, i - places], or -1 outside the row."""
  padding = (max(places, 0), max(-places, 0))
  padded = jnp.pad(tokens, ((0, 0), padding), constant_values=-1)
  start = max(-places, 0)
  return padded[:, start : start + tokens.shape[1]]


def _value(tokens: Array, steps: StepTokens) -> tuple[Array, Array]:
  """Returns the values of tokens, and whether the tokens are numbers."""
  hits = tokens[..., None] == jnp.asarray(steps.numbers, jnp.int32)
  return jnp.argmax(hits, axis=-1), jnp.any(hits, axis=-1)

"""How often a policy checks the results of its steps, right and wrong ones."""

import dataclasses

import jax.numpy as jnp
from flax import struct

from iapo_jax.core.types import Array
from iapo_jax.rl.planting import follows


@dataclasses.dataclass(frozen=True)
class StepTokens:
  """The tokens that steps `b 5 + 1 = 6` of a sum are made of.

  Attributes:
    names: of steps.
    numbers: of 0, 1, 2, ...
    plus: the sign +.
    minus: the sign -.
    equals: stands before a result.
    check: opens a check.
    max_total: results lie in 0 .. this.
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
    """What the tokens before the result of a step may be, of each."""
    signs = (self.plus, self.minus)
    return self.names, self.numbers, signs, self.numbers, (self.equals,)


@struct.dataclass
class CheckCounts:
  """Results of steps; the arrays have the shape of what was counted over.

  Attributes:
    wrong: int32, stated results that are wrong.
    wrong_checked: int32, those that a check follows at once.
    right: int32, stated results that are right.
    right_checked: int32, those that a check follows at once.
  """

  wrong: Array
  wrong_checked: Array
  right: Array
  right_checked: Array


def count_checks(
    tokens: Array, lengths: Array, steps: StepTokens
) -> CheckCounts:
  """Counts the steps `b x ± y = z` of completions.

  A result z is right where it is x ± y kept within 0 .. `max_total`, whoever
  wrote it and whatever the problem asked. Results inside a check do not count:
  no name of a step stands before them. A result that ends its completion has
  no check.

  Args:
    tokens: int32[b, t].
    lengths: int32[b], of the completions.
    steps: the tokens that steps are made of.

  Returns:
    Counts [b].
  """
  pattern = steps.before_result
  # before[..., i]: the token len(pattern) - i places before each.
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
  """tokens[:, i - places]; -1 where there is none."""
  padding = (max(places, 0), max(-places, 0))
  padded = jnp.pad(tokens, ((0, 0), padding), constant_values=-1)
  start = max(-places, 0)
  return padded[:, start : start + tokens.shape[1]]


def _value(tokens: Array, steps: StepTokens) -> tuple[Array, Array]:
  """The numbers that tokens stand for, and whether they do."""
  hits = tokens[..., None] == jnp.asarray(steps.numbers, jnp.int32)
  return jnp.argmax(hits, axis=-1), jnp.any(hits, axis=-1)

"""How completions end, and how long their parts are.

A completion is reasoning, answer and EOS. The answer is everything after the
reasoning, with the mark that ends the reasoning. A completion may lack any of
the three. Functions take NumPy or JAX arrays, the same arguments everywhere:

  lengths (T)            int[...], in tokens, EOS included
  ended                  bool[...], whether the last token is an EOS
  reasoning_lengths (R)  int[...], in tokens, from `Grades`
  well_formed            bool[...], from `Grades`
"""

import math

from flax import struct

from iapo_jax.core.types import Array

# A warning tells when more than this share of completions is cut off.
MOST_CUT = 0.1
ALL = 1 - 1e-6  # a share; an fp32 mean of ones may round below 1
_HELD = 0.95  # share that the estimated length should hold


@struct.dataclass
class Endings:
  """Three ways to end badly, disjoint: bool[...] each.

  Attributes:
    cut: without an EOS, at the longest length.
    in_reasoning: by an EOS, before the reasoning ended.
    malformed: by an EOS after the reasoning, but not in the requested format.
  """

  cut: Array
  in_reasoning: Array
  malformed: Array


def answer_lengths(
    lengths: Array, ended: Array, reasoning_lengths: Array
) -> Array:
  """Returns T − EOS − R, the number of tokens of each answer."""
  return lengths - ended - reasoning_lengths


def of(
    lengths: Array,
    ended: Array,
    reasoning_lengths: Array,
    well_formed: Array,
) -> Endings:
  """Tells how each completion ends.

  Where the reasoning never ends, R counts all tokens but the EOS: only there an
  answer has no tokens.
  """
  closed = answer_lengths(lengths, ended, reasoning_lengths) > 0
  return Endings(
      cut=~ended,
      in_reasoning=ended & ~closed,
      malformed=ended & closed & ~well_formed,
  )


def late(
    lengths: Array, ended: Array, max_tokens: int
) -> tuple[Array, Array]:
  """Returns what `held_length` needs to know of the last half of T_max.

  These are the share of completions that end there, and the mean number of
  tokens that a completion has there.
  """
  half = max_tokens // 2
  return (ended & (lengths > half)).mean(), (lengths - half).clip(0).mean()


def held_length(
    cut: float, late_ends: float, late_tokens: float, max_tokens: int
) -> float | None:
  """Estimates the length that would hold 95 % of the completions, in tokens.

    T_max + ln(cut / 0.05) / λ,  λ = late_ends / late_tokens

  Nobody saw how the cut completions go on. The estimate assumes that they end
  at the constant rate λ per token at which completions end in the last half of
  T_max; λ is the maximum-likelihood estimate from lengths censored at T_max.

  Args:
    cut: share of completions without an EOS, above 0.05.
    late_ends: from `late`.
    late_tokens: from `late`.
    max_tokens: T_max.

  Returns:
    The length, or None if no completion ends in the last half.
  """
  if not late_ends:
    return None
  return max_tokens + math.log(cut / (1 - _HELD)) * late_tokens / late_ends


def describe_cut(
    cut: float, late_ends: float, late_tokens: float, max_tokens: int
) -> str:
  """Describes the completions that are cut off; arguments of `held_length`."""
  who = "every completion is"
  if cut <= ALL:
    who = f"{cut:.0%} of the completions are"
  text = f"{who} cut off at rollout.max_tokens = {max_tokens} without an EOS; "
  length = held_length(cut, late_ends, late_tokens, max_tokens)
  last = max_tokens - max_tokens // 2
  if length is None:
    return text + (
        f"the length that would hold {_HELD:.0%} cannot be estimated, since"
        f" none ends in the last {last} tokens"
    )
  return text + (
      f"about {math.ceil(length):,} tokens would hold {_HELD:.0%}, if"
      f" completions go on ending as often as in the last {last} tokens"
  )

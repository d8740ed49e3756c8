"""Teaches early answers while the policy is trained.

Probes are informative because a policy has learned to answer early. As
reinforcement learning changes the policy, its elicited answers drift from the
answers that its completions end in. So completions are cut at random, and each
is followed by the answer that it ended in. A policy that has learned these
distributions has consistent probes: π_t(a) is the probability that its
completion ends in a.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from flax import struct

from iapo_jax.core import draws
from iapo_jax.core.types import Array, Grades


@struct.dataclass
class EarlyAnswers:
  """Completions cut at random, each followed by the answer that it ended in.

  Attributes:
    tokens: int32[b, t]: the beginning of a completion, the elicitation, the
      answer.
    lengths: int32[b], at least 1.
    learned: bool[b, t], the tokens of answers. A row without an answer, or
      without room for it, has none.
  """

  tokens: Array
  lengths: Array
  learned: Array


def cut(
    tokens: Array, grades: Grades, elicitation: Sequence[int], key: Array
) -> EarlyAnswers:
  """Cuts completions int32[b, t] after 0 .. R tokens, uniformly.

  The cut of a row depends only on `key`, the number of the row and R.
  """
  answers, answer_lengths = grades.answers, grades.answer_lengths
  reasoning_lengths = grades.reasoning_lengths
  chex.assert_rank([tokens, answers], 2)
  chex.assert_rank([reasoning_lengths, answer_lengths], 1)
  elicitation = jnp.asarray(elicitation, jnp.int32)
  rows, width = tokens.shape
  uniform = jax.vmap(jax.random.uniform)(draws.row_keys(key, rows))
  at = jnp.floor(uniform * (reasoning_lengths + 1)).astype(jnp.int32)
  at = jnp.minimum(at, reasoning_lengths)[:, None]
  begin = at + elicitation.shape[0]
  end = begin + answer_lengths[:, None]
  slots = jnp.broadcast_to(jnp.arange(width), tokens.shape)
  asked = elicitation[jnp.clip(slots - at, 0, elicitation.shape[0] - 1)]
  place = jnp.clip(slots - begin, 0, answers.shape[1] - 1)
  answered = jnp.take_along_axis(answers, place, axis=1)
  text = jnp.where(slots < begin, asked, answered)
  fits = (end <= width) & (answer_lengths[:, None] > 0)
  return EarlyAnswers(
      tokens=jnp.where(slots < at, tokens, text),
      lengths=jnp.where(fits, end, 1)[:, 0],
      learned=fits & (slots >= begin) & (slots < end),
  )

"""Grades token ids inside the compiled step.

The tokenizer must have one token for each tag, must have no other token that
spells part of a tag, and must join tokens by single blanks. The rules of
`rewards.text` then give the same results on ids. An answer is right if it has
the tokens of the gold answer.
"""

import dataclasses
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from iapo_jax.config.formats import FormatConfig
from iapo_jax.core.errors import fail
from iapo_jax.core.types import Array, Grades, Prompts, Rollout
from iapo_jax.rewards.reward import Grader


@dataclasses.dataclass(frozen=True)
class Tags:
  """Token ids of the four tags, in the order of `FormatConfig.marks`."""

  think_open: int
  think_close: int
  answer_open: int
  answer_close: int


def tags_of(tokenizer: Any, form: FormatConfig) -> Tags:
  """Returns the ids of a format's tags in a Hugging Face tokenizer.

  Raises:
    ConfigError: if a tag is not one token, another token could spell part of
      a tag, the tokenizer does not join tokens by single blanks, or it has no
      unknown token.
  """
  ids = []
  for name in form.marks:
    encoded = tokenizer.encode(name, add_special_tokens=False)
    if len(encoded) != 1 or tokenizer.decode(encoded) != name:
      _refuse(f"the tokenizer must encode {name!r} as one token, not {encoded}")
    ids.append(encoded[0])
  vocabulary = range(len(tokenizer))
  words = [tokenizer.decode([i]) for i in vocabulary]
  special = set(ids) | set(tokenizer.all_special_ids)
  for i, word in enumerate(words):
    spells = "<" in word or ">" in word or word != word.strip()
    if spells and i not in special:
      _refuse(f"token {i} = {word!r} could spell part of a tag or white space")
  if tokenizer.decode(list(vocabulary)) != " ".join(words) or "" in words:
    _refuse("the tokenizer must join its tokens by single blanks")
  if tokenizer.unk_token_id is None:
    _refuse("the tokenizer must have an unknown token")
  return Tags(*ids)


def _refuse(rule: str) -> NoReturn:
  fail("reward.grader", "token_match", f"{rule}; use host")


def make_grader(tags: Tags, answer_tokens: int = 0) -> Grader:
  """Makes a grader that runs in the compiled step.

  Args:
    tags: from `tags_of`.
    answer_tokens: a, how many tokens of each completion's answer the grades
      hold; 0 for none.
  """

  def grade(rollout: Rollout, prompts: Prompts) -> Grades:
    group = rollout.tokens.shape[0] // prompts.gold.shape[0]
    return grade_tokens(
        rollout.tokens,
        rollout.lengths - rollout.ended,
        jnp.repeat(prompts.gold, group, axis=0),
        jnp.repeat(prompts.gold_lengths, group, axis=0),
        tags=tags,
        answer_tokens=answer_tokens,
    )

  return grade


def grade_tokens(
    tokens: Array,
    lengths: Array,
    gold: Array,
    gold_lengths: Array,
    *,
    tags: Tags,
    answer_tokens: int = 0,
) -> Grades:
  """Applies the rules of `rewards.text` to ids.

  Args:
    tokens: int32[b, t].
    lengths: int32[b], the EOS not counted.
    gold: int32[b, a].
    gold_lengths: int32[b].
    tags: from `tags_of`.
    answer_tokens: how many tokens of each completion's answer to return; 0 for
      none.
  """
  slots = jnp.arange(tokens.shape[1])
  live = slots < lengths[:, None]

  def where_is(tag: int) -> tuple[Array, Array, Array]:
    """Returns hits bool[b, t], and count and first index int32[b] (or t)."""
    hits = live & (tokens == tag)
    first = jnp.min(jnp.where(hits, slots, tokens.shape[1]), axis=1)
    return hits, jnp.sum(hits, axis=1), first

  _, strays, _ = where_is(tags.think_open)
  _, think_count, think_at = where_is(tags.think_close)
  opens, open_count, open_at = where_is(tags.answer_open)
  closes, close_count, close_at = where_is(tags.answer_close)
  well_formed = (
      (strays == 0)
      & (think_count == 1)
      & (open_count == 1)
      & (close_count == 1)
      & (think_at >= 1)
      & (open_at == think_at + 1)
      & (close_at >= open_at + 2)
      & (close_at == lengths - 1)
  )
  start, end = _last_answer(opens, closes)

  def answers(width: int) -> Array:
    """Returns the `width` tokens from the start of each answer, [b, width]."""
    index = start[:, None] + jnp.arange(width)
    return jnp.take_along_axis(
        tokens, jnp.clip(index, 0, tokens.shape[1] - 1), axis=1
    )

  compared = jnp.arange(gold.shape[1]) < gold_lengths[:, None]
  correct = (end - start == gold_lengths) & jnp.all(
      jnp.where(compared, answers(gold.shape[1]) == gold, True), axis=1
  )
  own = None, None
  if answer_tokens:
    own = answers(answer_tokens), jnp.clip(end - start, 0, answer_tokens)
  return Grades(
      correct,
      well_formed,
      jnp.minimum(think_at, lengths),
      jnp.zeros_like(correct),
      *own,
  )


def _last_answer(opens: Array, closes: Array) -> tuple[Array, Array]:
  """Returns start and end of the last complete answer, int32[b] each.

  A closing tag completes an answer if the nearest answer tag before it is an
  opening one. Without an answer, start is -1 and end is -2. `opens` and
  `closes`, bool[b, t], mark the tags.
  """
  slots = jnp.arange(opens.shape[1])
  at_open = jnp.where(opens, slots, -1)
  at_close = jnp.where(closes, slots, -1)
  last_open = jax.lax.cummax(at_open, axis=1)
  # Index of the nearest closing tag strictly before each slot.
  earlier = jnp.pad(at_close, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
  last_close = jax.lax.cummax(earlier, axis=1)
  complete = closes & (last_open > last_close)
  end = jnp.max(jnp.where(complete, slots, -2), axis=1)
  found = jnp.clip(end, 0)[:, None]
  start = jnp.take_along_axis(last_open, found, axis=1)[:, 0] + 1
  return jnp.where(end >= 0, start, -1), end

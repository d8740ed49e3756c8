"""Grading decoded text on the host, from inside the compiled step."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from iapo_jax import sharding
from iapo_jax.data import tokenizer as tokenizer_lib
from iapo_jax.rewards import grading, text
from iapo_jax.rewards.grading import Graded
from iapo_jax.rewards.reward import Grader
from iapo_jax.types import Grades, Prompts, Rollout

# Completions and their gold answers, as many of each.
Judge = Callable[[list[str], list[str]], list[Graded]]
by_meaning: Judge = functools.partial(grading.grade, need_tags=True)


def make_grader(
    tokenizer: Any, mesh: Mesh, answer_tokens: int = 0
) -> Grader:
  """A grader that calls back to the host, where answers count by meaning.

  The callback runs under `shard_map` over the data axes: every process decodes
  and grades the rows of its own devices, and no row leaves them. Of devices
  along the tensor axis, which all have the same rows, the first one asks.

  Args:
    tokenizer: a Hugging Face tokenizer.
    mesh: of the step.
    answer_tokens: a, of each completion's own answer that are given, too.

  Returns:
    The grader.
  """

  def call(rollout: Rollout, prompts: Prompts) -> Grades:
    rows = jax.ShapeDtypeStruct(rollout.lengths.shape, jnp.bool_)
    counts = jax.ShapeDtypeStruct(rollout.lengths.shape, jnp.int32)
    expected = (rows, rows, counts, rows)
    if answer_tokens:
      wide = (*rollout.lengths.shape, answer_tokens)
      expected += (jax.ShapeDtypeStruct(wide, jnp.int32), counts)

    def ask() -> tuple[jax.Array, ...]:
      return jax.pure_callback(
          on_host,
          expected,
          _blocks(rollout.tokens),
          rollout.lengths,
          rollout.ended,
          prompts.gold,
          prompts.gold_lengths,
      )

    def on_host(blocks: list[Any], *rest: Any) -> tuple[np.ndarray, ...]:
      tokens = np.concatenate([np.asarray(block) for block in blocks])
      rest = map(np.asarray, rest)
      return grade_tokens(
          tokenizer, tokens, *rest, answer_tokens=answer_tokens
      )

    if mesh.shape["tensor"] == 1:
      return Grades(*ask())
    columns = jax.lax.cond(
        jax.lax.axis_index("tensor") == 0,
        ask,
        lambda: tuple(jnp.zeros(x.shape, x.dtype) for x in expected),
    )
    told = [jax.lax.psum(x.astype(jnp.int32), "tensor") for x in columns]
    return Grades(*(
        x.astype(column.dtype) for x, column in zip(told, expected, strict=True)
    ))

  spec = P(sharding.BATCH_AXES)

  def grade(rollout: Rollout, prompts: Prompts) -> Grades:
    grading.start()  # now, as the program is traced: they come up meanwhile
    # The cache stays where it is; only tokens travel.
    light = rollout.replace(context=())
    sharded = jax.shard_map(
        call, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    return sharded(light, prompts)

  return grade


def _blocks(tokens: jax.Array) -> list[jax.Array]:
  """Rows in blocks of at most 64 KiB (a longer row is a block of its own).

  With several CPU devices a callback that reads a larger argument can wait for
  ever: JAX 0.10 copies those on the thread that the callback occupies.
  """
  rows = max(1, 2**16 // (tokens.dtype.itemsize * tokens.shape[1]))
  return [
      tokens[start : start + rows] for start in range(0, len(tokens), rows)
  ]


def grade_tokens(
    tokenizer: Any,
    tokens: np.ndarray,
    lengths: np.ndarray,
    ended: np.ndarray,
    gold: np.ndarray,
    gold_lengths: np.ndarray,
    judge: Judge = by_meaning,
    answer_tokens: int = 0,
) -> tuple[np.ndarray, ...]:
  """Grades completions by the rules of `rewards.text`.

  Args:
    tokenizer: a Hugging Face tokenizer.
    tokens: int32[b, t].
    lengths: int32[b], EOS included.
    ended: bool[b], whether the last token is an EOS.
    gold: int32[q, a].
    gold_lengths: int32[q].
    judge: says which answers are right.
    answer_tokens: of own answers, which become tokens as gold ones do; 0
      gives none.

  Returns:
    The columns of `Grades`: correct bool[b], well_formed bool[b], reasoning
    lengths int32[b], timed_out bool[b]; and if asked for answers int32[b, a]
    and their lengths int32[b].
  """
  decode = functools.partial(tokenizer_lib.decode, tokenizer)
  golds = [
      decode(row[:n].tolist()).strip()
      for row, n in zip(gold, gold_lengths, strict=True)
  ]
  group = len(tokens) // len(golds)
  rows = [
      row[:n].tolist()
      for row, n in zip(tokens, lengths - ended, strict=True)
  ]
  completions = [decode(ids) for ids in rows]
  graded = judge(completions, [g for g in golds for _ in range(group)])
  columns = (
      np.array([g.correct for g in graded], bool),
      np.array([text.is_well_formed(c) for c in completions], bool),
      np.array([text.reasoning_length(ids, decode) for ids in rows], np.int32),
      np.array([g.timed_out for g in graded], bool),
  )
  return columns + _own(tokenizer, completions, answer_tokens)


def _own(
    tokenizer: Any, completions: list[str], answer_tokens: int
) -> tuple[np.ndarray, ...]:
  """The first tokens of each completion's answer, and how many."""
  if not answer_tokens:
    return ()
  answers = np.zeros((len(completions), answer_tokens), np.int32)
  lengths = np.zeros(len(completions), np.int32)
  for row, completion in enumerate(completions):
    if found := text.find_answer(completion, need_tags=True):
      ids = tokenizer_lib.encode(tokenizer, found.text)[:answer_tokens]
      answers[row, : len(ids)], lengths[row] = ids, len(ids)
  return answers, lengths

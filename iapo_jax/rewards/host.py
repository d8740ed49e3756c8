"""Grading decoded text on the host, from inside the compiled step."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from iapo_jax.core import sharding
from iapo_jax.core.types import Grades, Prompts, Rollout
from iapo_jax.hf import tokenizer as tokenizer_lib
from iapo_jax.rewards import grading, text
from iapo_jax.rewards.grading import Graded
from iapo_jax.rewards.reward import Grader, Reward, TextReward

# Completions and their gold answers, as many of each.
Judge = Callable[[list[str], list[str]], list[Graded]]
by_meaning: Judge = functools.partial(grading.grade, need_tags=True)


def make_grader(
    tokenizer: Any, mesh: Mesh, answer_tokens: int = 0
) -> Grader:
  """A grader that calls back to the host, where answers count by meaning.

  Args:
    tokenizer: a Hugging Face tokenizer.
    mesh: of the step.
    answer_tokens: a, of each completion's own answer that are given, too.

  Returns:
    The grader.
  """
  columns = [
      ((), dtype) for dtype in (jnp.bool_, jnp.bool_, jnp.int32, jnp.bool_)
  ]
  if answer_tokens:
    columns += [((answer_tokens,), jnp.int32), ((), jnp.int32)]

  def on_host(*columns: np.ndarray) -> tuple[np.ndarray, ...]:
    return grade_tokens(tokenizer, *columns, answer_tokens=answer_tokens)

  ask = _caller(mesh, on_host, columns)

  def grade(rollout: Rollout, prompts: Prompts) -> Grades:
    grading.start()  # now, as the program is traced: they come up meanwhile
    return Grades(*ask(rollout, prompts))

  return grade


def make_reward(
    function: TextReward, tokenizer: Any, mesh: Mesh
) -> Reward:
  """A reward of texts as one of the compiled step, which calls the host.

  Args:
    function: of completions and gold answers, as many of each.
    tokenizer: a Hugging Face tokenizer.
    mesh: of the step.

  Returns:
    The reward; its program ends in an error where the function raises one, or
    gives another number of rewards.
  """

  def on_host(*columns: np.ndarray) -> tuple[np.ndarray]:
    completions, golds = _texts(tokenizer, *columns)[1:]
    found = np.asarray(function(completions, golds), np.float32)
    if found.shape != (len(completions),):
      raise ValueError(
          f"text_reward: must give {len(completions)} numbers, as many as there"
          f" are completions; it gave an array of shape {found.shape}"
      )
    return (found,)

  ask = _caller(mesh, on_host, [((), jnp.float32)])

  def reward(rollout: Rollout, grades: Grades, prompts: Prompts) -> jax.Array:
    del grades  # of texts alone
    return ask(rollout, prompts)[0]

  return reward


def _caller(
    mesh: Mesh,
    on_host: Callable[..., tuple[np.ndarray, ...]],
    columns: Sequence[tuple[tuple[int, ...], Any]],
) -> Callable[[Rollout, Prompts], tuple[jax.Array, ...]]:
  """Calls the host about completions.

  The callback runs under `shard_map` over the data axes: every process decodes
  and judges the rows of its own devices, and no row leaves them. Of devices
  along the tensor axis, which all have the same rows, the first one asks.

  Args:
    mesh: of the step.
    on_host: of tokens, lengths, ended, gold and gold lengths; it gives an array
      for each column.
    columns: shape of a row, and dtype.

  Returns:
    A function of the compiled step.
  """

  def call(rollout: Rollout, prompts: Prompts) -> tuple[jax.Array, ...]:
    rows = rollout.lengths.shape
    expected = tuple(
        jax.ShapeDtypeStruct((*rows, *shape), dtype) for shape, dtype in columns
    )

    def ask() -> tuple[jax.Array, ...]:
      return jax.pure_callback(
          whole,
          expected,
          _blocks(rollout.tokens),
          rollout.lengths,
          rollout.ended,
          prompts.gold,
          prompts.gold_lengths,
      )

    def whole(blocks: list[Any], *rest: Any) -> tuple[np.ndarray, ...]:
      tokens = np.concatenate([np.asarray(block) for block in blocks])
      return on_host(tokens, *map(np.asarray, rest))

    if mesh.shape["tensor"] == 1:
      return ask()
    found = jax.lax.cond(
        jax.lax.axis_index("tensor") == 0,
        ask,
        lambda: tuple(jnp.zeros(x.shape, x.dtype) for x in expected),
    )
    return tuple(_from_first(x) for x in found)

  spec = P(sharding.BATCH_AXES)

  def run(rollout: Rollout, prompts: Prompts) -> tuple[jax.Array, ...]:
    # The cache stays where it is; only tokens travel.
    light = rollout.replace(context=())
    return jax.shard_map(
        call, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )(light, prompts)

  return run


def _from_first(x: jax.Array) -> jax.Array:
  """The first device's array along the tensor axis; the others have zeros."""
  if x.dtype != jnp.bool_:
    return jax.lax.psum(x, "tensor")
  return jax.lax.psum(x.astype(jnp.int32), "tensor").astype(jnp.bool_)


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
  rows, completions, golds = _texts(
      tokenizer, tokens, lengths, ended, gold, gold_lengths
  )
  graded = judge(completions, golds)
  columns = (
      np.array([g.correct for g in graded], bool),
      np.array([text.is_well_formed(c) for c in completions], bool),
      np.array([text.reasoning_length(ids, decode) for ids in rows], np.int32),
      np.array([g.timed_out for g in graded], bool),
  )
  return columns + _own(tokenizer, completions, answer_tokens)


def _texts(
    tokenizer: Any,
    tokens: np.ndarray,
    lengths: np.ndarray,
    ended: np.ndarray,
    gold: np.ndarray,
    gold_lengths: np.ndarray,
) -> tuple[list[list[int]], list[str], list[str]]:
  """Of b completions the ids and texts, without EOS, and the gold answers."""
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
  return rows, completions, [g for g in golds for _ in range(group)]


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

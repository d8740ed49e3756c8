"""Graders and rewards that decode text on the host; the step calls them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from iapo_jax.config.formats import FormatConfig
from iapo_jax.core import sharding
from iapo_jax.core.types import Grades, Prompts, Rollout
from iapo_jax.hf import tokenizer as tokenizer_lib
from iapo_jax.rewards import grading, text
from iapo_jax.rewards.completions import Asked, Texts
from iapo_jax.rewards.reward import Grader
from iapo_jax.rewards.user_functions import Call, Judge, rewards_of

# (rollout, prompts) -> rewards fp32[b]; of several, also each without weight
Rewarder = Callable[[Rollout, Prompts], tuple[jax.Array, dict[str, jax.Array]]]


def make_grader(
    tokenizer: Any,
    mesh: Mesh,
    form: FormatConfig,
    answer_tokens: int = 0,
    *,
    asked: Sequence[Asked] = (),
    judge: Judge | None = None,
    start: Callable[[], None] | None = None,
) -> Grader:
  """Makes a grader that calls the host and compares answers by meaning.

  Args:
    tokenizer: a Hugging Face tokenizer.
    mesh: the mesh of the step.
    form: the format that completions were asked for.
    answer_tokens: a, how many tokens of each completion's answer the grades
      hold; 0 for none.
    asked: all problems of the run, in the order of `Prompts.rows`; needed by
      a judge that reads prompts or rows.
    judge: decides which completions are right, and may give partial scores;
      None is `grading.judge`.
    start: starts the processes of the judge, without waiting for them.
  """
  columns = [
      ((), dtype) for dtype in (jnp.bool_, jnp.bool_, jnp.int32, jnp.bool_)
  ]
  names = ["correct", "well_formed", "reasoning_lengths", "timed_out"]
  if form.lenient:
    columns.append(((), jnp.bool_))
    names.append("guessed")
  if judge:
    columns.append(((), jnp.float32))
    names.append("scores")
  if answer_tokens:
    columns += [((answer_tokens,), jnp.int32), ((), jnp.int32)]
    names += ["answers", "answer_lengths"]

  on_host = functools.partial(
      grade_tokens,
      tokenizer,
      form=form,
      answer_tokens=answer_tokens,
      asked=asked,
      judge=judge,
  )
  ask = _caller(mesh, on_host, columns)

  def grade(rollout: Rollout, prompts: Prompts) -> Grades:
    # While tracing, so that processes are up when needed.
    if begin := (start if judge else grading.start):
      begin()
    return Grades(**dict(zip(names, ask(rollout, prompts), strict=True)))

  return grade


def make_rewarder(
    calls: Sequence[tuple[str, Call]],
    weights: Sequence[float],
    tokenizer: Any,
    mesh: Mesh,
    asked: Sequence[Asked] = (),
) -> Rewarder:
  """Turns rewards of texts into one of the compiled step, their weighted sum.

  The step fails if a function raises, or does not return one finite number per
  completion.

  Args:
    calls: names and functions.
    weights: one per function.
    tokenizer: a Hugging Face tokenizer.
    mesh: the mesh of the step.
    asked: all problems of the run, in the order of `Prompts.rows`.
  """

  def on_host(*columns: np.ndarray) -> tuple[np.ndarray, ...]:
    given = _texts(tokenizer, asked, *columns)[1]
    return tuple(rewards_of(call, x, given) for x, call in calls)

  ask = _caller(mesh, on_host, [((), jnp.float32)] * len(calls))

  def reward(
      rollout: Rollout, prompts: Prompts
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    found = ask(rollout, prompts)
    total = sum(w * x for w, x in zip(weights, found, strict=True))
    return total, {
        name: x for (name, _), x in zip(calls, found, strict=True) if calls[1:]
    }

  return reward


def _caller(
    mesh: Mesh,
    on_host: Callable[..., tuple[np.ndarray, ...]],
    columns: Sequence[tuple[tuple[int, ...], Any]],
) -> Callable[[Rollout, Prompts], tuple[jax.Array, ...]]:
  """Makes a function of the compiled step that calls the host.

  The callback runs under `shard_map` over the data axes: each process decodes
  and grades only the rows of its devices. Devices along the tensor axis hold
  the same rows, so only the first one calls.

  Args:
    mesh: the mesh of the step.
    on_host: maps tokens, lengths, ended, gold, gold lengths and rows to one
      array for each column.
    columns: shape of a row and dtype of each column.
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
          prompts.rows,
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
    # Only tokens are sent to the host, not the cache.
    light = rollout.replace(context=())
    return jax.shard_map(
        call, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )(light, prompts)

  return run


def _from_first(x: jax.Array) -> jax.Array:
  """Copies the first tensor device's array to the others, which hold zeros."""
  if x.dtype != jnp.bool_:
    return jax.lax.psum(x, "tensor")
  return jax.lax.psum(x.astype(jnp.int32), "tensor").astype(jnp.bool_)


def _blocks(tokens: jax.Array) -> list[jax.Array]:
  """Cuts rows into blocks of at most 64 KiB; a longer row makes one block.

  With several CPU devices a callback that reads a larger argument can hang:
  JAX 0.10 copies it on the thread that the callback occupies.
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
    rows: np.ndarray | None = None,
    *,
    form: FormatConfig,
    answer_tokens: int = 0,
    asked: Sequence[Asked] = (),
    judge: Judge | None = None,
) -> tuple[np.ndarray, ...]:
  """Grades completions by the rules of `rewards.text`.

  Args:
    tokenizer: a Hugging Face tokenizer.
    tokens: int32[b, t].
    lengths: int32[b], EOS included.
    ended: bool[b], whether the last token is an EOS.
    gold: int32[q, a].
    gold_lengths: int32[q].
    rows: int32[q], indices into `asked`; None if the judge reads neither.
    form: the format that completions were asked for.
    answer_tokens: a, how many tokens of each completion's answer to return; 0
      for none.
    asked: see `make_grader`.
    judge: see `make_grader`.

  Returns:
    The columns of `Grades`: correct bool[b], well_formed bool[b], reasoning
    lengths int32[b], timed_out bool[b]; with a lenient format guessed bool[b];
    with a judge scores fp32[b]; with `answer_tokens` answers int32[b, a] and
    their lengths int32[b].
  """
  decode = functools.partial(tokenizer_lib.decode, tokenizer)
  completions, given = _texts(
      tokenizer, asked, tokens, lengths, ended, gold, gold_lengths, rows
  )
  graded = judge(given) if judge else grading.judge(given, form=form)
  reasoning = [
      text.reasoning_length(ids, decode, form) for ids in completions
  ]
  columns = [
      np.array([g.correct for g in graded], bool),
      np.array([text.is_well_formed(x, form) for x in given.texts], bool),
      np.array(reasoning, np.int32),
      np.array([g.timed_out for g in graded], bool),
  ]
  if form.lenient:
    columns.append(np.array([g.guessed for g in graded], bool))
  if judge:
    scores = [g.correct if g.score is None else g.score for g in graded]
    columns.append(np.array(scores, np.float32))
  if not answer_tokens:
    return tuple(columns)
  answers = np.zeros((len(graded), answer_tokens), np.int32)
  answer_lengths = np.zeros(len(graded), np.int32)
  for row, g in enumerate(graded):
    if g.answer is not None:
      ids = tokenizer_lib.encode(tokenizer, g.answer)[:answer_tokens]
      answers[row, : len(ids)], answer_lengths[row] = ids, len(ids)
  return (*columns, answers, answer_lengths)


def _texts(
    tokenizer: Any,
    asked: Sequence[Asked],
    tokens: np.ndarray,
    lengths: np.ndarray,
    ended: np.ndarray,
    gold: np.ndarray,
    gold_lengths: np.ndarray,
    rows: np.ndarray | None,
) -> tuple[list[list[int]], Texts]:
  """Returns b completions, without EOS, as ids and in words.

  Without `asked` or `rows`, the texts have neither prompts nor rows.
  """
  decode = functools.partial(tokenizer_lib.decode, tokenizer)
  golds = [
      decode(row[:n].tolist()).strip()
      for row, n in zip(gold, gold_lengths, strict=True)
  ]
  group = len(tokens) // len(golds)
  completions = [
      row[:n].tolist()
      for row, n in zip(tokens, lengths - ended, strict=True)
  ]
  problems: list[Asked] = []
  if asked and rows is not None:
    problems = [asked[row] for row in rows for _ in range(group)]
  return completions, Texts(
      texts=[decode(ids) for ids in completions],
      golds=[gold for gold in golds for _ in range(group)],
      prompts=[problem.prompt for problem in problems],
      rows=[problem.columns for problem in problems],
  )

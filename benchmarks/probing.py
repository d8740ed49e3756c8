"""Ways to get the entropy of the answer after every token of a completion.

All of them are given the rollout's keys and values and all answer with the
same fp32[b, t + 1]. A method may be several programs; each is compiled ahead.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import measuring
import numpy as np
from flax import linen as nn

from iapo_jax.config.model import ModelConfig
from iapo_jax.config.schema import Config
from iapo_jax.core.types import Array, Context, KVSegment, Params, Prompts
from iapo_jax.models import head, transformer
from iapo_jax.rl import policy, probes

# As many positions as the authors' code copies keys and values for at a time.
_GROUP = 16


@dataclasses.dataclass(frozen=True)
class Batch:
  """A model and a rollout of it.

  Attributes:
    model: the decoder.
    group_size: g, samples of each prompt.
    params: its weights.
    prompts: q prompts.
    tokens: int32[b, t], completions of full length.
    context: what the rollout left, prompts and completions.
    elicitation: int32[c].
  """

  model: ModelConfig
  group_size: int
  params: Params
  prompts: Prompts
  tokens: Array
  context: Context
  elicitation: Array

  @property
  def starts(self) -> Array:
    """int32[b], the position of slot 0 of every sequence."""
    return policy.starts(self.prompts, self.group_size).positions

  @property
  def full(self) -> np.ndarray:
    """int32[b], the length of every completion."""
    rows, length = self.tokens.shape
    return np.full(rows, length, np.int32)


@dataclasses.dataclass(frozen=True)
class Method:
  """Compiled programs with their inputs.

  Attributes:
    programs: run one after the other.
    inputs: of each.
    repeats: how often all of it is done.
  """

  programs: Sequence[jax.stages.Compiled]
  inputs: Sequence[tuple[Any, ...]]
  repeats: int = 1

  def results(self) -> list[Array]:
    """What the programs return."""
    found = []
    for _ in range(self.repeats):
      for program, inputs in zip(self.programs, self.inputs, strict=True):
        found.append(program(*inputs))
    return found

  def entropies(self) -> np.ndarray:
    """fp32[b, t + 1], of programs that return neighbouring positions."""
    return np.concatenate([np.asarray(x) for x in self.results()], axis=1)

  def seconds(self) -> float:
    """Of doing it all, once."""
    return measuring.stopwatch(self.results)

  @property
  def temp_bytes(self) -> int:
    """Memory that the largest program needs for itself."""
    return max(
        program.memory_analysis().temp_size_in_bytes
        for program in self.programs
    )


def make_batch(
    model: ModelConfig,
    *,
    sequences: int,
    group_size: int,
    prompt_tokens: int,
    new_tokens: int,
    elicitation_tokens: int,
) -> Batch:
  """A fresh model, random prompts and random completions of full length."""
  weights, words = jax.random.split(jax.random.key(0))
  params = nn.unbox(jax.jit(transformer.init, static_argnums=1)(weights, model))
  rows = sequences // group_size
  sizes = rows * prompt_tokens, sequences * new_tokens, elicitation_tokens
  drawn = jax.random.randint(words, (sum(sizes),), 0, model.vocab_size)
  asked, tokens, elicitation = jnp.split(drawn, np.cumsum(sizes)[:2])
  tokens = tokens.reshape(sequences, -1)
  ones = jnp.ones(rows, jnp.int32)
  prompts = Prompts(
      asked.reshape(rows, -1), prompt_tokens * ones, ones[:, None], ones,
      jnp.arange(rows),
  )  # fmt: skip
  replay = functools.partial(policy.replay, cfg=model, group_size=group_size)
  _, context = jax.jit(replay)(params, prompts, tokens)
  # As a train step has them for its rollout and its probes.
  params = transformer.for_decoding(params)
  return Batch(
      model, group_size, params, prompts, tokens, context, elicitation
  )


def _method(
    function: Callable[..., Array], *inputs: tuple[Any, ...], repeats: int = 1
) -> Method:
  """`function` compiled for each of the inputs."""
  jitted = jax.jit(function)
  programs = [jitted.lower(*each).compile() for each in inputs]
  return Method(programs, inputs, repeats)


def plain(batch: Batch, repeats: int) -> Method:
  """Plain forwards, one after the other."""
  function = functools.partial(
      measuring.plain_forward, cfg=batch.model, group_size=batch.group_size
  )
  inputs = batch.params, batch.prompts, batch.tokens, batch.context[0]
  return _method(function, inputs, repeats=repeats)


def ours(
    batch: Batch, lengths: np.ndarray, *, budget: int, stride: int = 1
) -> Method:
  """`probes.answer_statistics`, as the train step calls it.

  Args:
    batch: the rollout.
    lengths: int32[b], the last position to probe of each sequence.
    budget: tokens of a pass.
    stride: between positions.
  """
  last = batch.tokens.shape[1]

  def entropies(
      params: Params, context: Context, lengths: Array, elicitation: Array
  ) -> Array:
    return probes.answer_statistics(
        params,
        context,
        lengths,
        probes.strided(last + 1, stride),
        elicitation,
        jnp.zeros_like(lengths),
        cfg=batch.model,
        most=probes.count(last, stride),
        budget=budget,
        head_chunk=Config().loss.head_chunk,
    ).entropy

  inputs = batch.params, batch.context, lengths
  return _method(entropies, (*inputs, batch.elicitation))


def _groups(length: int) -> list[np.ndarray]:
  """Positions 0..length, sixteen neighbours a group and 0 with the first."""
  ends = range(_GROUP, length + _GROUP, _GROUP)
  groups = [np.arange(end - _GROUP + 1, min(end, length) + 1) for end in ends]
  groups[0] = np.append(0, groups[0])
  return [group.astype(np.int32) for group in groups]


def reencoding(batch: Batch) -> Method:
  """Prompt, completion so far and elicitation encoded anew for each position.

  One program for each group of neighbouring positions, so that no text has
  more than fifteen tokens of padding. A pass is one position of all sequences;
  the head is applied to the last token only.
  """

  def entropies(
      params: Params,
      prompts: Prompts,
      tokens: Array,
      elicitation: Array,
      positions: Array,
  ) -> Array:
    def of_position(i: Array) -> Array:
      text, last = _texts(
          prompts, tokens, elicitation, i, batch.group_size
      )
      order = jnp.broadcast_to(jnp.arange(text.shape[1]), text.shape)
      hidden, _ = transformer.extend(params, text, order, cfg=batch.model)
      hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
      return _entropy(params, hidden[:, 0], batch.model)

    return jax.lax.map(of_position, positions).T

  return _method(
      entropies,
      *(
          (
              batch.params,
              batch.prompts,
              batch.tokens[:, : group[-1]],
              batch.elicitation,
              group,
          )
          for group in _groups(batch.tokens.shape[1])
      ),
  )


def _texts(
    prompts: Prompts,
    tokens: Array,
    elicitation: Array,
    i: Array,
    group_size: int,
) -> tuple[Array, Array]:
  """(q, o_1..o_i, elicitation), padded, and where the last token of it is."""
  widest, width = prompts.tokens.shape[1], elicitation.shape[0]
  asked = jnp.repeat(prompts.tokens, group_size, axis=0)
  ends = jnp.repeat(prompts.lengths, group_size)[:, None]
  rows = asked.shape[0]
  sources = jnp.concatenate(
      [asked, tokens, jnp.broadcast_to(elicitation, (rows, width))], axis=1
  )
  at = jnp.arange(sources.shape[1])
  source = jnp.where(at < ends, at, at - ends + widest)
  beyond = at - ends - i
  source = jnp.where(beyond < 0, source, widest + tokens.shape[1] + beyond)
  source = jnp.minimum(source, sources.shape[1] - 1)
  text = jnp.take_along_axis(sources, source, axis=1)
  return text, ends[:, 0] + i + width - 1


def kv_copy(batch: Batch, rows: int) -> Method:
  """A copy of a row's keys and values for each position, as the authors do it.

  Where their code differs the positions are the right ones. Sixteen positions
  at a time, copies as long as the longest of these needs; the elicitation is
  run against the copies and the head is applied to its last token only.

  Args:
    batch: the rollout.
    rows: sequences of a pass, dividing b; the authors take all.
  """
  count = batch.tokens.shape[0]

  def entropies(
      params: Params,
      context: Context,
      starts: Array,
      elicitation: Array,
      positions: Array,
  ) -> Array:
    width = elicitation.shape[0]

    def of_rows(first: Array) -> Array:
      begin = jax.lax.dynamic_slice_in_dim(starts, first, rows)
      begin = (begin[:, None] + positions + 1).reshape(-1, 1)
      hidden, _ = transformer.extend(
          params,
          jnp.broadcast_to(elicitation, (len(begin), width)),
          begin + jnp.arange(width),
          (_copies(context, positions, first, rows),),
          cfg=batch.model,
      )
      return _entropy(params, hidden[:, -1], batch.model)

    found = jax.lax.map(of_rows, jnp.arange(0, count, rows))
    return found.reshape(count, -1)

  prompt, completion = batch.context
  inputs = []
  for group in _groups(batch.tokens.shape[1]):
    slots = group[-1] + 1
    cut = completion.replace(
        keys=completion.keys[..., :slots],
        values=completion.values[..., :slots, :],
        positions=completion.positions[:, :slots],
        visible=completion.visible[:, :slots],
    )
    inputs.append((
        batch.params, (prompt, cut), batch.starts, batch.elicitation, group
    ))  # fmt: skip
  return _method(entropies, *inputs)


def _copies(
    context: Context, positions: Array, first: Array, rows: int
) -> KVSegment:
  """[l, rows · m, k, h, s]: prompt and completion for each of m positions.

  Args:
    context: the rollout's.
    positions: int32[m].
    first: int32[], the first sequence.
    rows: how many sequences.
  """
  prompt, completion = context
  group_size = completion.keys.shape[1] // prompt.keys.shape[1]
  asked = (first + jnp.arange(rows)) // group_size
  many = len(positions)

  def copied(x: Array, y: Array, axis: int, slots: int) -> Array:
    x = jnp.take(x, asked, axis=axis)
    y = jax.lax.dynamic_slice_in_dim(y, first, rows, axis)
    return jnp.repeat(jnp.concatenate([x, y], axis=slots), many, axis=axis)

  slots = jnp.arange(completion.keys.shape[-1])
  seen = slots <= jnp.tile(positions, rows)[:, None]
  known = jnp.repeat(prompt.visible[asked], many, axis=0)
  segment = KVSegment(
      keys=copied(prompt.keys, completion.keys, 1, -1),
      values=copied(prompt.values, completion.values, 1, -2),
      visible=jnp.concatenate([known, seen], axis=1),
      positions=copied(prompt.positions, completion.positions, 0, -1),
  )
  # Else the compiler may find a way without copies, which is not this method.
  return jax.lax.optimization_barrier(segment)


def _entropy(params: Params, hidden: Array, model: ModelConfig) -> Array:
  """fp32[n] of hidden states [n, d]."""
  scores = head.logits(params, hidden, cfg=model)
  nobody = jnp.zeros(hidden.shape[0], jnp.int32)
  return head.statistics(scores, nobody).entropy

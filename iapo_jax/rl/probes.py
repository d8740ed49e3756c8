"""Probes the answer that follows if the reasoning ends after chosen tokens.

A probe is c new tokens (the elicitation) that see the prompt and the completion
up to their position in the rollout's own cache. One forward pass probes many
positions, as extra rows that share one segment row; keys and values are never
copied for them.

Marks, a mask over slots, choose the positions. Statistics at other positions
are interpolated.
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import struct

from iapo_jax.config.model import ModelConfig
from iapo_jax.config.schema import Config
from iapo_jax.core import sharding
from iapo_jax.core.types import (
  AnswerStatistics,
  Array,
  Context,
  KVSegment,
  Params,
  PyTree,
  TokenStatistics,
)
from iapo_jax.models import head, transformer
from iapo_jax.rl import policy


@struct.dataclass
class _Part:
  """Whole groups of a batch whose probes share forward passes.

  Attributes:
    targets: int32[m].
    answers: int32[m, a] and their lengths int32[m]; or None.
    at: int32[m, s], the marked positions of each row in order, padded with the
      last one.
    counts: int32[m], the number of marked positions.
  """

  targets: Array
  answers: tuple[Array, Array] | None
  at: Array
  counts: Array


# Statistics of the first token, and sums along an answer if one is scored.
_Found = tuple[TokenStatistics, TokenStatistics | None]


def count(last: int | Array, stride: int) -> int | Array:
  """Counts `last` and the positions 0, stride, 2 · stride, ... before it."""
  return -(-last // stride) + 1


def most(cfg: Config) -> int:
  """Returns the most positions probed in a completion; 0 without probes."""
  last, stride = cfg.rollout.max_tokens, cfg.probe.stride
  if cfg.probe.at == "sentences":
    return last + 1
  return count(last, stride) if stride else 0


def strided(slots: int, stride: int) -> Array:
  """Marks slots 0, stride, 2 · stride, ...: bool[1, slots]."""
  return (jnp.arange(slots) % stride == 0)[None]


def after(tokens: Array, ends: Array) -> Array:
  """Marks the slots of tokens int32[b, t] with `ends` bool[v]: bool[b, t + 1].

  Slot 0, before the first token, has no mark.
  """
  return jnp.pad(ends[tokens], ((0, 0), (1, 0)))


def passes(
    rows: int,
    groups: int,
    positions: int,
    width: int,
    *,
    budget: int,
    shards: int,
) -> tuple[int, int]:
  """Returns the number of parts of the batch, and of positions in a pass.

  A part has whole groups, equally many on each data shard. Parts have few rows
  rather than passes few positions, because the passes of a part end with its
  longest row.

  `rows` is b, `groups` q; at most `positions` are probed in a row. `width` is
  the number of tokens of a probe, `budget` that of a pass. A pass has at least
  one position of one group on each data shard.
  """
  smallest = shards if groups % shards == 0 else groups
  group = rows // groups * width
  chunk = min(positions, max(1, budget // (smallest * group)))
  chunk = -(-positions // -(-positions // chunk))  # fills passes evenly
  fitting = max(smallest, budget // (group * chunk))
  sizes = range(smallest, min(fitting, groups) + 1, smallest)
  return groups // max(n for n in sizes if groups % n == 0), chunk


@jax.named_scope("probes")
def answer_statistics(
    params: Params,
    context: Context,
    lengths: Array,
    marks: Array,
    elicitation: Array,
    targets: Array,
    *,
    cfg: ModelConfig,
    answers: tuple[Array, Array] | None = None,
    temperature: float = 1.0,
    most: int | None = None,
    budget: int = 8192,
    head_chunk: int = 128,
) -> AnswerStatistics:
  """Measures the next-token distribution after (prompt, o_1..o_i, elicitation).

  The answer entropy H_i is `.entropy[:, i]`; `.logprob` and `.hit` measure how
  well the probe knows the target (usually the first token of the gold answer).
  With `answers`, scores the distributions of all their tokens, each after the
  tokens before it. IAPO's early exit, arXiv 2602.19049. Results are exact at
  every marked position and do not depend on `budget`.

  Memory: a pass holds a score for each of `budget` tokens and t + 1 slots, and
  a mask for each of its probes and those slots. All else is arrays [b, t + 1],
  also where every position is marked.

  Args:
    params: in the compute dtype.
    context: the prompt and completion segments of a `Rollout`.
    lengths: int32[b], the last position to probe (R); 0 probes H_0 only.
    marks: bool[b or 1, t + 1], the positions to probe. 0 and R are added, and
      those beyond R are dropped. Between marks, entropies and log-probabilities
      are interpolated linearly, and `hit` is copied from the mark before.
    elicitation: int32[c].
    targets: int32[b], the token whose probability is reported.
    cfg: the configuration of the decoder.
    answers: int32[b, a], right-padded, and their lengths int32[b]. A row of
      length 0 gets sums of 0.
    temperature: divides the logits.
    most: a bound on the marks of one sequence, 0 and R included; None means
      t + 1.
    budget: tokens of one forward pass; see `passes`. Each part of the batch
      is probed as far as its longest row.
    head_chunk: positions of a pass whose logits are in memory at one time.

  Returns:
    Statistics [b, t + 1] for i = 0..t; 0 and False beyond `lengths`.
  """
  chex.assert_rank([lengths, elicitation, targets], 1)
  slots = context[1].visible.shape[1]
  rows, groups = lengths.shape[0], context[0].visible.shape[0]
  width = elicitation.shape[0] + (answers[0].shape[1] - 1 if answers else 0)
  parts, chunk = passes(
      rows,
      groups,
      most or slots,
      width,
      budget=budget,
      shards=sharding.data_shards(),
  )
  slot, last = jnp.arange(slots), lengths[:, None]
  marks = (marks | (slot == 0) | (slot == last)) & (slot <= last)
  at, counts = _listed(marks, chunk)
  one_pass = functools.partial(
      _one_pass, params, elicitation=elicitation, cfg=cfg,
      temperature=temperature, head_chunk=head_chunk,
  )  # fmt: skip
  first, whole = _all_parts(
      functools.partial(_all_passes, one_pass, chunk),
      _Part(targets, answers, at, counts),
      context,
      parts,
  )
  spread = functools.partial(
      _at_every_slot, marks=marks, at=at, lengths=lengths
  )
  first = spread(first)
  return AnswerStatistics(
      logprob=first.logprob,
      entropy=first.entropy,
      hit=first.hit,
      answer=spread(whole),
      spent=counts * width,
  )


def _listed(marks: Array, chunk: int) -> tuple[Array, Array]:
  """Lists the marked slots of each row in order; also returns their number.

  Repeats the last slot up to a multiple of `chunk`.
  """
  rows, slots = marks.shape
  counts = jnp.sum(marks, axis=1)
  at = jnp.sort(jnp.where(marks, jnp.arange(slots), slots), axis=1)
  last = jnp.take_along_axis(at, counts[:, None] - 1, axis=1)
  at = jnp.where(jnp.arange(slots) < counts[:, None], at, last)
  more = jnp.broadcast_to(last, (rows, -slots % chunk))
  return jnp.concatenate([at, more], axis=1), counts


def _split_groups(tree: PyTree, parts: int, groups: int) -> PyTree:
  """Splits [rows, ...] into [parts, rows / parts, ...] by whole groups.

  Part j takes every `parts`-th group, so that each part is spread over all data
  shards like the batch. Arrays have one row per group or per sequence.
  """

  def split(x: Array) -> Array:
    per_part = groups // parts
    group = x.shape[0] // groups
    x = x.reshape(per_part, parts, group, *x.shape[1:])
    x = jnp.moveaxis(x, 1, 0)
    return x.reshape(parts, per_part * group, *x.shape[3:])

  return jax.tree.map(split, tree)


def _join_groups(tree: PyTree, groups: int) -> PyTree:
  """Inverts `_split_groups`."""

  def join(x: Array) -> Array:
    parts, rows = x.shape[:2]
    per_part = groups // parts
    x = x.reshape(parts, per_part, rows // per_part, *x.shape[2:])
    return jnp.moveaxis(x, 0, 1).reshape(parts * rows, *x.shape[3:])

  return jax.tree.map(join, tree)


def _of_part(x: Array, index: Array, parts: int, groups: int) -> Array:
  """Takes one part of keys or values [l, rows, ...], as in `_split_groups`.

  Taking one part at a time avoids a copy of the whole cache.
  """
  layers, rows, *rest = x.shape
  x = x.reshape(layers, groups // parts, parts, rows // groups, *rest)
  x = jax.lax.dynamic_index_in_dim(x, index, 2, keepdims=False)
  return x.reshape(layers, rows // parts, *rest)


def _all_parts(
    all_passes: Callable[[_Part, Context], _Found],
    whole: _Part,
    context: Context,
    parts: int,
) -> _Found:
  """Computes statistics [b, s] of a batch, one part after the other."""
  prompt, completion = context
  groups = prompt.visible.shape[0]
  rows = whole, prompt.positions, prompt.visible, completion.positions

  def probe(inputs: tuple[Array, tuple[_Part, Array, Array, Array]]) -> PyTree:
    index, (part, asked, visible, written) = inputs

    def cached(segment: KVSegment) -> KVSegment:
      keys, values = (
          _of_part(x, index, parts, groups)
          for x in (segment.keys, segment.values)
      )
      return segment.replace(keys=keys, values=values)

    return all_passes(
        part,
        (
            cached(prompt).replace(positions=asked, visible=visible),
            cached(completion).replace(positions=written),
        ),
    )

  divided = _split_groups(rows, parts, groups)
  found = jax.lax.map(probe, (jnp.arange(parts), divided))
  return _join_groups(found, groups)


def _all_passes(
    one_pass: Callable[..., _Found],
    chunk: int,
    part: _Part,
    context: Context,
) -> _Found:
  """Computes statistics of the marked positions of a part, [m, s] like `at`.

  Passes go by position. Early passes read only the slots that they can see.
  """
  prompt, completion = context
  slots = completion.visible.shape[1]
  last = jnp.max(part.counts)

  def chosen(index: Array) -> Array:
    return jax.lax.dynamic_slice_in_dim(part.at, index * chunk, chunk, axis=1)

  def goes_on(carry: tuple[Array, _Found], limit: int) -> Array:
    index, _ = carry
    return (index * chunk < last) & (jnp.max(chosen(index)) < limit)

  def step(
      carry: tuple[Array, _Found], context: Context
  ) -> tuple[Array, _Found]:
    index, found = carry
    new = one_pass(part, context, chosen(index))
    write = functools.partial(
        jax.lax.dynamic_update_slice_in_dim, start_index=index * chunk, axis=1
    )
    return index + 1, jax.tree.map(write, found, new)

  zeros = jnp.zeros(part.at.shape)
  nothing = TokenStatistics(zeros, zeros, jnp.zeros(part.at.shape, bool))
  carry = jnp.int32(0), (nothing, nothing if part.answers else None)
  for limit in policy.stages(slots):
    seen = completion.replace(
        keys=completion.keys[..., :limit],
        values=completion.values[..., :limit, :],
        positions=completion.positions[:, :limit],
    )
    carry = jax.lax.while_loop(
        functools.partial(goes_on, limit=limit),
        functools.partial(step, context=(prompt, seen)),
        carry,
    )
  return carry[1]


def _one_pass(
    params: Params,
    part: _Part,
    context: Context,
    at: Array,
    *,
    elicitation: Array,
    cfg: ModelConfig,
    temperature: float,
    head_chunk: int,
) -> _Found:
  """Computes statistics [m, n] after positions int32[m, n]."""
  rows, many = at.shape
  tokens = jnp.broadcast_to(elicitation, (rows * many, elicitation.size))
  if part.answers:
    shown = jnp.repeat(part.answers[0][:, :-1], many, axis=0)
    tokens = jnp.concatenate([tokens, shown], axis=1)
  # Position i sees slots 0..i. Rows are sequence-major.
  prompt, completion = context
  slots = jnp.arange(completion.positions.shape[1])
  begin = (completion.positions[:, :1] + at + 1).reshape(-1, 1)
  hidden, _ = transformer.extend(
      params,
      sharding.constrain(tokens, "batch", "length"),
      begin + jnp.arange(tokens.shape[1]),
      (prompt, completion.replace(visible=slots <= at.reshape(-1, 1))),
      cfg=cfg,
  )
  # The elicitation's last token, and each token of an answer but its last.
  hidden = hidden[:, elicitation.size - 1 :]
  hidden = hidden.reshape(rows, many, -1, cfg.d_model)
  score = functools.partial(
      head.token_statistics, params, cfg=cfg, temperature=temperature,
      chunk=head_chunk,
  )  # fmt: skip
  first = score(
      hidden[:, :, 0], jnp.broadcast_to(part.targets[:, None], at.shape)
  )
  if not part.answers:
    return first, None
  return first, _along(score, hidden, *part.answers)


def _along(
    score: Callable[[Array, Array], TokenStatistics],
    hidden: Array,
    answers: Array,
    lengths: Array,
) -> TokenStatistics:
  """Sums the statistics of answers [m, a] over their tokens: [m, n]."""
  rows, many, width, _ = hidden.shape
  targets = jnp.broadcast_to(answers[:, None], (rows, many, width))
  stats = score(
      hidden.reshape(rows, many * width, -1), targets.reshape(rows, -1)
  )
  there = (jnp.arange(width) < lengths[:, None])[:, None]

  def total(x: Array) -> Array:
    x = x.reshape(rows, many, width)
    if x.dtype == bool:
      return jnp.all(x | ~there, axis=-1)
    return jnp.sum(jnp.where(there, x, 0.0), axis=-1)

  return jax.tree.map(total, stats)


def _at_every_slot(
    found: PyTree, marks: Array, at: Array, lengths: Array
) -> PyTree:
  """Spreads statistics [b, s] of the marked positions `at` to [b, t + 1]."""
  slots = jnp.arange(marks.shape[1])
  earlier = jnp.cumsum(marks, axis=1) - 1
  later = jnp.minimum(earlier + 1, at.shape[1] - 1)
  pick = functools.partial(jnp.take_along_axis, axis=1)
  begin, end = pick(at, earlier), pick(at, later)
  share = (slots - begin) / jnp.maximum(end - begin, 1)
  probed = slots <= lengths[:, None]

  def spread(x: Array) -> Array:
    first = pick(x, earlier)
    if x.dtype == bool:
      return first & probed
    mixed = first + share * (pick(x, later) - first)
    return jnp.where(probed, jnp.where(marks, first, mixed), 0.0)

  return jax.tree.map(spread, found)

"""Early-exit probes: "if you had to answer now", after chosen tokens.

A probe is c new tokens (the elicitation) that see the prompt and the
completion up to their position in the rollout's own cache. Many positions are
probed in one forward pass, as extra rows that share one segment row; keys and
values are never copied for them.

Which positions are probed is a mask over slots, the marks; at the others the
statistics are interpolated.
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import struct

from iapo_jax import policy, sharding
from iapo_jax.model_config import ModelConfig
from iapo_jax.models import head, transformer
from iapo_jax.types import (
    Array,
    Context,
    Params,
    TokenStatistics,
)


@struct.dataclass
class _Part:
  """Whole groups of a batch whose probes go through the network together.

  Attributes:
    first_positions: int32[m].
    targets: int32[m].
    at: int32[m, s], the marked positions of each row in their order, the last
      one again after them.
    counts: int32[m], how many there are.
  """

  first_positions: Array
  targets: Array
  at: Array
  counts: Array


def count(last: int | Array, stride: int) -> int | Array:
  """How many of 0, stride, 2 · stride, ... and `last` there are up to it."""
  return -(-last // stride) + 1


def strided(slots: int, stride: int) -> Array:
  """bool[1, slots]: marks at 0, stride, 2 · stride, ..."""
  return (jnp.arange(slots) % stride == 0)[None]


def after(tokens: Array, ends: Array) -> Array:
  """bool[b, t + 1]: marks after tokens int32[b, t] that `ends` bool[v] has."""
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
  """How probes are split up: (parts of the batch, positions in a pass).

  A part is made of whole groups, as many on each data shard. It has few rows
  rather than few positions in a pass, because a part's passes end with the
  longest of its own rows.

  Args:
    rows: b.
    groups: q.
    positions: probed of each row, at most.
    width: c.
    budget: tokens of a pass, but never less than one position of one group on
      each data shard.
    shards: over which the rows lie.
  """
  smallest = shards if groups % shards == 0 else groups
  group = rows // groups * width
  chunk = min(positions, max(1, budget // (smallest * group)))
  chunk = -(-positions // -(-positions // chunk))  # no pass half empty
  most = max(smallest, budget // (group * chunk))
  sizes = range(smallest, min(most, groups) + 1, smallest)
  return groups // max(n for n in sizes if groups % n == 0), chunk


@jax.named_scope("probes")
def answer_statistics(
    params: Params,
    context: Context,
    first_positions: Array,
    lengths: Array,
    marks: Array,
    elicitation: Array,
    targets: Array,
    *,
    cfg: ModelConfig,
    temperature: float = 1.0,
    most: int | None = None,
    budget: int = 8192,
    head_chunk: int = 128,
) -> TokenStatistics:
  """The next-token distribution after (prompt, o_1..o_i, elicitation).

  The answer entropy H_i is `.entropy[:, i]`; `.logprob` and `.hit` say how
  well the probe knows the target (usually the gold answer's first token).
  IAPO's early exit, arXiv 2602.19049; exact at every marked position, and the
  same for every budget.

  Args:
    params: weights in the compute dtype.
    context: the prompt and completion segments of a `Rollout`.
    first_positions: int32[b], the position of slot 0 of each sequence.
    lengths: int32[b], the last position to probe (R); 0 probes H_0 only.
    marks: bool[b or 1, t + 1], the positions to probe; of every sequence also
      0 and R, and none beyond R. Between them entropies and log-probabilities
      are interpolated linearly, and `hit` is the earlier probe's.
    elicitation: int32[c].
    targets: int32[b], the token whose probability is reported.
    cfg: the decoder.
    temperature: of the distribution.
    most: marks of one sequence, 0 and R included, that are never exceeded;
      t + 1 by default.
    budget: tokens of one forward pass; see `passes`. Sequences are probed part
      by part, each part as far as the longest of its own lengths.
    head_chunk: positions of a pass whose logits exist at one time.

  Returns:
    Statistics [b, t + 1] for i = 0..t; 0 and False beyond `lengths`.
  """
  chex.assert_rank([first_positions, lengths, elicitation, targets], 1)
  slots = context[1].visible.shape[1]
  rows, groups = first_positions.shape[0], context[0].visible.shape[0]
  parts, chunk = passes(
      rows,
      groups,
      most or slots,
      elicitation.shape[0],
      budget=budget,
      shards=sharding.data_shards(),
  )
  marks = _completed(marks, lengths)
  at, counts = _listed(marks, chunk)
  one_pass = functools.partial(
      _one_pass, params, elicitation=elicitation, cfg=cfg,
      temperature=temperature, chunk=chunk, head_chunk=head_chunk,
  )  # fmt: skip
  whole = _Part(first_positions, targets, at, counts)
  divided = jax.tree.map(lambda x: _divide(x, parts, groups, 0), whole)
  cache = _divided_context(context, parts, groups)

  def probe(index: Array) -> TokenStatistics:
    part = jax.tree.map(lambda x: _take(x, index, 0), divided)
    return _all_passes(one_pass, part, cache(index), chunk)

  found = jax.lax.map(probe, jnp.arange(parts))
  found = jax.tree.map(lambda x: _rejoin(x, groups), found)
  return _at_every_slot(found, marks, at, lengths)


def _completed(marks: Array, lengths: Array) -> Array:
  """bool[b, t + 1]: marks at 0 and at the length, and none beyond it."""
  at, last = jnp.arange(marks.shape[1]), lengths[:, None]
  return (marks | (at == 0) | (at == last)) & (at <= last)


def _listed(marks: Array, chunk: int) -> tuple[Array, Array]:
  """The marked slots of each row in order, the last again; their number.

  Of slots there is a multiple of the chunk.
  """
  rows, slots = marks.shape
  counts = jnp.sum(marks, axis=1)
  at = jnp.sort(jnp.where(marks, jnp.arange(slots), slots), axis=1)
  last = jnp.take_along_axis(at, counts[:, None] - 1, axis=1)
  at = jnp.where(jnp.arange(slots) < counts[:, None], at, last)
  more = jnp.broadcast_to(last, (rows, -slots % chunk))
  return jnp.concatenate([at, more], axis=1), counts


def _divide(x: Array, parts: int, groups: int, axis: int) -> Array:
  """An axis of q or b rows -> [q / parts, parts, rows of a group].

  Part j takes every `parts`-th group, so that each is spread over all data
  shards like the batch is.
  """
  shape = x.shape
  split = (groups // parts, parts, shape[axis] // groups)
  return x.reshape(*shape[:axis], *split, *shape[axis + 1 :])


def _take(x: Array, index: Array, axis: int) -> Array:
  """The rows of a part of what `_divide` made."""
  x = jax.lax.dynamic_index_in_dim(x, index, axis + 1, keepdims=False)
  shape = x.shape
  return x.reshape(*shape[:axis], -1, *shape[axis + 2 :])


def _rejoin(x: Array, groups: int) -> Array:
  """[parts, rows, ...] back to the order of the batch."""
  parts, rows = x.shape[:2]
  x = x.reshape(parts, groups // parts, -1, *x.shape[2:])
  return jnp.moveaxis(x, 0, 1).reshape(parts * rows, *x.shape[3:])


def _divided_context(
    context: Context, parts: int, groups: int
) -> Callable[[Array], Context]:
  """The context of each part, by its index."""
  divided = [
      segment.replace(
          keys=_divide(segment.keys, parts, groups, 1),
          values=_divide(segment.values, parts, groups, 1),
          positions=_divide(segment.positions, parts, groups, 0),
      )
      for segment in context
  ]
  shown = _divide(context[0].visible, parts, groups, 0)

  def part(index: Array) -> Context:
    prompt, completion = (
        segment.replace(
            keys=_take(segment.keys, index, 1),
            values=_take(segment.values, index, 1),
            positions=_take(segment.positions, index, 0),
        )
        for segment in divided
    )
    return prompt.replace(visible=_take(shown, index, 0)), completion

  return part


def _all_passes(
    one_pass: Callable[..., TokenStatistics],
    part: _Part,
    context: Context,
    chunk: int,
) -> TokenStatistics:
  """Statistics of a part's marked positions, [m, s] like `at`.

  Passes go by position; early ones read only the slots that they can see.
  """
  prompt, completion = context
  slots = completion.visible.shape[1]
  last = jnp.max(part.counts)

  def chosen(index: Array) -> Array:
    return jax.lax.dynamic_slice_in_dim(part.at, index * chunk, chunk, axis=1)

  def goes_on(carry: tuple[Array, TokenStatistics], limit: int) -> Array:
    index, _ = carry
    return (index * chunk < last) & (jnp.max(chosen(index)) < limit)

  def step(
      carry: tuple[Array, TokenStatistics], context: Context
  ) -> tuple[Array, TokenStatistics]:
    index, found = carry
    new = one_pass(part, context, chosen(index))
    write = functools.partial(
        jax.lax.dynamic_update_slice_in_dim, start_index=index * chunk, axis=1
    )
    return index + 1, jax.tree.map(write, found, new)

  zeros = jnp.zeros(part.at.shape)
  carry = (
      jnp.int32(0),
      TokenStatistics(zeros, zeros, jnp.zeros(part.at.shape, bool)),
  )
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
    chunk: int,
    head_chunk: int,
) -> TokenStatistics:
  """Statistics [m, chunk] after positions int32[m, chunk]."""
  return head.token_statistics(
      params,
      _ask(params, context, part.first_positions, at, elicitation, cfg),
      jnp.broadcast_to(part.targets[:, None], (at.shape[0], chunk)),
      cfg=cfg,
      temperature=temperature,
      chunk=head_chunk,
  )


def _ask(
    params: Params,
    context: Context,
    first_positions: Array,
    at: Array,
    elicitation: Array,
    cfg: ModelConfig,
) -> Array:
  """[b, m, d]: what follows the elicitation after positions int32[b, m]."""
  prompt, completion = context
  (rows, many), width = at.shape, elicitation.shape[0]
  # Position i sees slots 0..i. Rows are sequence-major.
  slots = jnp.arange(completion.positions.shape[1])
  begin = (first_positions[:, None] + at + 1).reshape(-1, 1)
  tokens = jnp.broadcast_to(elicitation, (rows * many, width))
  hidden, _ = transformer.extend(
      params,
      sharding.constrain(tokens, "batch", "length"),
      begin + jnp.arange(width),
      (prompt, completion.replace(visible=slots <= at.reshape(-1, 1))),
      cfg=cfg,
  )
  return hidden[:, -1].reshape(rows, many, -1)


def _at_every_slot(
    found: TokenStatistics, marks: Array, at: Array, lengths: Array
) -> TokenStatistics:
  """Statistics [b, t + 1] from those [b, s] of the marked positions `at`."""
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

"""Pallas kernels: attention over one key/value segment, a block at a time.

Scores exist for one block of queries and slots only. They are kept with the
slots first, [slots, queries], so that the sums and maxima of a query run down
the sublanes of a TPU, its statistics are rows, and keys are read as they lie.

Shape letters beyond those of `types`: m, the queries that read one row and one
key/value head of a segment. What a query sees is a run of slots, low <= slot <
high; blocks that no query of a block sees are neither read nor computed.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from iapo_jax.types import Array

# Below every score, and still a number: −∞ less −∞ would be none.
LOWEST = -2.0**126
# Queries come in multiples of this, the lanes of a TPU.
LANES = 128
_MOST_QUERIES = 256
_MOST_SLOTS = 512

_Ref = jax.Ref if hasattr(jax, "Ref") else object


@dataclasses.dataclass(frozen=True)
class Form:
  """What is fixed when a kernel is compiled.

  Attributes:
    scale: times the products of queries and keys.
    cap: c of scores c · tanh(score / c); 0 leaves them.
    interpret: run the kernel's steps as JAX operations, on any platform.
  """

  scale: float
  cap: float
  interpret: bool


@dataclasses.dataclass(frozen=True)
class _Blocks:
  """How a segment is cut.

  Attributes:
    queries: of one block; divides m.
    slots: of one block.
    length: s.
  """

  queries: int
  slots: int
  length: int

  @property
  def ragged(self) -> bool:
    """Whether the last block of slots reaches beyond the segment."""
    return bool(self.length % self.slots)

  @property
  def across(self) -> int:
    """Blocks of slots."""
    return pl.cdiv(self.length, self.slots)


def forward(
    form: Form,
    queries: Array,
    keys: Array,
    values: Array,
    bounds: Array,
    dtype: jnp.dtype,
) -> tuple[Array, Array]:
  """The softmax over one segment.

  Args:
    form: static.
    queries: [r, k, h, m], m a multiple of `LANES`.
    keys: [r, k, h, s].
    values: [r, k, s, h].
    bounds: int32[r, 2, m], low and high of every query.
    dtype: of the output.

  Returns:
    The output [r, k, h, m] and fp32[r, k, 1, m], the logarithm of the sum of
    exp(score); 0 and `LOWEST` where a query sees nothing.
  """
  blocks = _blocks(queries, keys)
  width, m = queries.shape[2:]
  spec = _Specs(blocks, width)
  return pl.pallas_call(
      functools.partial(_forward_kernel, form, blocks),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=2,
          grid=(*queries.shape[:2], m // blocks.queries, blocks.across),
          in_specs=[
              spec.queries(width), spec.keys, spec.values, spec.bounds,
          ],  # fmt: skip
          out_specs=[spec.queries(width), spec.queries(1)],
          scratch_shapes=[
              pltpu.VMEM((1, blocks.queries), jnp.float32),
              pltpu.VMEM((1, blocks.queries), jnp.float32),
              pltpu.VMEM((width, blocks.queries), jnp.float32),
          ],
      ),
      out_shape=[
          jax.ShapeDtypeStruct(queries.shape, dtype),
          jax.ShapeDtypeStruct((*queries.shape[:2], 1, m), jnp.float32),
      ],
      compiler_params=_last_in_turn(),
      interpret=form.interpret,
      name="attention_forward",
  )(*_reach(bounds, blocks), queries, keys, values, bounds)


def backward_queries(
    form: Form,
    queries: Array,
    keys: Array,
    values: Array,
    bounds: Array,
    lse: Array,
    delta: Array,
    gradient: Array,
) -> Array:
  """This segment's part of the gradient of the queries.

  Args:
    form: static.
    queries: as in `forward`.
    keys: as in `forward`.
    values: as in `forward`.
    bounds: as in `forward`.
    lse: fp32[r, k, 1, m], over all segments.
    delta: fp32[r, k, 1, m], Σ output · gradient, over all segments.
    gradient: [r, k, h, m], of the output.

  Returns:
    fp32[r, k, h, m].
  """
  blocks = _blocks(queries, keys)
  width, m = queries.shape[2:]
  spec = _Specs(blocks, width)
  return pl.pallas_call(
      functools.partial(_queries_kernel, form, blocks),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=2,
          grid=(*queries.shape[:2], m // blocks.queries, blocks.across),
          in_specs=[
              spec.queries(width), spec.keys, spec.values, spec.bounds,
              spec.queries(1), spec.queries(1), spec.queries(width),
          ],  # fmt: skip
          out_specs=spec.queries(width),
          scratch_shapes=[pltpu.VMEM((width, blocks.queries), jnp.float32)],
      ),
      out_shape=jax.ShapeDtypeStruct(queries.shape, jnp.float32),
      compiler_params=_last_in_turn(),
      interpret=form.interpret,
      name="attention_backward_queries",
  )(
      *_reach(bounds, blocks),
      queries, keys, values, bounds, lse, delta, gradient,
  )  # fmt: skip


def backward_segment(
    form: Form,
    queries: Array,
    keys: Array,
    values: Array,
    bounds: Array,
    lse: Array,
    delta: Array,
    gradient: Array,
) -> tuple[Array, Array]:
  """The gradients of keys and values; arguments of `backward_queries`."""
  blocks = _blocks(queries, keys)
  width, m = queries.shape[2:]
  spec = _Specs(blocks, width, slots_outside=True)
  return pl.pallas_call(
      functools.partial(_segment_kernel, form, blocks),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=2,
          grid=(*queries.shape[:2], blocks.across, m // blocks.queries),
          in_specs=[
              spec.queries(width), spec.keys, spec.values, spec.bounds,
              spec.queries(1), spec.queries(1), spec.queries(width),
          ],  # fmt: skip
          out_specs=[spec.keys, spec.values],
          scratch_shapes=[
              pltpu.VMEM((width, blocks.slots), jnp.float32),
              pltpu.VMEM((blocks.slots, width), jnp.float32),
          ],
      ),
      out_shape=[
          jax.ShapeDtypeStruct(keys.shape, keys.dtype),
          jax.ShapeDtypeStruct(values.shape, values.dtype),
      ],
      compiler_params=_last_in_turn(),
      interpret=form.interpret,
      name="attention_backward_segment",
  )(
      *_reach(bounds, blocks),
      queries, keys, values, bounds, lse, delta, gradient,
  )  # fmt: skip


def _blocks(queries: Array, keys: Array) -> _Blocks:
  """Blocks as even as can be, so that little of the last one is wasted."""
  m, length = queries.shape[-1], keys.shape[-1]
  wide = _MOST_QUERIES if m % _MOST_QUERIES == 0 else LANES
  return _Blocks(wide, min(length, _MOST_SLOTS), length)


def _last_in_turn() -> pltpu.CompilerParams:
  """The last axis of a grid adds up; the others may be split over cores."""
  return pltpu.CompilerParams(
      dimension_semantics=("parallel",) * 3 + ("arbitrary",)
  )


def _reach(bounds: Array, blocks: _Blocks) -> tuple[Array, Array]:
  """int32[r · m / queries] twice: from and below which block of slots to read.

  Flat: two axes would be padded in the small memory that scalars live in.
  """
  rows, _, m = bounds.shape
  shape = (rows, m // blocks.queries, blocks.queries)
  low, high = bounds[:, 0].reshape(shape), bounds[:, 1].reshape(shape)
  last = pl.cdiv(jnp.max(high, axis=-1), blocks.slots)
  first = jnp.minimum(jnp.min(low, axis=-1) // blocks.slots, last)
  return first.reshape(-1), last.reshape(-1)


class _Specs:
  """Which block of each array a step of the grid reads or writes.

  A grid runs over rows, heads, blocks of queries and blocks of slots, or the
  latter two the other way round (`slots_outside`).
  """

  def __init__(
      self, blocks: _Blocks, width: int, *, slots_outside: bool = False
  ) -> None:
    self._blocks = blocks
    self._outside = slots_outside
    self.keys = pl.BlockSpec(
        (None, None, width, blocks.slots),
        lambda *step: (step[0], step[1], 0, self._slot_block(step)),
    )
    self.values = pl.BlockSpec(
        (None, None, blocks.slots, width),
        lambda *step: (step[0], step[1], self._slot_block(step), 0),
    )
    self.bounds = pl.BlockSpec(
        (None, 2, blocks.queries),
        lambda *step: (step[0], 0, self._query_block(step)),
    )

  def queries(self, width: int) -> pl.BlockSpec:
    """Of an array [r, k, width, m]."""
    return pl.BlockSpec(
        (None, None, width, self._blocks.queries),
        lambda *step: (step[0], step[1], 0, self._query_block(step)),
    )

  def _query_block(self, step: tuple) -> Array:
    return step[3] if self._outside else step[2]

  def _slot_block(self, step: tuple) -> Array:
    if self._outside:
      return step[2]
    # A block that is not needed is not fetched: the one before stays.
    row, _, i, j, first, last = step
    at = row * pl.num_programs(2) + i
    return jnp.clip(j, first[at], jnp.maximum(last[at] - 1, first[at]))


def _forward_kernel(
    form: Form,
    blocks: _Blocks,
    first: _Ref,
    last: _Ref,
    queries: _Ref,
    keys: _Ref,
    values: _Ref,
    bounds: _Ref,
    output: _Ref,
    lse: _Ref,
    peak: _Ref,
    total: _Ref,
    summed: _Ref,
) -> None:
  """One block of slots; the scratch holds the softmax so far."""
  j = pl.program_id(3)
  at = pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)

  @pl.when(j == 0)
  def start() -> None:
    peak[...] = jnp.full_like(peak, LOWEST)
    total[...] = jnp.zeros_like(total)
    summed[...] = jnp.zeros_like(summed)

  @pl.when((first[at] <= j) & (j < last[at]))
  def add() -> None:
    k, v = _load(keys, values, j, blocks)
    scores, seen = _scores(form, blocks, queries[...], k, bounds, j)
    before = peak[...]
    top = jnp.maximum(before, jnp.max(scores, axis=0, keepdims=True))
    weights = jnp.where(seen, jnp.exp(scores - top), 0.0)
    factor = jnp.exp(before - top)
    peak[...] = top
    total[...] = factor * total[...] + jnp.sum(weights, axis=0, keepdims=True)
    mixed = _product(v, weights.astype(v.dtype), 0, 0)
    summed[...] = factor * summed[...] + mixed

  @pl.when(j == pl.num_programs(3) - 1)
  def finish() -> None:
    any_seen = total[...] > 0
    weight = jnp.where(any_seen, total[...], 1.0)
    output[...] = (summed[...] / weight).astype(output.dtype)
    lse[...] = jnp.where(any_seen, peak[...] + jnp.log(weight), LOWEST)


def _queries_kernel(
    form: Form,
    blocks: _Blocks,
    first: _Ref,
    last: _Ref,
    queries: _Ref,
    keys: _Ref,
    values: _Ref,
    bounds: _Ref,
    lse: _Ref,
    delta: _Ref,
    gradient: _Ref,
    to_queries: _Ref,
    summed: _Ref,
) -> None:
  """Adds one block of slots to the gradient of a block of queries."""
  j = pl.program_id(3)
  at = pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)

  @pl.when(j == 0)
  def start() -> None:
    summed[...] = jnp.zeros_like(summed)

  @pl.when((first[at] <= j) & (j < last[at]))
  def add() -> None:
    k, v = _load(keys, values, j, blocks)
    _, to_scores = _score_gradients(
        form, blocks, queries[...], k, v, bounds, lse, delta, gradient[...], j
    )
    summed[...] += _product(k, to_scores.astype(k.dtype), 1, 0)

  @pl.when(j == pl.num_programs(3) - 1)
  def finish() -> None:
    to_queries[...] = form.scale * summed[...]


def _segment_kernel(
    form: Form,
    blocks: _Blocks,
    first: _Ref,
    last: _Ref,
    queries: _Ref,
    keys: _Ref,
    values: _Ref,
    bounds: _Ref,
    lse: _Ref,
    delta: _Ref,
    gradient: _Ref,
    to_keys: _Ref,
    to_values: _Ref,
    key_sum: _Ref,
    value_sum: _Ref,
) -> None:
  """Adds one block of queries to the gradients of a block of slots."""
  j, i = pl.program_id(2), pl.program_id(3)
  at = pl.program_id(0) * pl.num_programs(3) + i

  @pl.when(i == 0)
  def start() -> None:
    key_sum[...] = jnp.zeros_like(key_sum)
    value_sum[...] = jnp.zeros_like(value_sum)

  @pl.when((first[at] <= j) & (j < last[at]))
  def add() -> None:
    k, v = _load(keys, values, j, blocks)
    q, to_output = queries[...], gradient[...]
    weights, to_scores = _score_gradients(
        form, blocks, q, k, v, bounds, lse, delta, to_output, j
    )
    value_sum[...] += _product(weights.astype(v.dtype), to_output, 1, 1)
    key_sum[...] += _product(q, to_scores.astype(q.dtype), 1, 1)

  @pl.when(i == pl.num_programs(3) - 1)
  def finish() -> None:
    to_keys[...] = (form.scale * key_sum[...]).astype(to_keys.dtype)
    to_values[...] = value_sum[...].astype(to_values.dtype)


def _load(
    keys: _Ref, values: _Ref, j: Array, blocks: _Blocks
) -> tuple[Array, Array]:
  """[h, slots] and [slots, h] of block j, 0 beyond the segment."""
  k, v = keys[...], values[...]
  if blocks.ragged:
    # What lies there may be no number, and 0 · NaN is NaN.
    left = blocks.length - j * blocks.slots
    across = jax.lax.broadcasted_iota(jnp.int32, k.shape, 1)
    down = jax.lax.broadcasted_iota(jnp.int32, v.shape, 0)
    k = jnp.where(across < left, k, jnp.zeros_like(k))
    v = jnp.where(down < left, v, jnp.zeros_like(v))
  return k, v


def _scores(
    form: Form,
    blocks: _Blocks,
    queries: Array,
    keys: Array,
    bounds: _Ref,
    j: Array,
) -> tuple[Array, Array]:
  """fp32[slots, queries], `LOWEST` where not seen; bool, where seen."""
  scores = form.scale * _product(keys, queries, 0, 0)
  if form.cap:
    scores = form.cap * jnp.tanh(scores / form.cap)
  slots = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
  slots += j * blocks.slots
  seen = (slots >= bounds[0:1, :]) & (slots < bounds[1:2, :])
  return jnp.where(seen, scores, LOWEST), seen


def _score_gradients(
    form: Form,
    blocks: _Blocks,
    queries: Array,
    keys: Array,
    values: Array,
    bounds: _Ref,
    lse: _Ref,
    delta: _Ref,
    gradient: Array,
    j: Array,
) -> tuple[Array, Array]:
  """fp32[slots, queries]: weights, and the gradients of scale · q · k."""
  scores, seen = _scores(form, blocks, queries, keys, bounds, j)
  weights = jnp.where(seen, jnp.exp(scores - lse[...]), 0.0)
  to_weights = _product(values, gradient, 1, 0)
  to_scores = weights * (to_weights - delta[...])
  if form.cap:
    to_scores *= 1.0 - (jnp.where(seen, scores, 0.0) / form.cap) ** 2
  return weights, to_scores


def _product(left: Array, right: Array, i: int, j: int) -> Array:
  """fp32: the sum over axis i of one matrix and axis j of the other."""
  exact = left.dtype == jnp.float32
  return jax.lax.dot_general(
      left,
      right,
      (((i,), (j,)), ((), ())),
      precision=jax.lax.Precision.HIGHEST if exact else None,
      preferred_element_type=jnp.float32,
  )

"""The kernels of `flash` for TPUs, whose grid steps over blocks of slots.

A block of slots that no query of a block sees is neither fetched nor computed.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from iapo_jax.core.types import Array
from iapo_jax.models import flash
from iapo_jax.models.flash import Blocks, Form

_MOST_QUERIES = 256
_MOST_SLOTS = 512


def forward(
    form: Form,
    queries: Array,
    keys: Array,
    values: Array,
    bounds: Array,
    dtype: jnp.dtype,
) -> tuple[Array, Array]:
  """Arguments and results are those that `flash` documents."""
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
          ],
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
  """Arguments and results are those that `flash` documents."""
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
          ],
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
  )


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
  """Arguments and results are those that `flash` documents."""
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
          ],
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
  )


def _blocks(queries: Array, keys: Array) -> Blocks:
  """Returns large blocks, since each grid step has a fixed cost."""
  m, length = queries.shape[-1], keys.shape[-1]
  wide = _MOST_QUERIES if m % _MOST_QUERIES == 0 else flash.LANES
  return Blocks(wide, min(length, _MOST_SLOTS), length)


def _last_in_turn() -> pltpu.CompilerParams:
  """Lets cores split all grid axes but the last, which accumulates."""
  return pltpu.CompilerParams(
      dimension_semantics=("parallel",) * 3 + ("arbitrary",)
  )


def _reach(bounds: Array, blocks: Blocks) -> tuple[Array, Array]:
  """Returns int32[r · m / queries] twice: the first block of slots and the end.

  Flat, since two axes would be padded in the small memory of scalars.
  """
  rows, _, m = bounds.shape
  shape = (rows, m // blocks.queries, blocks.queries)
  low, high = bounds[:, 0].reshape(shape), bounds[:, 1].reshape(shape)
  last = pl.cdiv(jnp.max(high, axis=-1), blocks.slots)
  first = jnp.minimum(jnp.min(low, axis=-1) // blocks.slots, last)
  return first.reshape(-1), last.reshape(-1)


class _Specs:
  """The block of each array that a grid step reads or writes.

  A grid runs over rows, heads, blocks of queries and blocks of slots;
  `slots_outside` swaps the last two.
  """

  def __init__(
      self, blocks: Blocks, width: int, *, slots_outside: bool = False
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
    """Returns the spec of an array [r, k, width, m]."""
    return pl.BlockSpec(
        (None, None, width, self._blocks.queries),
        lambda *step: (step[0], step[1], 0, self._query_block(step)),
    )

  def _query_block(self, step: tuple) -> Array:
    return step[3] if self._outside else step[2]

  def _slot_block(self, step: tuple) -> Array:
    if self._outside:
      return step[2]
    # An unneeded block is not fetched: the index stays that of a needed one.
    row, _, i, j, first, last = step
    at = row * pl.num_programs(2) + i
    return jnp.clip(j, first[at], jnp.maximum(last[at] - 1, first[at]))


def _forward_kernel(
    form: Form,
    blocks: Blocks,
    first: jax.Ref,
    last: jax.Ref,
    queries: jax.Ref,
    keys: jax.Ref,
    values: jax.Ref,
    bounds: jax.Ref,
    output: jax.Ref,
    lse: jax.Ref,
    *scratch: jax.Ref,
) -> None:
  """Adds one block of slots to the softmax in the scratch."""
  j = pl.program_id(3)
  at = pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)

  def write(softmax: flash.Softmax) -> None:
    for ref, value in zip(scratch, softmax, strict=True):
      ref[...] = value

  def read() -> flash.Softmax:
    peak, total, summed = (ref[...] for ref in scratch)
    return peak, total, summed

  @pl.when(j == 0)
  def start() -> None:
    write(flash.empty(*scratch[-1].shape))

  @pl.when((first[at] <= j) & (j < last[at]))
  def add() -> None:
    k, v = _load(keys, values, j, blocks)
    limits = bounds[0:1, :], bounds[1:2, :]
    begin = j * blocks.slots
    write(flash.add(form, queries[...], k, v, limits, begin, read()))

  @pl.when(j == pl.num_programs(3) - 1)
  def finish() -> None:
    result, lse[...] = flash.finish(read())
    output[...] = result.astype(output.dtype)


def _queries_kernel(
    form: Form,
    blocks: Blocks,
    first: jax.Ref,
    last: jax.Ref,
    queries: jax.Ref,
    keys: jax.Ref,
    values: jax.Ref,
    bounds: jax.Ref,
    lse: jax.Ref,
    delta: jax.Ref,
    gradient: jax.Ref,
    to_queries: jax.Ref,
    summed: jax.Ref,
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
    limits = bounds[0:1, :], bounds[1:2, :]
    _, to_scores = flash.gradients(
        form, queries[...], k, v, limits, lse[...], delta[...], gradient[...],
        j * blocks.slots,
    )  # fmt: skip
    summed[...] += flash.product(k, to_scores.astype(k.dtype), 1, 0)

  @pl.when(j == pl.num_programs(3) - 1)
  def finish() -> None:
    to_queries[...] = form.scale * summed[...]


def _segment_kernel(
    form: Form,
    blocks: Blocks,
    first: jax.Ref,
    last: jax.Ref,
    queries: jax.Ref,
    keys: jax.Ref,
    values: jax.Ref,
    bounds: jax.Ref,
    lse: jax.Ref,
    delta: jax.Ref,
    gradient: jax.Ref,
    to_keys: jax.Ref,
    to_values: jax.Ref,
    key_sum: jax.Ref,
    value_sum: jax.Ref,
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
    limits = bounds[0:1, :], bounds[1:2, :]
    weights, to_scores = flash.gradients(
        form, q, k, v, limits, lse[...], delta[...], to_output,
        j * blocks.slots,
    )  # fmt: skip
    weights, to_scores = weights.astype(v.dtype), to_scores.astype(q.dtype)
    value_sum[...] += flash.product(weights, to_output, 1, 1)
    key_sum[...] += flash.product(q, to_scores, 1, 1)

  @pl.when(i == pl.num_programs(3) - 1)
  def finish() -> None:
    to_keys[...] = (form.scale * key_sum[...]).astype(to_keys.dtype)
    to_values[...] = value_sum[...].astype(to_values.dtype)


def _load(
    keys: jax.Ref, values: jax.Ref, j: Array, blocks: Blocks
) -> tuple[Array, Array]:
  """Returns [h, slots] and [slots, h] of block j, 0 beyond the segment."""
  k, v = keys[...], values[...]
  if blocks.ragged:
    # Memory beyond the segment may hold NaN, and 0 · NaN is NaN.
    left = blocks.length - j * blocks.slots
    across = jax.lax.broadcasted_iota(jnp.int32, k.shape, 1)
    down = jax.lax.broadcasted_iota(jnp.int32, v.shape, 0)
    k = jnp.where(across < left, k, jnp.zeros_like(k))
    v = jnp.where(down < left, v, jnp.zeros_like(v))
  return k, v

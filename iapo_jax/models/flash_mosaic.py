"""The kernels of `flash` for TPUs, whose grid steps over blocks of slots.

A block of slots that no query of a block sees is neither fetched nor computed.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from iapo_jax.core.types import Array
from iapo_jax.models import flash
from iapo_jax.models.flash import Blocks, Form, Inputs, Pulled

_MOST_QUERIES = 256
_MOST_SLOTS = 512


def forward(
    form: Form, inputs: Inputs, dtype: jnp.dtype
) -> tuple[Array, Array]:
  """Arguments and results are those that `flash` documents."""
  r, k, width, m = inputs.queries.shape
  specs = _specs(inputs)
  row = 1, _blocks(inputs).queries
  return _call(
      _forward_kernel,
      form,
      (inputs,),
      specs[:1],
      out_specs=[specs[0].queries, specs[1].lse],
      out_shape=[
          jax.ShapeDtypeStruct(inputs.queries.shape, dtype),
          jax.ShapeDtypeStruct((r, k, 1, m), jnp.float32),
      ],
      sums=[row, row, (width, row[1])],
      name="attention_forward",
  )


def backward_queries(form: Form, inputs: Inputs, pulled: Pulled) -> Array:
  """Arguments and results are those that `flash` documents."""
  shape = inputs.queries.shape
  specs = _specs(inputs)
  return _call(
      _queries_kernel,
      form,
      (inputs, pulled),
      specs,
      out_specs=specs[0].queries,
      out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
      sums=[(shape[2], _blocks(inputs).queries)],
      name="attention_backward_queries",
  )


def backward_segment(
    form: Form, inputs: Inputs, pulled: Pulled
) -> tuple[Array, Array]:
  """Arguments and results are those that `flash` documents."""
  pair = inputs.keys, inputs.values
  width, slots = inputs.queries.shape[2], _blocks(inputs).slots
  specs = _specs(inputs, slots_outside=True)
  return _call(
      _segment_kernel,
      form,
      (inputs, pulled),
      specs,
      slots_outside=True,
      out_specs=[specs[0].keys, specs[0].values],
      out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in pair],
      sums=[(width, slots), (slots, width)],
      name="attention_backward_segment",
  )


def _call(
    kernel: Callable[..., None],
    form: Form,
    arrays: tuple[Inputs] | tuple[Inputs, Pulled],
    in_specs: tuple[Inputs] | tuple[Inputs, Pulled],
    *,
    slots_outside: bool = False,
    out_specs: pl.BlockSpec | list[pl.BlockSpec],
    sums: list[tuple[int, int]],
    **rest: object,
) -> list[Array]:
  """Runs a kernel that sums into fp32 arrays of the given shapes.

  The grid runs over rows, heads, blocks of queries and blocks of slots;
  `slots_outside` swaps the last two.
  """
  r, k, _, m = arrays[0].queries.shape
  blocks = _blocks(arrays[0])
  steps = m // blocks.queries, blocks.across
  return pl.pallas_call(
      functools.partial(kernel, form, blocks),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=2,
          grid=(r, k, *(steps[::-1] if slots_outside else steps)),
          in_specs=in_specs,
          out_specs=out_specs,
          scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in sums],
      ),
      # Cores may split all axes of the grid but the last, which adds up.
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=("parallel",) * 3 + ("arbitrary",)
      ),
      interpret=form.interpret,
      **rest,
  )(*_reach(arrays[0].bounds, blocks), *arrays)


def _blocks(inputs: Inputs) -> Blocks:
  """Returns large blocks, since each grid step has a fixed cost."""
  m, length = inputs.queries.shape[-1], inputs.keys.shape[-1]
  wide = _MOST_QUERIES if m % _MOST_QUERIES == 0 else flash.LANES
  return Blocks(wide, min(length, _MOST_SLOTS), length)


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


def _specs(
    inputs: Inputs, *, slots_outside: bool = False
) -> tuple[Inputs, Pulled]:
  """Returns the block of each array that a grid step reads or writes."""
  width, blocks = inputs.queries.shape[2], _blocks(inputs)

  def query_block(step: tuple) -> Array:
    return step[3] if slots_outside else step[2]

  def slot_block(step: tuple) -> Array:
    if slots_outside:
      return step[2]
    # An unneeded block is not fetched: the index stays that of a needed one.
    row, _, i, j, first, last = step
    at = row * pl.num_programs(2) + i
    return jnp.clip(j, first[at], jnp.maximum(last[at] - 1, first[at]))

  def queries(rows: int) -> pl.BlockSpec:
    """Returns the spec of an array [r, k, rows, m]."""
    return pl.BlockSpec(
        (None, None, rows, blocks.queries),
        lambda *step: (step[0], step[1], 0, query_block(step)),
    )

  return (
      Inputs(
          queries(width),
          pl.BlockSpec(
              (None, None, width, blocks.slots),
              lambda *step: (step[0], step[1], 0, slot_block(step)),
          ),
          pl.BlockSpec(
              (None, None, blocks.slots, width),
              lambda *step: (step[0], step[1], slot_block(step), 0),
          ),
          pl.BlockSpec(
              (None, 2, blocks.queries),
              lambda *step: (step[0], 0, query_block(step)),
          ),
      ),
      Pulled(queries(1), queries(1), queries(width)),
  )


def _forward_kernel(
    form: Form,
    blocks: Blocks,
    first: jax.Ref,
    last: jax.Ref,
    inputs: Inputs,
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
    block = _load(inputs, j, blocks)
    write(flash.add(form, block, j * blocks.slots, read()))

  @pl.when(j == pl.num_programs(3) - 1)
  def finish() -> None:
    result, lse[...] = flash.finish(read())
    output[...] = result.astype(output.dtype)


def _queries_kernel(
    form: Form,
    blocks: Blocks,
    first: jax.Ref,
    last: jax.Ref,
    inputs: Inputs,
    pulled: Pulled,
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
    block, pull = _load(inputs, j, blocks), Pulled(*(x[...] for x in pulled))
    _, to_scores = flash.gradients(form, block, pull, j * blocks.slots)
    narrow = to_scores.astype(block.keys.dtype)
    summed[...] += flash.product(block.keys, narrow, 1, 0)

  @pl.when(j == pl.num_programs(3) - 1)
  def finish() -> None:
    to_queries[...] = form.scale * summed[...]


def _segment_kernel(
    form: Form,
    blocks: Blocks,
    first: jax.Ref,
    last: jax.Ref,
    inputs: Inputs,
    pulled: Pulled,
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
    block, pull = _load(inputs, j, blocks), Pulled(*(x[...] for x in pulled))
    weights, to_scores = flash.gradients(form, block, pull, j * blocks.slots)
    weights = weights.astype(block.values.dtype)
    to_scores = to_scores.astype(block.queries.dtype)
    value_sum[...] += flash.product(weights, pull.gradient, 1, 1)
    key_sum[...] += flash.product(block.queries, to_scores, 1, 1)

  @pl.when(i == pl.num_programs(3) - 1)
  def finish() -> None:
    to_keys[...] = (form.scale * key_sum[...]).astype(to_keys.dtype)
    to_values[...] = value_sum[...].astype(to_values.dtype)


def _load(inputs: Inputs, j: Array, blocks: Blocks) -> Inputs:
  """Returns the arrays of a block of slots, 0 beyond the segment."""
  k, v = inputs.keys[...], inputs.values[...]
  if blocks.ragged:
    # Memory beyond the segment may hold NaN, and 0 · NaN is NaN.
    left = blocks.length - j * blocks.slots
    across = jax.lax.broadcasted_iota(jnp.int32, k.shape, 1)
    down = jax.lax.broadcasted_iota(jnp.int32, v.shape, 0)
    k = jnp.where(across < left, k, jnp.zeros_like(k))
    v = jnp.where(down < left, v, jnp.zeros_like(v))
  limits = inputs.bounds[0:1, :], inputs.bounds[1:2, :]
  return Inputs(inputs.queries[...], k, v, limits)

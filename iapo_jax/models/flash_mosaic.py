"""The kernels of `flash` for TPUs, whose grid steps over blocks of slots.

A block of slots that no query of a block sees is neither fetched nor computed.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from iapo_jax.core.types import Array
from iapo_jax.models import flash
from iapo_jax.models.flash import Blocks, Form, Inputs, Pulled

_MOST_QUERIES = 256
_MOST_SLOTS = 512


def run(
    kernel: str,
    form: Form,
    arrays: tuple[Inputs] | tuple[Inputs, Pulled],
    results: Mapping[str, jnp.dtype],
) -> list[Array]:
  """Runs one of the kernels that `flash` documents.

  The grid runs over rows, heads, blocks of queries and blocks of slots. For the
  gradients of the segment the last two are swapped.
  """
  inputs, *_ = arrays
  r, k, width, m = inputs.queries.shape
  blocks = _blocks(inputs)
  slots_outside = kernel == "backward_segment"
  steps = m // blocks.queries, blocks.across
  specs = _specs(width, blocks, slots_outside=slots_outside)
  by_field = specs[0]._asdict() | specs[1]._asdict()
  row, wide = (1, blocks.queries), (width, blocks.queries)
  run_block, sums = {
      "forward": (_forward_kernel, [row, row, wide]),
      "backward_queries": (_queries_kernel, [wide]),
      "backward_segment": (
          _segment_kernel,
          [(width, blocks.slots), (blocks.slots, width)],
      ),
  }[kernel]
  return pl.pallas_call(
      functools.partial(run_block, form, blocks),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=2,
          grid=(r, k, *(steps[::-1] if slots_outside else steps)),
          in_specs=specs[: len(arrays)],
          out_specs=[by_field[field] for field in results],
          scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in sums],
      ),
      out_shape=[inputs.result(*result) for result in results.items()],
      # Cores may split all axes of the grid but the last, which sums.
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=("parallel",) * 3 + ("arbitrary",)
      ),
      interpret=form.interpret,
      name=f"attention_{kernel}",
  )(*_reach(inputs.bounds, blocks), *arrays)


def _blocks(inputs: Inputs) -> Blocks:
  """Returns large blocks, since each grid step has a fixed cost."""
  m, length = inputs.queries.shape[-1], inputs.keys.shape[-1]
  wide = _MOST_QUERIES if m % _MOST_QUERIES == 0 else flash.LANES
  return Blocks(wide, min(length, _MOST_SLOTS), length)


def _reach(bounds: Array, blocks: Blocks) -> tuple[Array, Array]:
  """Returns int32[r · m / queries] twice: the first block of slots and the end.

  The arrays are flat, since the small memory of scalars would pad two axes.
  """
  rows, _, m = bounds.shape
  shape = (rows, m // blocks.queries, blocks.queries)
  low, high = bounds[:, 0].reshape(shape), bounds[:, 1].reshape(shape)
  last = pl.cdiv(jnp.max(high, axis=-1), blocks.slots)
  first = jnp.minimum(jnp.min(low, axis=-1) // blocks.slots, last)
  return first.reshape(-1), last.reshape(-1)


def _specs(
    width: int, blocks: Blocks, *, slots_outside: bool
) -> tuple[Inputs, Pulled]:
  """Returns the block of each array that a grid step reads or writes."""

  def query_block(step: tuple) -> Array:
    return step[3] if slots_outside else step[2]

  def slot_block(step: tuple) -> Array:
    if slots_outside:
      return step[2]
    # Pallas fetches a block only if its index changes. So a step that needs no
    # block keeps the index of one that is needed.
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

"""The kernels of `flash` for GPUs, which loop over blocks inside a program.

A program has one block of queries and loops over the blocks of slots that any
of them sees, or has one block of slots and loops over all queries.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from iapo_jax.core.types import Array
from iapo_jax.models import flash
from iapo_jax.models.flash import Blocks, Form, Inputs, Pulled

_QUERIES = 64
_SLOTS = 64


def run(
    kernel: str,
    form: Form,
    arrays: tuple[Inputs] | tuple[Inputs, Pulled],
    results: Mapping[str, jnp.dtype],
) -> list[Array]:
  """Runs one of the kernels that `flash` documents."""
  inputs, *_ = arrays
  r, k, _, m = inputs.queries.shape
  blocks = Blocks(_QUERIES, _SLOTS, inputs.keys.shape[-1])
  by_slots = kernel == "backward_segment"
  specs = _specs(inputs, blocks, all_queries=by_slots)
  by_field = specs[0]._asdict() | specs[1]._asdict()
  run_block = {
      "forward": _forward_kernel,
      "backward_queries": _queries_kernel,
      "backward_segment": _segment_kernel,
  }[kernel]
  return pl.pallas_call(
      functools.partial(run_block, form, blocks),
      grid=(blocks.across if by_slots else m // blocks.queries, k, r),
      in_specs=specs[: len(arrays)],
      out_specs=[by_field[field] for field in results],
      out_shape=[inputs.result(*result) for result in results.items()],
      compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
      interpret=form.interpret,
      name=f"attention_{kernel}",
  )(*arrays)


def _specs(
    inputs: Inputs, blocks: Blocks, *, all_queries: bool
) -> tuple[Inputs, Pulled]:
  """Returns the block of each array that a program sees.

  A program sees one block of queries or all of them, and all keys and values of
  a head, as if they were padded to whole blocks.
  """
  *_, width, m = inputs.queries.shape
  slots = blocks.across * blocks.slots
  size = m if all_queries else blocks.queries

  def whole(i: Array, c: Array, a: Array) -> tuple:
    return a, c, 0, 0

  def one(i: Array, c: Array, a: Array) -> tuple:
    return a, c, 0, i

  def queries(rows: int) -> pl.BlockSpec:
    """Returns the spec of an array [r, k, rows, m]."""
    return pl.BlockSpec(
        (None, None, rows, size), whole if all_queries else one
    )

  return (
      Inputs(
          queries(width),
          pl.BlockSpec((None, None, width, slots), whole),
          pl.BlockSpec((None, None, slots, width), whole),
          pl.BlockSpec(
              (None, 2, size),
              lambda i, c, a: (a, 0, 0 if all_queries else i),
          ),
      ),
      Pulled(queries(1), queries(1), queries(width)),
  )


def _forward_kernel(
    form: Form,
    blocks: Blocks,
    inputs: Inputs,
    output: jax.Ref,
    lse: jax.Ref,
) -> None:
  """Computes the output of a block of queries."""
  queries, limits = _queries(inputs, pl.ds(0, blocks.queries))

  def add(j: Array, so_far: flash.Softmax) -> flash.Softmax:
    block = Inputs(queries, *_load(inputs, j, blocks), limits)
    return flash.add(form, block, j * blocks.slots, so_far)

  first, last = _reach(limits, blocks)
  start = flash.empty(*queries.shape)
  softmax = jax.lax.fori_loop(first, last, add, start)
  result, lse[...] = flash.finish(softmax)
  output[...] = result.astype(output.dtype)


def _queries_kernel(
    form: Form,
    blocks: Blocks,
    inputs: Inputs,
    pulled: Pulled,
    to_queries: jax.Ref,
) -> None:
  """Computes the gradient of a block of queries."""
  queries, limits = _queries(inputs, pl.ds(0, blocks.queries))
  pull = Pulled(*(x[...] for x in pulled))

  def add(j: Array, so_far: Array) -> Array:
    keys, values = _load(inputs, j, blocks)
    block = Inputs(queries, keys, values, limits)
    _, to_scores = flash.gradients(form, block, pull, j * blocks.slots)
    return so_far + flash.product(keys, to_scores.astype(keys.dtype), 1, 0)

  first, last = _reach(limits, blocks)
  zeros = jnp.zeros(queries.shape, jnp.float32)
  total = jax.lax.fori_loop(first, last, add, zeros)
  to_queries[...] = form.scale * total


def _segment_kernel(
    form: Form,
    blocks: Blocks,
    inputs: Inputs,
    pulled: Pulled,
    to_keys: jax.Ref,
    to_values: jax.Ref,
) -> None:
  """Computes the gradients of a block of slots."""
  j = pl.program_id(0)
  k, v = _load(inputs, j, blocks)
  start = j * blocks.slots

  def add(i: Array, so_far: tuple[Array, Array]) -> tuple[Array, Array]:
    part = pl.ds(i * blocks.queries, blocks.queries)
    q, limits = _queries(inputs, part)
    pull = Pulled(*(x[:, part] for x in pulled))
    block = Inputs(q, k, v, limits)
    weights, to_scores = flash.gradients(form, block, pull, start)
    to_k = flash.product(q, to_scores.astype(q.dtype), 1, 1)
    to_v = flash.product(weights.astype(v.dtype), pull.gradient, 1, 1)
    return so_far[0] + to_k, so_far[1] + to_v

  zeros = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
  turns = inputs.queries.shape[-1] // blocks.queries
  to_k, to_v = jax.lax.fori_loop(0, turns, add, zeros)
  part, across, down = _part(j, k.shape[0], blocks)
  to_k = (form.scale * to_k).astype(to_keys.dtype)
  triton.store(to_keys.at[:, part], to_k, mask=across)
  triton.store(to_values.at[part, :], to_v.astype(to_values.dtype), mask=down)


def _queries(
    inputs: Inputs, part: pl.Slice
) -> tuple[Array, tuple[Array, Array]]:
  """Returns the queries [h, queries] of a slice, and their low and high."""
  low, high = (inputs.bounds[row, part][None] for row in range(2))
  return inputs.queries[:, part], (low, high)


def _reach(
    limits: tuple[Array, Array], blocks: Blocks
) -> tuple[Array, Array]:
  """Returns the first block of slots that any query sees, and the end."""
  low, high = limits
  last = (jnp.max(high) + blocks.slots - 1) // blocks.slots
  return jnp.minimum(jnp.min(low) // blocks.slots, last), last


def _load(inputs: Inputs, j: Array, blocks: Blocks) -> tuple[Array, Array]:
  """Returns [h, slots] and [slots, h] of block j, 0 beyond the segment."""
  keys, values = inputs.keys, inputs.values
  part, across, down = _part(j, keys.shape[0], blocks)
  if not blocks.ragged:
    return keys[:, part], values[part, :]
  return (
      triton.load(keys.at[:, part], mask=across, other=0.0),
      triton.load(values.at[part, :], mask=down, other=0.0),
  )


def _part(
    j: Array, width: int, blocks: Blocks
) -> tuple[pl.Slice, Array | None, Array | None]:
  """Returns the slots of block j and masks [h, slots], [slots, h] of them."""
  part = pl.ds(j * blocks.slots, blocks.slots)
  if not blocks.ragged:
    return part, None, None
  there = j * blocks.slots + jnp.arange(blocks.slots) < blocks.length
  shape = (width, blocks.slots)
  return (
      part,
      jnp.broadcast_to(there[None], shape),
      jnp.broadcast_to(there[:, None], shape[::-1]),
  )

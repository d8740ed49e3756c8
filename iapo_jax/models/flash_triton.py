"""The kernels of `flash` for GPUs, which loop over blocks inside a program.

A program has one block of queries and loops over the blocks of slots that any
of them sees, or has one block of slots and loops over all queries.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from iapo_jax.core.types import Array
from iapo_jax.models import flash
from iapo_jax.models.flash import Blocks, Form

_QUERIES = 64
_SLOTS = 64


def forward(
    form: Form,
    queries: Array,
    keys: Array,
    values: Array,
    bounds: Array,
    dtype: jnp.dtype,
) -> tuple[Array, Array]:
  """Arguments and results are those that `flash` documents."""
  blocks = Blocks(_QUERIES, _SLOTS, keys.shape[-1])
  r, k, width, m = queries.shape
  block, whole = _block_of_queries, _whole_segment(blocks, width)
  return _call(
      form,
      functools.partial(_forward_kernel, form, blocks),
      grid=(m // _QUERIES, k, r),
      in_specs=[block(width), *whole, _block_of_bounds()],
      out_specs=[block(width), block(1)],
      out_shape=[
          jax.ShapeDtypeStruct(queries.shape, dtype),
          jax.ShapeDtypeStruct((r, k, 1, m), jnp.float32),
      ],
      name="attention_forward",
  )(queries, keys, values, bounds)


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
  blocks = Blocks(_QUERIES, _SLOTS, keys.shape[-1])
  r, k, width, m = queries.shape
  block, whole = _block_of_queries, _whole_segment(blocks, width)
  return _call(
      form,
      functools.partial(_queries_kernel, form, blocks),
      grid=(m // _QUERIES, k, r),
      in_specs=[
          block(width), *whole, _block_of_bounds(), block(1), block(1),
          block(width),
      ],
      out_specs=block(width),
      out_shape=jax.ShapeDtypeStruct(queries.shape, jnp.float32),
      name="attention_backward_queries",
  )(queries, keys, values, bounds, lse, delta, gradient)  # fmt: skip


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
  blocks = Blocks(_QUERIES, _SLOTS, keys.shape[-1])
  r, k, width, m = queries.shape
  whole = _whole_segment(blocks, width)

  def all_queries(width: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, width, m), lambda j, c, a: (a, c, 0, 0))

  limits = pl.BlockSpec((None, 2, m), lambda j, c, a: (a, 0, 0))
  return _call(
      form,
      functools.partial(_segment_kernel, form, blocks),
      grid=(blocks.across, k, r),
      in_specs=[
          all_queries(width), *whole, limits, all_queries(1), all_queries(1),
          all_queries(width),
      ],
      out_specs=list(whole),
      out_shape=[
          jax.ShapeDtypeStruct(keys.shape, keys.dtype),
          jax.ShapeDtypeStruct(values.shape, values.dtype),
      ],
      name="attention_backward_segment",
  )(queries, keys, values, bounds, lse, delta, gradient)  # fmt: skip


def _call(
    form: Form, kernel: Callable[..., None], *, in_specs: list, **rest: object
) -> Callable[..., list[Array]]:
  """Calls a kernel with the options that all of them share."""
  return pl.pallas_call(
      kernel,
      in_specs=in_specs,
      compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
      interpret=form.interpret,
      **rest,
  )


def _block_of_queries(width: int) -> pl.BlockSpec:
  """Returns the spec of an array [r, k, width, m]."""
  return pl.BlockSpec(
      (None, None, width, _QUERIES), lambda i, c, a: (a, c, 0, i)
  )


def _block_of_bounds() -> pl.BlockSpec:
  return pl.BlockSpec((None, 2, _QUERIES), lambda i, c, a: (a, 0, i))


def _whole_segment(
    blocks: Blocks, width: int
) -> tuple[pl.BlockSpec, pl.BlockSpec]:
  """Returns the specs of keys and values, padded to whole blocks."""
  slots = blocks.across * blocks.slots

  def head(i: Array, c: Array, a: Array) -> tuple:
    return a, c, 0, 0

  return (
      pl.BlockSpec((None, None, width, slots), head),
      pl.BlockSpec((None, None, slots, width), head),
  )


def _forward_kernel(
    form: Form,
    blocks: Blocks,
    queries: jax.Ref,
    keys: jax.Ref,
    values: jax.Ref,
    bounds: jax.Ref,
    output: jax.Ref,
    lse: jax.Ref,
) -> None:
  """Computes the output of a block of queries."""
  q, limits = queries[...], _limits(bounds, pl.ds(0, blocks.queries))

  def add(j: Array, so_far: flash.Softmax) -> flash.Softmax:
    k, v = _load(keys, values, j, blocks)
    return flash.add(form, q, k, v, limits, j * blocks.slots, so_far)

  first, last = _reach(limits, blocks)
  softmax = jax.lax.fori_loop(first, last, add, flash.empty(*q.shape))
  result, lse[...] = flash.finish(softmax)
  output[...] = result.astype(output.dtype)


def _queries_kernel(
    form: Form,
    blocks: Blocks,
    queries: jax.Ref,
    keys: jax.Ref,
    values: jax.Ref,
    bounds: jax.Ref,
    lse: jax.Ref,
    delta: jax.Ref,
    gradient: jax.Ref,
    to_queries: jax.Ref,
) -> None:
  """Computes the gradient of a block of queries."""
  q, limits = queries[...], _limits(bounds, pl.ds(0, blocks.queries))
  sums = lse[...], delta[...], gradient[...]

  def add(j: Array, so_far: Array) -> Array:
    k, v = _load(keys, values, j, blocks)
    start = j * blocks.slots
    _, to_scores = flash.gradients(form, q, k, v, limits, *sums, start)
    return so_far + flash.product(k, to_scores.astype(k.dtype), 1, 0)

  first, last = _reach(limits, blocks)
  zeros = jnp.zeros(q.shape, jnp.float32)
  total = jax.lax.fori_loop(first, last, add, zeros)
  to_queries[...] = form.scale * total


def _segment_kernel(
    form: Form,
    blocks: Blocks,
    queries: jax.Ref,
    keys: jax.Ref,
    values: jax.Ref,
    bounds: jax.Ref,
    lse: jax.Ref,
    delta: jax.Ref,
    gradient: jax.Ref,
    to_keys: jax.Ref,
    to_values: jax.Ref,
) -> None:
  """Computes the gradients of a block of slots."""
  j = pl.program_id(0)
  k, v = _load(keys, values, j, blocks)
  start = j * blocks.slots

  def add(i: Array, so_far: tuple[Array, Array]) -> tuple[Array, Array]:
    part = pl.ds(i * blocks.queries, blocks.queries)
    q, to_output = queries[:, part], gradient[:, part]
    weights, to_scores = flash.gradients(
        form, q, k, v, _limits(bounds, part), lse[:, part], delta[:, part],
        to_output, start,
    )  # fmt: skip
    to_k = flash.product(q, to_scores.astype(q.dtype), 1, 1)
    to_v = flash.product(weights.astype(v.dtype), to_output, 1, 1)
    return so_far[0] + to_k, so_far[1] + to_v

  zeros = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
  turns = queries.shape[-1] // blocks.queries
  to_k, to_v = jax.lax.fori_loop(0, turns, add, zeros)
  part, across, down = _part(j, k.shape[0], blocks)
  to_k = (form.scale * to_k).astype(to_keys.dtype)
  triton.store(to_keys.at[:, part], to_k, mask=across)
  triton.store(to_values.at[part, :], to_v.astype(to_values.dtype), mask=down)


def _limits(bounds: jax.Ref, part: pl.Slice) -> tuple[Array, Array]:
  """Returns low and high of some queries, int32[1, queries] each."""
  return bounds[0, part][None], bounds[1, part][None]


def _reach(
    limits: tuple[Array, Array], blocks: Blocks
) -> tuple[Array, Array]:
  """Returns the first block of slots that any query sees, and the end."""
  low, high = limits
  last = (jnp.max(high) + blocks.slots - 1) // blocks.slots
  return jnp.minimum(jnp.min(low) // blocks.slots, last), last


def _load(
    keys: jax.Ref, values: jax.Ref, j: Array, blocks: Blocks
) -> tuple[Array, Array]:
  """Returns [h, slots] and [slots, h] of block j, 0 beyond the segment."""
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

"""Makes micro-batches of completions of similar length, by a token budget.

Programs have fixed shapes; completions do not. So completions are sorted by
length on each data shard, and a loop takes them, longest first. It cuts the
completions of a micro-batch to the shortest of a few lengths that holds them
all. Shorter completions make larger micro-batches. The number of micro-batches
depends on the lengths; the program does not.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from iapo_jax.core import sharding
from iapo_jax.core.types import Array, PyTree

# (m rows of the batch, bool[m] whether each counts, the length that its
# completions are cut to) -> (terms of the sums, fp32[m, length])
Step = Callable[[PyTree, Array, int], tuple[PyTree, Array]]


@struct.dataclass
class _Loop:
  """The loop's carry.

  Attributes:
    index: int32[], number of rows taken from each shard.
    total: the sums so far.
    found: fp32[shards, rows, t], results per token.
  """

  index: Array
  total: PyTree
  found: Array


def run(
    step: Step,
    total: PyTree,
    batch: PyTree,
    lengths: Array,
    *,
    parts: int,
    max_tokens: int,
) -> tuple[PyTree, Array]:
  """Runs `step` over a batch, one micro-batch at a time.

  Rows that do not count are copies: `step` must leave them out of its sums.
  `total` holds the zeros that the sums begin with. `batch` has b rows, a
  multiple of `parts` times the data shards. Completions of `max_tokens` tokens
  make `parts` micro-batches.

  Returns:
    The sums over the batch, and fp32[b, t], 0 after the cut of each row.
  """
  shards = sharding.data_shards()
  local = lengths.shape[0] // shards
  sizes = cuts(max_tokens)
  full = local // parts * max_tokens
  counts = [min(local, full // size) for size in sizes]
  # A micro-batch may reach beyond the last row.
  spare = max(counts) - 1 if len(counts) > 1 else 0
  lengths = lengths.reshape(shards, local)
  order = jnp.argsort(-lengths, axis=1)
  needed = jnp.max(jnp.take_along_axis(lengths, order, axis=1), axis=0)
  ordered = jax.tree.map(
      functools.partial(_sorted, order=order, spare=spare), batch
  )
  branches = [
      functools.partial(_micro_batch, step, ordered, local, size, count)
      for size, count in zip(sizes, counts, strict=True)
  ]

  def body(loop: _Loop) -> _Loop:
    if len(branches) == 1:
      return branches[0](loop)
    fits = jnp.searchsorted(jnp.asarray(sizes), needed[loop.index])
    return jax.lax.switch(fits, branches, loop)

  found = jnp.zeros((shards, local + spare, max_tokens), jnp.float32)
  found = sharding.constrain(found, "batch", None, None)
  loop = jax.lax.while_loop(
      lambda loop: loop.index < local, body, _Loop(jnp.int32(0), total, found)
  )
  back = jnp.argsort(order, axis=1)[..., None]
  found = jnp.take_along_axis(loop.found, back, axis=1)
  return loop.total, found.reshape(-1, max_tokens)


def _micro_batch(
    step: Step, ordered: PyTree, rows: int, size: int, count: int, loop: _Loop
) -> _Loop:
  """Runs the next `count` of each shard's `rows`, cut to `size` tokens."""
  shards, _, longest = loop.found.shape
  there = loop.index + jnp.arange(count) < rows
  there = jnp.broadcast_to(there, (shards, count)).reshape(-1)
  part = jax.tree.map(
      functools.partial(_part, index=loop.index, count=count), ordered
  )
  added, found = step(part, there, size)
  found = found.reshape(shards, count, size)
  found = jnp.pad(found, [(0, 0), (0, 0), (0, longest - size)])
  return _Loop(
      index=loop.index + count,
      total=jax.tree.map(jnp.add, loop.total, added),
      found=jax.lax.dynamic_update_slice_in_dim(
          loop.found, found, loop.index, axis=1
      ),
  )


def cuts(max_tokens: int) -> list[int]:
  """Returns the lengths that completions are cut to, in ascending order.

  These are quarters of a long `max_tokens`. The step is compiled once for each
  length. Short completions are not cut: that would save less time than the
  compiler takes.
  """
  parts = 4 if max_tokens >= 256 else 1
  return [max_tokens * (n + 1) // parts for n in range(parts)]


def _sorted(x: Array, order: Array, spare: int) -> Array:
  """Sorts into [shards, rows + spare, ...]; the last row fills the spare."""
  shards, rows = order.shape
  x = x.reshape(shards, rows, *x.shape[1:])
  index = order.reshape(shards, rows, *(1,) * (x.ndim - 2))
  x = jnp.take_along_axis(x, index, axis=1)
  widths = [(0, 0), (0, spare)] + [(0, 0)] * (x.ndim - 2)
  return jnp.pad(x, widths, mode="edge")


def _part(x: Array, index: Array, count: int) -> Array:
  """Takes `count` rows of each shard: [shards · count, ...]."""
  x = jax.lax.dynamic_slice_in_dim(x, index, count, axis=1)
  x = x.reshape(-1, *x.shape[2:])
  return sharding.constrain(x, "batch", *(None,) * (x.ndim - 1))

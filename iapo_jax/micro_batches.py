"""A batch in micro-batches: groups of like length, by a budget of tokens.

Programs have fixed shapes and completions have all lengths. So groups are
sorted by their longest completion, on each data shard for itself, and a loop
takes them from the longest on: completions are cut to the shortest of a few
lengths that holds those of a micro-batch, and the shorter they are the more
groups it has. How many micro-batches a batch makes depends on its lengths; the
program does not.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from iapo_jax import sharding
from iapo_jax.types import Array, PyTree

# (a part of the batch, bool[m] which of its rows count, the length that its
# completions are cut to) -> (what is summed, fp32[m, length])
Step = Callable[[PyTree, Array, int], tuple[PyTree, Array]]


@struct.dataclass
class _Loop:
  """The loop's carry.

  Attributes:
    index: int32[], groups of each shard that were taken.
    total: what was summed.
    rows: fp32[shards, groups, g, t], what was found of each token.
  """

  index: Array
  total: PyTree
  rows: Array


def run(
    step: Step,
    total: PyTree,
    batch: PyTree,
    lengths: Array,
    *,
    groups: int,
    parts: int,
    prompt_tokens: int,
    max_tokens: int,
) -> tuple[PyTree, Array]:
  """Runs `step` over a batch, a micro-batch at a time.

  Args:
    step: of a micro-batch. It must leave rows that do not count out of its
      sums: they are copies.
    total: zeros that the sums begin with.
    batch: arrays with a row for each group, or for each of its sequences.
    lengths: int32[b], of the completions.
    groups: q, a multiple of `parts` times the data shards.
    parts: how many micro-batches completions of `max_tokens` make.
    prompt_tokens: p, what a group counts beside its completions.
    max_tokens: t.

  Returns:
    The sums over the batch, and fp32[b, t], 0 beyond what was computed.
  """
  shards, group = sharding.data_shards(), lengths.shape[0] // groups
  local = groups // shards
  sizes = cuts(max_tokens)
  full = local // parts * (group * max_tokens + prompt_tokens)
  counts = [
      min(local, full // (group * size + prompt_tokens)) for size in sizes
  ]
  # A micro-batch may reach beyond the last group.
  spare = max(counts) - 1 if len(counts) > 1 else 0
  longest = jnp.max(lengths.reshape(shards, local, group), axis=-1)
  order = jnp.argsort(-longest, axis=1)
  needed = jnp.max(jnp.take_along_axis(longest, order, axis=1), axis=0)
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

  rows = jnp.zeros((shards, local + spare, group, max_tokens), jnp.float32)
  rows = sharding.constrain(rows, "batch", None, None, None)
  loop = jax.lax.while_loop(
      lambda loop: loop.index < local, body, _Loop(jnp.int32(0), total, rows)
  )
  back = jnp.argsort(order, axis=1)[..., None, None]
  rows = jnp.take_along_axis(loop.rows, back, axis=1)
  return loop.total, rows.reshape(-1, max_tokens)


def _micro_batch(
    step: Step,
    ordered: PyTree,
    groups: int,
    size: int,
    count: int,
    loop: _Loop,
) -> _Loop:
  """Runs the next `count` of each shard's `groups`, cut to `size` tokens."""
  shards, _, group, longest = loop.rows.shape
  there = loop.index + jnp.arange(count) < groups
  there = jnp.broadcast_to(there[:, None], (shards, count, group))
  part = jax.tree.map(
      functools.partial(_part, index=loop.index, count=count), ordered
  )
  added, rows = step(part, there.reshape(-1), size)
  rows = rows.reshape(shards, count, group, size)
  rows = jnp.pad(rows, [(0, 0)] * 3 + [(0, longest - size)])
  return _Loop(
      index=loop.index + count,
      total=jax.tree.map(jnp.add, loop.total, added),
      rows=jax.lax.dynamic_update_slice_in_dim(
          loop.rows, rows, loop.index, axis=1
      ),
  )


def cuts(max_tokens: int) -> list[int]:
  """To which lengths completions are cut; each is a program of its own.

  Quarters where completions are long, and no cuts where they are short: then
  what is saved is not worth to wait for the compiler.
  """
  parts = 4 if max_tokens >= 256 else 1
  return [max_tokens * (n + 1) // parts for n in range(parts)]


def _sorted(x: Array, order: Array, spare: int) -> Array:
  """[shards, groups + spare, rows of a group, ...], sorted."""
  shards, groups = order.shape
  x = x.reshape(shards, groups, -1, *x.shape[1:])
  index = order.reshape(shards, groups, *(1,) * (x.ndim - 2))
  x = jnp.take_along_axis(x, index, axis=1)
  widths = [(0, 0), (0, spare)] + [(0, 0)] * (x.ndim - 2)
  return jnp.pad(x, widths, mode="edge")


def _part(x: Array, index: Array, count: int) -> Array:
  """[shards · count · rows of a group, ...] of some groups of each shard."""
  x = jax.lax.dynamic_slice_in_dim(x, index, count, axis=1)
  x = x.reshape(-1, *x.shape[3:])
  return sharding.constrain(x, "batch", *(None,) * (x.ndim - 1))

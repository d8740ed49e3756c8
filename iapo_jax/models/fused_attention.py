"""Attention over several segments that holds one block of scores at a time.

Computes the same as `attention.attend`, with kernels for accelerators
(`models.flash`). The kernels reduce each segment to an output and a
log-sum-exp, and these are merged. The backward pass uses the merged output and
log-sum-exp. With them the gradients of a segment do not depend on the other
segments. So nothing is kept per segment, and no gradient flows through the
merge.
"""

import functools
import types

import chex
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from iapo_jax.config import model as model_config
from iapo_jax.core import sharding
from iapo_jax.core.types import Array
from iapo_jax.models import attention, blocks, flash, flash_mosaic

_QUERIES = P("batch", None, "heads", None)
_LSE = P("batch", None, "heads")
_PAIR = (P("batch", "kv_heads"), P("batch", "kv_heads"))
_BOUNDS = P("batch")


def chosen(kind: str, platform: str) -> bool:
  """Returns whether to fuse attention, for `ModelConfig.attention`."""
  by_itself = platform in model_config.AUTO_FUSED
  return kind == "fused" or (kind == "auto" and by_itself)


def attend(
    queries: Array,
    segments: list[attention.Segment],
    *,
    scale: float,
    cap: float = 0.0,
    kernels: str = "",
) -> Array:
  """Computes the same as `attention.attend`.

  The visible slots of a segment must be a run without gaps. Under a mesh each
  device computes its rows and heads. If the rows of a segment do not split
  evenly over the data shards, this calls `attention.attend`.

  Args:
    queries: [b, x, n, h].
    segments: keys, values and mask of each.
    scale: factor of the products.
    cap: soft cap of the scores; 0 means none.
    kernels: `gpu` or `tpu`; by default the platform of the devices. A CPU
      interprets the kernels, slowly.

  Returns:
    [b, x, n, h] in the dtype of `queries`.
  """
  chex.assert_rank(queries, 4)
  shards = sharding.data_shards()
  if any(keys.shape[0] % shards for keys, _, _ in segments):
    return attention.attend(queries, segments, scale=scale, cap=cap)
  interpret = sharding.platform() == "cpu"
  form = flash.Form(scale, cap, kernels or sharding.platform(), interpret)
  pairs = tuple((keys, values) for keys, values, _ in segments)
  bounds = tuple(
      _all_bounds(mask, *queries.shape[:2]) for _, _, mask in segments
  )
  return _attend(form, queries, pairs, bounds)


def _all_bounds(mask: attention.Mask | Array, b: int, x: int) -> Array:
  """Returns the `_bounds` of all queries, masks made as in `attention`."""
  if not isinstance(mask, attention.Mask):
    mask = attention.Mask(mask)
  block = attention.block_size(x, mask.visible.shape[2])
  if block >= x:
    return _bounds(mask.of(0, x), b, x)
  mask = mask.padded(-x % block)
  found = jax.lax.map(
      lambda start: _bounds(mask.of(start, block), b, block),
      jnp.arange(0, x, block),
  )
  return blocks.join(found, x)


def _bounds(visible: Array, b: int, x: int) -> Array:
  """Returns int32[b, x, 2]: the first visible slot, and the last plus one."""
  m, _, s = visible.shape
  slots = jnp.arange(s, dtype=jnp.int32)
  low = jnp.min(jnp.where(visible, slots, s), axis=-1)
  high = jnp.max(jnp.where(visible, slots + 1, 0), axis=-1)
  bounds = jnp.stack([low, high], axis=-1)[:, None]
  return jnp.broadcast_to(bounds, (m, b // m, x, 2)).reshape(b, x, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    form: flash.Form,
    queries: Array,
    pairs: attention.Pairs,
    bounds: tuple[Array, ...],
) -> Array:
  """Attends with bounds int32[b, x, 2] instead of masks."""
  return _forward(form, queries, pairs, bounds)[0]


def _forward(
    form: flash.Form,
    queries: Array,
    pairs: attention.Pairs,
    bounds: tuple[Array, ...],
) -> tuple[Array, tuple]:
  """Returns the output [b, x, n, h] and the residuals of the backward pass."""
  count = len(pairs)
  run = sharding.per_shard(
      functools.partial(_forward_shard, form),
      (_QUERIES, (_PAIR,) * count, (_BOUNDS,) * count),
      (_QUERIES, _LSE),
  )
  output, lse = (
      checkpoint_name(x, name)
      for x, name in zip(
          run(queries, pairs, bounds), attention.KEPT, strict=True
      )
  )
  return output, (queries, pairs, bounds, output, lse)


def _backward(
    form: flash.Form, saved: tuple, gradient: Array
) -> tuple[Array, attention.Pairs, None]:
  """Computes the gradients of queries, keys and values."""
  count = len(saved[1])
  run = sharding.per_shard(
      functools.partial(_backward_shard, form),
      (
          _QUERIES, (_PAIR,) * count, (_BOUNDS,) * count, _QUERIES, _LSE,
          _QUERIES,
      ),
      (_QUERIES, (_PAIR,) * count),
  )
  to_queries, to_pairs = run(*saved, gradient)
  return to_queries, to_pairs, None


_attend.defvjp(_forward, _backward)


def _forward_shard(
    form: flash.Form,
    queries: Array,
    pairs: attention.Pairs,
    bounds: tuple[Array, ...],
) -> tuple[Array, Array]:
  """Computes one device's output [b, x, n, h] and lse fp32[b, x, n]."""
  dtype = jnp.float32 if len(pairs) > 1 else queries.dtype
  parts = []
  for (keys, values), limits in zip(pairs, bounds, strict=True):
    layout = _Layout(queries, keys)
    inputs = layout.inputs(queries, keys, values, limits)
    output, lse = _kernels(form).run(
        "forward", form, (inputs,), {"queries": dtype, "lse": jnp.float32}
    )
    parts.append((layout.join(output), layout.join(lse)))
  top = functools.reduce(jnp.maximum, (lse for _, lse in parts))
  total = sum(jnp.exp(lse - top) for _, lse in parts)
  lse = top + jnp.log(total)
  if len(parts) == 1:
    return parts[0][0], lse[..., 0]
  output = sum(jnp.exp(part - lse) * output for output, part in parts)
  return output.astype(queries.dtype), lse[..., 0]


def _backward_shard(
    form: flash.Form,
    queries: Array,
    pairs: attention.Pairs,
    bounds: tuple[Array, ...],
    output: Array,
    lse: Array,
    gradient: Array,
) -> tuple[Array, attention.Pairs]:
  """Computes the gradients of one device's queries, keys and values."""
  run = _kernels(form).run
  product = output.astype(jnp.float32) * gradient.astype(jnp.float32)
  delta = jnp.sum(product, axis=-1, keepdims=True)
  to_queries, to_pairs = 0.0, []
  for (keys, values), limits in zip(pairs, bounds, strict=True):
    layout = _Layout(queries, keys)
    inputs = layout.inputs(queries, keys, values, limits)
    pulled = flash.Pulled(
        *map(layout.spread, (lse[..., None], delta, gradient))
    )
    arrays = inputs, pulled
    (part,) = run("backward_queries", form, arrays, {"queries": jnp.float32})
    to_queries += layout.join(part)
    dtypes = {"keys": keys.dtype, "values": values.dtype}
    to_pairs.append(tuple(run("backward_segment", form, arrays, dtypes)))
  return to_queries.astype(queries.dtype), tuple(to_pairs)


def _kernels(form: flash.Form) -> types.ModuleType:
  """Returns the module with the kernels that `flash` documents."""
  if form.platform != "gpu":
    return flash_mosaic
  # Imported only if needed: JAX 0.12 warns that it will remove this backend.
  from iapo_jax.models import flash_triton

  return flash_triton


class _Layout:
  """The layout of queries in the kernels: one axis m per segment row and head.

  Heads that share keys, and rows that share a segment row, become further
  queries. So a block of keys is read once for all of them.
  """

  def __init__(self, queries: Array, keys: Array) -> None:
    self._b, self._x, self._n, _ = queries.shape
    self._r, self._k = keys.shape[:2]
    self._m = self._b // self._r * self._n // self._k * self._x
    self._padding = -self._m % flash.LANES

  def inputs(
      self, queries: Array, keys: Array, values: Array, bounds: Array
  ) -> flash.Inputs:
    """Returns the inputs of the kernels; queries are [b, x, n, h]."""
    return flash.Inputs(
        self.spread(queries), keys, values, self._limits(bounds)
    )

  def spread(self, y: Array) -> Array:
    """Maps [b, x, n, c] to [r, k, c, m], padded with 0."""
    r, k, c = self._r, self._k, y.shape[-1]
    y = y.reshape(r, self._b // r, self._x, k, self._n // k, c)
    y = y.transpose(0, 3, 5, 1, 4, 2).reshape(r, k, c, self._m)
    return self._fill(y)

  def join(self, y: Array) -> Array:
    """Inverts `spread`."""
    r, k, c = self._r, self._k, y.shape[2]
    y = y[..., : self._m]
    y = y.reshape(r, k, c, self._b // r, self._n // k, self._x)
    return y.transpose(0, 3, 5, 1, 4, 2).reshape(self._b, self._x, self._n, c)

  def _limits(self, bounds: Array) -> Array:
    """Maps int32[b, x, 2] to int32[r, 2, m]; padding sees nothing."""
    r, heads = self._r, self._n // self._k
    shape = (r, self._b // r, heads, self._x, 2)
    y = bounds.reshape(r, self._b // r, 1, self._x, 2)
    y = jnp.broadcast_to(y, shape).transpose(0, 4, 1, 2, 3)
    return self._fill(y.reshape(r, 2, self._m))

  def _fill(self, y: Array) -> Array:
    widths = [(0, 0)] * (y.ndim - 1) + [(0, self._padding)]
    return jnp.pad(y, widths)

"""Attention over several segments that never holds more than a block of scores.

The same function as `attention.attend`, for accelerators. Every segment is
reduced by kernels (`models.flash`) to its output and the logarithm of its sum
of exponentials, and these are merged. The backward pass has one logarithm and
one output, those of all segments together: with them a segment's gradients
need nothing of the other segments, so that nothing is kept a segment at a time
and no gradient flows through the merge.
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
from iapo_jax.models import attention, flash, flash_mosaic

# Keys and values of each segment.
Pairs = tuple[tuple[Array, Array], ...]

_QUERIES = P("batch", None, "heads", None)
_LSE = P("batch", None, "heads")
_PAIR = (P("batch", "kv_heads"), P("batch", "kv_heads"))
_BOUNDS = P("batch")


def chosen(kind: str, platform: str) -> bool:
  """Whether attention is fused.

  Args:
    kind: `ModelConfig.attention`.
    platform: of the devices: `cpu`, `gpu` or `tpu`.
  """
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
  """One softmax over the slots of all segments, as `attention.attend`.

  What a query sees of a segment must be a run of slots without gaps. Under a
  mesh every device has its own rows and heads; where segment rows do not
  divide among the devices, `attention.attend` does the work.

  Args:
    queries: [b, x, n, h].
    segments: their keys, values and visibility.
    scale: times the products.
    cap: of the scores; 0 leaves them.
    kernels: of which platform, `gpu` or `tpu`; by default that of the devices.
      On a CPU they are interpreted, slowly.

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
      _bounds(visible, *queries.shape[:2]) for _, _, visible in segments
  )
  return _attend(form, queries, pairs, bounds)


def _bounds(visible: Array, b: int, x: int) -> Array:
  """int32[b, x, 2]: the first slot that is seen, and the one after the last."""
  m, _, s = visible.shape
  slots = jnp.arange(s, dtype=jnp.int32)
  low = jnp.min(jnp.where(visible, slots, s), axis=-1)
  high = jnp.max(jnp.where(visible, slots + 1, 0), axis=-1)
  bounds = jnp.stack([low, high], axis=-1)[:, None]
  return jnp.broadcast_to(bounds, (m, b // m, x, 2)).reshape(b, x, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    form: flash.Form, queries: Array, pairs: Pairs, bounds: tuple[Array, ...]
) -> Array:
  """`attend` with bounds int32[b, x, 2] instead of masks."""
  return _forward(form, queries, pairs, bounds)[0]


def _forward(
    form: flash.Form, queries: Array, pairs: Pairs, bounds: tuple[Array, ...]
) -> tuple[Array, tuple]:
  """The output [b, x, n, h], and what the backward pass needs."""
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
) -> tuple[Array, Pairs, None]:
  """The gradients of queries, keys and values."""
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
    form: flash.Form, queries: Array, pairs: Pairs, bounds: tuple[Array, ...]
) -> tuple[Array, Array]:
  """Output [b, x, n, h] and lse fp32[b, x, n] of one device's rows, heads."""
  dtype = jnp.float32 if len(pairs) > 1 else queries.dtype
  parts = []
  for (keys, values), limits in zip(pairs, bounds, strict=True):
    layout = _Layout(queries, keys)
    output, lse = _kernels(form).forward(
        form, layout.spread(queries), keys, values, layout.limits(limits), dtype
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
    pairs: Pairs,
    bounds: tuple[Array, ...],
    output: Array,
    lse: Array,
    gradient: Array,
) -> tuple[Array, Pairs]:
  """Gradients of one device's queries, keys and values."""
  kernels = _kernels(form)
  product = output.astype(jnp.float32) * gradient.astype(jnp.float32)
  delta = jnp.sum(product, axis=-1, keepdims=True)
  to_queries, to_pairs = 0.0, []
  for (keys, values), limits in zip(pairs, bounds, strict=True):
    layout = _Layout(queries, keys)
    arrays = (
        layout.spread(queries), keys, values, layout.limits(limits),
        layout.spread(lse[..., None]), layout.spread(delta),
        layout.spread(gradient),
    )  # fmt: skip
    to_queries += layout.join(kernels.backward_queries(form, *arrays))
    to_pairs.append(tuple(kernels.backward_segment(form, *arrays)))
  return to_queries.astype(queries.dtype), tuple(to_pairs)


def _kernels(form: flash.Form) -> types.ModuleType:
  """The functions that `flash` describes."""
  if form.platform != "gpu":
    return flash_mosaic
  # Not before it is needed: JAX 0.12 says that this backend will be removed.
  from iapo_jax.models import flash_triton

  return flash_triton


class _Layout:
  """Queries as the kernels read them: those of a segment row and head as one.

  Heads that share keys, and rows that share a segment row, become further
  queries, so that a block of keys is read once for all of them.
  """

  def __init__(self, queries: Array, keys: Array) -> None:
    self._b, self._x, self._n, _ = queries.shape
    self._r, self._k = keys.shape[:2]
    self._m = self._b // self._r * self._n // self._k * self._x
    self._padding = -self._m % flash.LANES

  def spread(self, y: Array) -> Array:
    """[b, x, n, c] -> [r, k, c, m], 0 in what fills m up."""
    r, k, c = self._r, self._k, y.shape[-1]
    y = y.reshape(r, self._b // r, self._x, k, self._n // k, c)
    y = y.transpose(0, 3, 5, 1, 4, 2).reshape(r, k, c, self._m)
    return self._fill(y)

  def join(self, y: Array) -> Array:
    """The inverse of `spread`."""
    r, k, c = self._r, self._k, y.shape[2]
    y = y[..., : self._m]
    y = y.reshape(r, k, c, self._b // r, self._n // k, self._x)
    return y.transpose(0, 3, 5, 1, 4, 2).reshape(self._b, self._x, self._n, c)

  def limits(self, bounds: Array) -> Array:
    """int32[b, x, 2] -> int32[r, 2, m]; what fills m up sees nothing."""
    r, heads = self._r, self._n // self._k
    shape = (r, self._b // r, heads, self._x, 2)
    y = bounds.reshape(r, self._b // r, 1, self._x, 2)
    y = jnp.broadcast_to(y, shape).transpose(0, 4, 1, 2, 3)
    return self._fill(y.reshape(r, 2, self._m))

  def _fill(self, y: Array) -> Array:
    widths = [(0, 0)] * (y.ndim - 1) + [(0, self._padding)]
    return jnp.pad(y, widths)

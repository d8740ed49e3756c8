"""Attention of new tokens over several key/value segments, as one softmax."""

import contextlib

import chex
import jax
import jax.numpy as jnp
from flax import struct

Array = jax.Array

# (keys [r, k, h, s], values [r, k, s, h], visible bool[m, x or 1, s])
Segment = tuple[Array, Array, Array]


@struct.dataclass
class Part:
  """A softmax over the slots of one segment, not divided by its sum.

  Attributes:
    output: fp32[b, x, n, h], the sum over slots of exp(score − peak) · value.
    peak: fp32[b, x, n], the largest score; −∞ where no slot is visible.
    total: fp32[b, x, n], the sum over slots of exp(score − peak).
  """

  output: Array
  peak: Array
  total: Array


def matmul_precision(dtype: str) -> contextlib.AbstractContextManager:
  """While tracing: float32 products are products of float32.

  Accelerators by default round the factors of a float32 product to bfloat16
  or TF32, and "float32" would then say less than it promises.

  Args:
    dtype: the compute dtype.

  Returns:
    A context manager.
  """
  return jax.default_matmul_precision(
      "float32" if dtype == "float32" else "default"
  )


def windowed(
    visible: Array, window: Array, queries: Array, slots: Array
) -> Array:
  """bool[b, x, s]: the visible slots that lie in a query's window.

  Args:
    visible: bool[m, x or 1, s], m dividing b.
    window: int32[], how many tokens a token sees, itself included; 0 is all.
    queries: int32[b, x], positions of the new tokens.
    slots: int32[r, s], positions of a segment's slots, r dividing b.
  """
  (b, x), (r, s), m = queries.shape, slots.shape, visible.shape[0]
  distance = queries.reshape(r, b // r, x, 1) - slots.reshape(r, 1, 1, s)
  near = ((distance < window) | (window == 0)).reshape(m, b // m, x, s)
  return (visible[:, None] & near).reshape(b, x, s)


def attend(
    queries: Array,
    segments: list[Segment],
    *,
    scale: float,
    cap: float = 0.0,
) -> Array:
  """One softmax over the slots of all segments.

  A score is scale · query · key, and c · tanh(score / c) where there is a cap.

  A segment of r rows is read by b query rows where r divides b, as one matrix
  product per segment row: keys are never copied. Each segment is reduced by
  itself and what is left is merged, so that no scores change their layout.
  Scores, softmax and sums are fp32. Every query must see at least one slot of
  some segment.

  Args:
    queries: [b, x, n, h].
    segments: their keys, values and visibility.
    scale: times the products.
    cap: c; 0 leaves the scores.

  Returns:
    [b, x, n, h] in the dtype of `queries`.
  """
  chex.assert_rank(queries, 4)
  parts = [_part(queries, *segment, scale, cap) for segment in segments]
  return merge(parts).astype(queries.dtype)


def merge(parts: list[Part]) -> Array:
  """fp32[b, x, n, h]: Σ e^(peak − top) · output / Σ e^(peak − top) · total.

  Args:
    parts: of disjoint sets of slots; `top` is the largest of their peaks.
  """
  top = parts[0].peak
  for part in parts[1:]:
    top = jnp.maximum(top, part.peak)
  factors = [jnp.exp(part.peak - top) for part in parts]
  pairs = list(zip(factors, parts, strict=True))
  total = sum(factor * part.total for factor, part in pairs)
  return sum(
      (factor / total)[..., None] * part.output for factor, part in pairs
  )


def _part(
    queries: Array,
    keys: Array,
    values: Array,
    visible: Array,
    scale: float,
    cap: float,
) -> Part:
  """The softmax over one segment; arguments as of `attend`."""
  b, x, n, h = queries.shape
  r, k = keys.shape[:2]
  grouped = queries.reshape(r, b // r, x, k, n // k, h)
  scores = jnp.einsum(
      "rkmjxh,rkhs->rkmjxs",
      grouped.transpose(0, 3, 1, 4, 2, 5),
      keys,
      preferred_element_type=jnp.float32,
  )
  seen = _by_segment_row(visible, b, r)
  scores = jnp.where(seen, soft_cap(scale * scores, cap), -jnp.inf)
  peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1))
  # Where nothing is visible the peak is no number to subtract.
  finite = jnp.where(jnp.isfinite(peak), peak, 0.0)
  weights = jnp.exp(scores - finite[..., None])
  output = jnp.einsum(
      "rkmjxs,rksh->rkmjxh",
      weights.astype(values.dtype),
      values,
      preferred_element_type=jnp.float32,
  )

  def by_query(y: Array) -> Array:
    """[r, k, m, j, x, ...] -> [b, x, n, ...]."""
    rest = tuple(range(5, y.ndim))
    y = y.transpose(0, 2, 4, 1, 3, *rest)
    return y.reshape(b, x, n, *y.shape[5:])

  total = jnp.sum(weights, axis=-1)
  return Part(by_query(output), by_query(peak), by_query(total))


def _by_segment_row(visible: Array, b: int, r: int) -> Array:
  """bool[m, x or 1, s] as [r, 1, b / r, 1, x or 1, s]."""
  m, x, s = visible.shape
  rows = jnp.broadcast_to(visible[:, None], (m, b // m, x, s))
  return rows.reshape(r, 1, b // r, 1, x, s)


def soft_cap(scores: Array, cap: float) -> Array:
  """C · tanh(scores / c), which stays within ±c; `scores` where c is 0."""
  return cap * jnp.tanh(scores / cap) if cap else scores

"""Attention of new tokens over several key/value segments, as one softmax."""

import contextlib

import chex
import jax
import jax.numpy as jnp

Array = jax.Array

# (keys [r, s, k, h], values [r, s, k, h], visible bool[m, x or 1, s])
Segment = tuple[Array, Array, Array]


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

  A segment of r rows is read by b queries rows where r divides b, as one
  matrix product per segment row: keys are never copied. Scores, softmax and
  sums are fp32. Every query must see at least one slot of some segment.

  Args:
    queries: [b, x, n, h].
    segments: their keys, values and visibility.
    scale: times the products.
    cap: c; 0 leaves the scores.

  Returns:
    [b, x, n, h] in the dtype of `queries`.
  """
  chex.assert_rank(queries, 4)
  scores = [
      _scores(queries, keys, seen, scale, cap) for keys, _, seen in segments
  ]
  peaks = [jnp.max(score, axis=-1, keepdims=True) for score in scores]
  peak = peaks[0]
  for other in peaks[1:]:
    peak = jnp.maximum(peak, other)
  peak = jax.lax.stop_gradient(peak)
  output, total = 0.0, 0.0
  for score, (_, values, _) in zip(scores, segments, strict=True):
    weights = jnp.exp(score - peak)  # [b, k, n/k, x, s]
    total += jnp.sum(weights, axis=-1)
    output += _weighted_values(weights.astype(values.dtype), values)
  b, x, n, h = queries.shape
  output = output / total[..., None]  # [b, k, n/k, x, h]
  output = jnp.moveaxis(output, 3, 1).reshape(b, x, n, h)
  return output.astype(queries.dtype)


def _scores(
    queries: Array, keys: Array, visible: Array, scale: float, cap: float
) -> Array:
  """fp32[b, k, n/k, x, s], −∞ on slots not visible."""
  b, x, n, h = queries.shape
  r, s, k, _ = keys.shape
  grouped = queries.reshape(r, b // r, x, k, n // k, h)
  scores = jnp.einsum(
      "rmxkjh,rskh->rmkjxs",
      grouped,
      keys,
      preferred_element_type=jnp.float32,
  )
  scores = soft_cap(scale * scores, cap)
  m = visible.shape[0]
  scores = scores.reshape(m, b // m, k, n // k, x, s)
  scores = jnp.where(visible[:, None, None, None], scores, -jnp.inf)
  return scores.reshape(b, k, n // k, x, s)


def soft_cap(scores: Array, cap: float) -> Array:
  """C · tanh(scores / c), which stays within ±c; `scores` where c is 0."""
  return cap * jnp.tanh(scores / cap) if cap else scores


def _weighted_values(weights: Array, values: Array) -> Array:
  """fp32[b, k, n/k, x, h]: the sum over slots of weight · value."""
  b, k, j, x, s = weights.shape
  r = values.shape[0]
  grouped = weights.reshape(r, b // r, k, j, x, s)
  output = jnp.einsum(
      "rmkjxs,rskh->rmkjxh",
      grouped,
      values,
      preferred_element_type=jnp.float32,
  )
  return output.reshape(b, k, j, x, output.shape[-1])

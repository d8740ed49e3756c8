"""Statistics over the valid entries of a row; a row may have none."""

import chex
import jax.numpy as jnp

from iapo_jax.core.types import Array


def mean(x: Array, mask: Array, axis: int | None = -1) -> Array:
  """Averages fp32[...] where bool[...] is true; 0 if it is true nowhere.

  Reduces `axis`, or all axes if it is None.
  """
  chex.assert_equal_shape([x, mask])
  total = jnp.sum(jnp.where(mask, x, 0.0), axis)
  return total / jnp.maximum(jnp.sum(mask, axis), 1)


def std(x: Array, mask: Array, axis: int = -1, ddof: int = 0) -> Array:
  """Computes the standard deviation of fp32[...] where bool[...] is true.

  Divides by the number of valid entries minus `ddof`; returns 0 if that is not
  positive.
  """
  chex.assert_equal_shape([x, mask])
  centred = x - jnp.expand_dims(mean(x, mask, axis), axis)
  total = jnp.sum(jnp.where(mask, jnp.square(centred), 0.0), axis)
  count = jnp.sum(mask, axis)
  variance = total / jnp.maximum(count - ddof, 1)
  return jnp.where(count > ddof, jnp.sqrt(variance), 0.0)


def differ(x: Array, mask: Array) -> Array:
  """Returns bool[q, 1]: whether a row of fp32[q, n] has two valid values.

  False for a row without valid entries.
  """
  chex.assert_equal_shape([x, mask])
  low = jnp.min(jnp.where(mask, x, jnp.inf), axis=-1, keepdims=True)
  high = jnp.max(jnp.where(mask, x, -jnp.inf), axis=-1, keepdims=True)
  return high > low


def unit_zscore(x: Array, mask: Array) -> Array:
  """Computes Z(x) = (x − μ) / (σ √n) over the n valid entries of each row.

  The valid entries of a row then have mean 0 and Euclidean norm 1. μ and σ
  (ddof 0) are over the last axis of fp32[..., t]; invalid entries become 0.
  Rows without spread become 0: those with σ √n ≤ n · eps · max |x|, eps of
  fp32, the bound on what rounding μ can add to a constant row.
  """
  chex.assert_equal_shape([x, mask])
  centred = jnp.where(mask, x - mean(x, mask)[..., None], 0.0)
  # σ √n is the norm of the centred row.
  norm = jnp.sqrt(jnp.sum(jnp.square(centred), -1, keepdims=True))
  largest = jnp.max(jnp.where(mask, jnp.abs(x), 0.0), -1, keepdims=True)
  count = jnp.sum(mask, -1, keepdims=True)
  floor = jnp.finfo(x.dtype).eps * largest * count
  flat = norm <= floor
  return jnp.where(flat, 0.0, centred / jnp.where(flat, 1.0, norm))

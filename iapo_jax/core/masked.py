"""Statistics over the valid entries of a row, safe where a row has none."""

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


def mean(x: Array, mask: Array, axis: int | None = -1) -> Array:
  """Mean over the entries where `mask` is true; 0 where there are none.

  Args:
    x: fp32[...].
    mask: bool, the shape of `x`.
    axis: the axis to reduce; None reduces all.

  Returns:
    fp32, `x` without `axis`.
  """
  chex.assert_equal_shape([x, mask])
  total = jnp.sum(jnp.where(mask, x, 0.0), axis)
  return total / jnp.maximum(jnp.sum(mask, axis), 1)


def std(x: Array, mask: Array, axis: int = -1, ddof: int = 0) -> Array:
  """Standard deviation over the valid entries; 0 for `ddof` or fewer of them.

  Args:
    x: fp32[...].
    mask: bool, the shape of `x`.
    axis: the axis to reduce.
    ddof: the divisor is the number of valid entries less this.

  Returns:
    fp32, `x` without `axis`.
  """
  chex.assert_equal_shape([x, mask])
  centred = x - jnp.expand_dims(mean(x, mask, axis), axis)
  total = jnp.sum(jnp.where(mask, jnp.square(centred), 0.0), axis)
  count = jnp.sum(mask, axis)
  variance = total / jnp.maximum(count - ddof, 1)
  return jnp.where(count > ddof, jnp.sqrt(variance), 0.0)


def differ(x: Array, mask: Array) -> Array:
  """Whether valid entries of a row differ.

  Args:
    x: fp32[q, n].
    mask: bool[q, n].

  Returns:
    bool[q, 1]; false where a row has none.
  """
  chex.assert_equal_shape([x, mask])
  low = jnp.min(jnp.where(mask, x, jnp.inf), axis=-1, keepdims=True)
  high = jnp.max(jnp.where(mask, x, -jnp.inf), axis=-1, keepdims=True)
  return high > low


def unit_zscore(x: Array, mask: Array) -> Array:
  """Z(x) = (x − μ) / (σ √n) over the n valid entries of each row.

  The valid entries of a row then have mean 0 and Euclidean norm 1, however
  many they are. μ and σ (ddof 0) are taken over the last axis. Rows without
  spread become 0: those with σ √n ≤ n · eps · max |x|, where eps is fp32's,
  for that is how far rounding of μ alone can carry a constant row.

  Args:
    x: fp32[..., t].
    mask: bool[..., t].

  Returns:
    fp32[..., t], 0 where `mask` is false.
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

"""Random numbers that do not depend on the number of rows or columns."""

import jax
import jax.numpy as jnp

from iapo_jax.core.types import Array


def row_keys(key: Array, rows: int) -> Array:
  """Returns PRNG keys [rows]; each depends only on `key` and its row."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def uniform(key: Array, rows: int, width: int) -> Array:
  """Returns fp32[rows, width] in [0, 1).

  A number depends only on `key`, its row and its column: adding rows or
  columns does not change the others.
  """

  def of_row(key: Array) -> Array:
    return jax.vmap(jax.random.uniform)(row_keys(key, width))

  return jax.vmap(of_row)(row_keys(key, rows))

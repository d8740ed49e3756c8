"""Random numbers of rows that do not depend on their neighbours."""

import jax
import jax.numpy as jnp

from iapo_jax.core.types import Array


def row_keys(key: Array, rows: int) -> Array:
  """PRNG keys [rows], each of its row's number alone."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def uniform(key: Array, rows: int, width: int) -> Array:
  """fp32[rows, width] in [0, 1), each of its row and place alone.

  Rows and places that are added change none that were there.

  Args:
    key: a PRNG key.
    rows: how many.
    width: of each.
  """

  def of_row(key: Array) -> Array:
    return jax.vmap(jax.random.uniform)(row_keys(key, width))

  return jax.vmap(of_row)(row_keys(key, rows))

"""Arrays of tokens, taken a block of tokens at a time by a scan."""

import jax
import jax.numpy as jnp

from iapo_jax.core.types import PyTree


def split(tree: PyTree, size: int) -> PyTree:
  """Maps [b, t, ...] to [blocks, b, size, ...], the last one padded with 0.

  A block has no more than t tokens.
  """

  def parts(x: jax.Array) -> jax.Array:
    block = min(size, x.shape[1])
    widths = [(0, 0), (0, -x.shape[1] % block)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, widths)
    x = x.reshape(x.shape[0], -1, block, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  return jax.tree.map(parts, tree)


def join(tree: PyTree, length: int) -> PyTree:
  """Inverts `split`: [b, length, ...]."""

  def whole(x: jax.Array) -> jax.Array:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]

  return jax.tree.map(whole, tree)

"""Operations with weights: products, look-ups and bias sums.

Each defines its own gradient, summed over tokens in the weight's dtype. JAX
would sum many of them in the compute dtype: in bfloat16, a sum of a few hundred
similar terms no longer grows.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from iapo_jax.core import sharding
from iapo_jax.core.types import Array
from iapo_jax.models import attention

# Names of the arrays that a rematerialised layer keeps.
KEPT = ("product",)


def product(x: Array, kernel: Array, axes: int = 1) -> Array:
  """Computes Σ x[..., i] · kernel[i, ...] over the last `axes` axes of x.

  The weight's gradient transposes the narrower factor and is summed in the
  weight's dtype. JAX's own puts the activations' gradient on the left, which
  makes a CPU compute the elementwise operations before it column by column.

  Args:
    x: [..., i] in the compute dtype.
    kernel: fp32[i, ...]; it is cast to the dtype of `x`.
    axes: number of axes that i stands for.

  Returns:
    [..., ...] in the dtype of `x`, named for rematerialisation.
  """
  return checkpoint_name(_product(x, kernel, axes), *KEPT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Array, kernel: Array, axes: int) -> Array:
  with attention.matmul_precision(x.dtype.name):
    return jnp.tensordot(x, kernel.astype(x.dtype), axes)


def _forward(
    x: Array, kernel: Array, axes: int
) -> tuple[Array, tuple[Array, Array]]:
  return _product(x, kernel, axes), (x, kernel)


def _backward(
    axes: int, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
  x, kernel = saved
  batch = tuple(range(x.ndim - axes))
  inputs = tuple(range(len(batch), gradient.ndim))
  outputs = tuple(range(axes, kernel.ndim))
  # JAX traces this outside the contexts of the forward pass.
  with attention.matmul_precision(x.dtype.name):
    to_x = jnp.tensordot(gradient, kernel.astype(x.dtype), (inputs, outputs))
    to_kernel = _by_tokens(x, gradient, len(batch), kernel.dtype)
  return to_x, to_kernel


_product.defvjp(_forward, _backward)


@jax.custom_vjp
def scores(hidden: Array, table: Array) -> Array:
  """Computes fp32[..., v] = Σ hidden[..., d] · table[v, d], as `product` does.

  `table` is fp32 and is cast to the dtype of `hidden`.
  """
  with attention.matmul_precision(hidden.dtype.name):
    return jnp.einsum(
        "...d,vd->...v",
        hidden,
        table.astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    )


def _scores_forward(
    hidden: Array, table: Array
) -> tuple[Array, tuple[Array, Array]]:
  return scores(hidden, table), (hidden, table)


def _scores_backward(
    saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
  hidden, table = saved
  gradient = gradient.astype(hidden.dtype)
  with attention.matmul_precision(hidden.dtype.name):
    to_hidden = jnp.tensordot(gradient, table.astype(hidden.dtype), 1)
    to_table = _by_tokens(gradient, hidden, hidden.ndim - 1, table.dtype)
  return to_hidden, to_table


scores.defvjp(_scores_forward, _scores_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table: Array, ids: Array, dtype: str) -> Array:
  """Looks up rows [..., d] of fp32[v, d] for int32[...], cast to `dtype`.

  Gathers the table along FSDP, so that activations need not be resharded.
  """
  return sharding.constrain(table.astype(dtype), "vocab", "width")[ids]


def _look_up_forward(
    table: Array, ids: Array, dtype: str
) -> tuple[Array, tuple[Array, Array]]:
  return look_up(table, ids, dtype), (table, ids)


def _look_up_backward(
    dtype: str, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, None]:
  del dtype
  table, ids = saved
  total = jnp.zeros_like(table).at[ids].add(gradient.astype(table.dtype))
  return sharding.constrain(total, "vocab", "width"), None


look_up.defvjp(_look_up_forward, _look_up_backward)


@jax.custom_vjp
def biased(x: Array, bias: Array) -> Array:
  """Adds a bias fp32[*s] to x [..., *s], in the dtype of x."""
  return x + bias.astype(x.dtype)


def _biased_forward(x: Array, bias: Array) -> tuple[Array, Array]:
  return biased(x, bias), bias


def _biased_backward(bias: Array, gradient: Array) -> tuple[Array, Array]:
  tokens = tuple(range(gradient.ndim - bias.ndim))
  return gradient, jnp.sum(gradient, tokens, dtype=bias.dtype)


biased.defvjp(_biased_forward, _biased_backward)


def scores_of_few(hidden: Array, table: Array) -> Array:
  """Computes `scores` of [b, d] on a CPU, for few tokens.

  A CPU copies the right factor of a product. Here that is the hidden states and
  not the larger table.
  """
  with attention.matmul_precision(hidden.dtype.name):
    found = jnp.einsum(
        "vd,bd->vb",
        table.astype(hidden.dtype),
        hidden,
        preferred_element_type=jnp.float32,
    )
  # Without barriers the compiler swaps the factors again.
  found = jax.lax.optimization_barrier(found)
  return jax.lax.optimization_barrier(found.T)


def _by_tokens(
    x: Array, gradient: Array, batch: int, dtype: jnp.dtype
) -> Array:
  """Sums x[..., i] · gradient[..., ...] over the `batch` axes to [i, ...]."""
  over = tuple(range(batch)), tuple(range(batch))
  summed = functools.partial(
      jnp.tensordot, axes=over, preferred_element_type=dtype
  )
  inputs = x.shape[batch:]
  narrow = math.prod(inputs) <= math.prod(gradient.shape[batch:])
  # XLA fuses the transpose below into the product. On a CPU it has no such
  # fused product of bfloat16 factors that is summed in float32.
  if narrow or x.dtype != dtype:
    return summed(x, gradient)
  outputs = gradient.ndim - batch
  return jnp.moveaxis(
      summed(gradient, x), range(outputs), range(-outputs, 0)
  )

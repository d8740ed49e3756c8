"""A product with a weight whose gradient is computed the fast way round."""

import functools

import jax
import jax.numpy as jnp

from iapo_jax.types import Array


def dense(x: Array, kernel: Array, axes: int = 1) -> Array:
  """Σ x[..., i] · kernel[i, ...] over the last `axes` axes of x.

  Differentiating a product as JAX does it computes the transpose of the
  weight's gradient with the activations' gradient on the left, where a CPU
  wants the tokens last: the elementwise operations before it are then done
  column by column. Written out, what is transposed is `x`, and the gradient
  is summed in the weight's own dtype.

  Args:
    x: [..., i] in the compute dtype.
    kernel: fp32[i, ...]; it is cast to the dtype of `x`.
    axes: how many axes i stands for.

  Returns:
    [..., ...] in the dtype of `x`.
  """
  return _dense(x, kernel, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x: Array, kernel: Array, axes: int) -> Array:
  return jnp.tensordot(
      x, kernel.astype(x.dtype), axes, precision=_precision(x)
  )


def _forward(
    x: Array, kernel: Array, axes: int
) -> tuple[Array, tuple[Array, Array]]:
  return _dense(x, kernel, axes), (x, kernel)


def _backward(
    axes: int, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
  x, kernel = saved
  batch = tuple(range(x.ndim - axes))
  outputs = tuple(range(axes, kernel.ndim))
  to_x = jnp.tensordot(
      gradient,
      kernel.astype(x.dtype),
      (tuple(range(len(batch), gradient.ndim)), outputs),
      precision=_precision(x),
  )
  to_kernel = jnp.tensordot(
      x,
      gradient,
      (batch, batch),
      precision=_precision(x),
      preferred_element_type=kernel.dtype,
  )
  return to_x, to_kernel


_dense.defvjp(_forward, _backward)


def _precision(x: Array) -> jax.lax.Precision:
  """Products of float32 are products of float32, on accelerators too.

  Said here, since the backward pass is traced outside of any context.
  """
  exact = x.dtype == jnp.float32
  return jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT

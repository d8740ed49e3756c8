"""What a device reaches at best: matrix products, and reading its memory."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import measuring

from iapo_jax.models import attention

# Of matrices whose products reach the peak of a CPU.
CPU_SIZES = (1024, 2048, 3072)
# Of those with which a rehearsal shows that it runs.
REHEARSAL_SIZES = (256, 512)
_CALLS = 5


def _best(program: jax.stages.Wrapped, *inputs: jax.Array) -> float:
  """The fewest seconds of some calls, after one that compiles."""
  jax.block_until_ready(program(*inputs))
  return min(measuring.stopwatch(program, *inputs) for _ in range(_CALLS))


def matmul_peak(dtype: str, sizes: Sequence[int]) -> float:
  """The most operations a second that square products reach.

  Args:
    dtype: of the factors and the product.
    sizes: of the matrices, tried one after the other.

  Returns:
    Operations a second; a multiplication and an addition are two.
  """
  product, best = jax.jit(jnp.matmul), 0.0
  for size in sizes:
    # Random: an accelerator that multiplies ones needs less power for it, and
    # is faster than one that multiplies weights.
    x = jax.random.normal(jax.random.key(size), (size, size), dtype)
    with attention.matmul_precision(dtype):  # the decoder's own
      best = max(best, 2 * size**3 / _best(product, x, x))
  return best


def bandwidth(size: int) -> float:
  """The most bytes a second that large arrays are read or copied with.

  Args:
    size: of an array, in bytes, far beyond any cache.

  Returns:
    Bytes a second: of a sum, which reads, or of a copy, which reads and writes,
    whichever is more.
  """
  x = jax.random.normal(jax.random.key(0), (size // 4,), jnp.float32)
  # A sum with one result for many numbers, none of them added up alone.
  total = jax.jit(lambda x: jnp.sum(x.reshape(-1, 1024), axis=-1))
  scaled = jax.jit(lambda x: 2 * x)
  return max(x.nbytes / _best(total, x), 2 * x.nbytes / _best(scaled, x))

"""Attention of a block of queries to a block of slots, shared by the kernels.

Scores exist for one block of queries and slots at a time, as [slots, queries]:
the sums and maxima of a query then run along the sublanes of a TPU, its
statistics are rows, and keys are read in their memory order.

A query sees a run of slots, low <= slot < high. Below, m counts the queries
that read one row and one key/value head of a segment; it is a multiple of
`LANES`. `flash_mosaic` (TPU) and `flash_triton` (GPU) each have one function
for all blocks of a segment:

  run(kernel, form, (inputs,) or (inputs, pulled), results) -> list of arrays

`results` has an entry for each result: the field of `Inputs` or `Pulled` that
has its shape and blocks, and its dtype. The kernels are

  forward: inputs -> the output, like `queries`, and `lse`
  backward_queries: inputs, pulled -> the gradient of `queries`
  backward_segment: inputs, pulled -> the gradients of `keys` and `values`

`lse` is log Σ exp(score); a query that sees nothing has `LOWEST` and output 0.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from iapo_jax.core.types import Array

# Below every score, but finite, since −∞ − (−∞) is NaN.
LOWEST = -(2.0**126)
# Lanes of a TPU's vector registers.
LANES = 128

# Running sums of a block of queries: the largest score and
# Σ exp(score − largest), fp32[1, queries], and
# Σ exp(score − largest) · value, fp32[h, queries].
Softmax = tuple[Array, Array, Array]


class Inputs(NamedTuple):
  """Queries and the segment that they read, or a block of each in a kernel.

  Attributes:
    queries: [r, k, h, m]; of a block [h, queries].
    keys: [r, k, h, s]; of a block [h, slots].
    values: [r, k, s, h]; of a block [slots, h].
    bounds: int32[r, 2, m]; of a block low and high, int32[1, queries].
  """

  queries: Array
  keys: Array
  values: Array
  bounds: Array | tuple[Array, Array]

  def result(self, field: str, dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
    """Returns the type of a kernel's result."""
    r, k, _, m = self.queries.shape
    shape = (r, k, 1, m) if field == "lse" else getattr(self, field).shape
    return jax.ShapeDtypeStruct(shape, dtype)


class Pulled(NamedTuple):
  """Arrays that only the backward kernels read; a block has no axes r and k.

  Attributes:
    lse: fp32[r, k, 1, m], log Σ exp(score) over all segments together.
    delta: fp32[r, k, 1, m], Σ output · gradient.
    gradient: [r, k, h, m], the gradient of the output.
  """

  lse: Array
  delta: Array
  gradient: Array


@dataclasses.dataclass(frozen=True)
class Form:
  """Static options of a kernel.

  Attributes:
    scale: factor of the products of queries and keys.
    cap: c of scores c · tanh(score / c); 0 means none.
    platform: `gpu` or `tpu`; chooses the kernels.
    interpret: whether to run the kernel as JAX operations on any platform.
  """

  scale: float
  cap: float
  platform: str
  interpret: bool


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Block sizes of a segment.

  Attributes:
    queries: number per block; divides m.
    slots: number per block.
    length: s, the slots of the segment.
  """

  queries: int
  slots: int
  length: int

  @property
  def ragged(self) -> bool:
    """Whether the last block of slots extends beyond the segment."""
    return bool(self.length % self.slots)

  @property
  def across(self) -> int:
    """The number of blocks of slots."""
    return pl.cdiv(self.length, self.slots)


def empty(width: int, queries: int) -> Softmax:
  """Returns the softmax over no slots."""
  return (
      jnp.full((1, queries), LOWEST, jnp.float32),
      jnp.zeros((1, queries), jnp.float32),
      jnp.zeros((width, queries), jnp.float32),
  )


def add(form: Form, block: Inputs, start: Array, so_far: Softmax) -> Softmax:
  """Adds a block of slots to a softmax; `start` is the first slot."""
  peak, total, summed = so_far
  scores, seen = _scores(form, block, start)
  top = jnp.maximum(peak, jnp.max(scores, axis=0, keepdims=True))
  weights = jnp.where(seen, jnp.exp(scores - top), 0.0)
  factor = jnp.exp(peak - top)
  total = factor * total + jnp.sum(weights, axis=0, keepdims=True)
  values = block.values
  mixed = product(values, weights.astype(values.dtype), 0, 0)
  return top, total, factor * summed + mixed


def finish(so_far: Softmax) -> tuple[Array, Array]:
  """Returns the output fp32[h, queries] and lse fp32[1, queries]."""
  peak, total, summed = so_far
  weight = jnp.where(total > 0, total, 1.0)
  lse = jnp.where(total > 0, peak + jnp.log(weight), LOWEST)
  return summed / weight, lse


def gradients(
    form: Form, block: Inputs, pulled: Pulled, start: Array
) -> tuple[Array, Array]:
  """Returns a block's softmax weights and the gradients of its scores.

  Both are fp32[slots, queries]; the gradients are those of
  scale · query · key. `start` is the first slot of the block.
  """
  scores, seen = _scores(form, block, start)
  weights = jnp.where(seen, jnp.exp(scores - pulled.lse), 0.0)
  to_weights = product(block.values, pulled.gradient, 1, 0)
  to_scores = weights * (to_weights - pulled.delta)
  if form.cap:
    to_scores *= 1.0 - (jnp.where(seen, scores, 0.0) / form.cap) ** 2
  return weights, to_scores


def _scores(form: Form, block: Inputs, start: Array) -> tuple[Array, Array]:
  """Returns scores fp32[slots, queries], `LOWEST` if unseen, and bool: seen."""
  scores = form.scale * product(block.keys, block.queries, 0, 0)
  if form.cap:
    scores = form.cap * jnp.tanh(scores / form.cap)
  slots = start + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
  low, high = block.bounds
  seen = (slots >= low) & (slots < high)
  return jnp.where(seen, scores, LOWEST), seen


def product(left: Array, right: Array, i: int, j: int) -> Array:
  """Contracts axis i of one matrix with axis j of the other, in fp32."""
  exact = left.dtype == jnp.float32
  return jax.lax.dot_general(
      left,
      right,
      (((i,), (j,)), ((), ())),
      precision=jax.lax.Precision.HIGHEST if exact else None,
      preferred_element_type=jnp.float32,
  )

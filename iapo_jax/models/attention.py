"""Attention of new tokens over several key/value segments, as one softmax."""

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from iapo_jax.core.types import Array

# (keys [r, k, h, s], values [r, k, s, h], visible bool[m, x or 1, s])
Segment = tuple[Array, Array, Array]

# Names of the arrays that a rematerialised layer keeps.
KEPT = ("attention_output", "attention_lse")


@struct.dataclass
class Part:
  """An unnormalised softmax over the slots of one segment.

  Attributes:
    output: fp32[b, x, n, h], the sum over slots of exp(score − peak) · value.
    peak: fp32[b, x, n], the largest score; −∞ if no slot is visible.
    total: fp32[b, x, n], the sum over slots of exp(score − peak).
  """

  output: Array
  peak: Array
  total: Array


def matmul_precision(dtype: str) -> contextlib.AbstractContextManager:
  """Computes products exactly in float32 if that is the compute dtype.

  By default accelerators round the factors of a float32 product to bfloat16 or
  TF32. The context acts while a program is traced.
  """
  return jax.default_matmul_precision(
      "float32" if dtype == "float32" else "default"
  )


def windowed(
    visible: Array, window: Array, queries: Array, slots: Array
) -> Array:
  """Returns bool[b, x, s]: the visible slots inside a query's window.

  Args:
    visible: bool[m, x or 1, s], m dividing b.
    window: int32[], the number of tokens seen, itself included; 0 means all.
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
  """Attends with one softmax over the slots of all segments.

  A score is scale · query · key, and with a cap c > 0 it becomes
  c · tanh(score / c). Scores, softmax and sums are fp32. Every query must see
  at least one slot of some segment.

  The r rows of a segment divide the b rows of queries. Each segment row takes
  one matrix product, so keys are never copied. Each segment is reduced alone
  and the results are merged, so scores never change their layout. The backward
  pass recomputes the weights from the scores and their log-sum-exp.

  Args:
    queries: [b, x, n, h].
    segments: keys, values and visibility of each.
    scale: factor of the products.
    cap: c; 0 means none.

  Returns:
    [b, x, n, h] in the dtype of `queries`.
  """
  chex.assert_rank(queries, 4)
  return _attend(scale, cap, queries, tuple(segments))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    scale: float, cap: float, queries: Array, segments: tuple[Segment, ...]
) -> Array:
  return _forward(scale, cap, queries, segments)[0]


def _forward(
    scale: float, cap: float, queries: Array, segments: tuple[Segment, ...]
) -> tuple[Array, tuple]:
  """Returns the output and the residuals of the backward pass."""
  parts = [_part(queries, segment, scale, cap) for segment in segments]
  output, lse = merge(parts)
  output = checkpoint_name(output.astype(queries.dtype), KEPT[0])
  lse = checkpoint_name(lse, KEPT[1])
  return output, (queries, segments, output, lse)


def _backward(
    scale: float, cap: float, saved: tuple, gradient: Array
) -> tuple[Array, tuple]:
  """Computes the gradients of queries and of each segment's keys and values.

  With softmax weights w and an output o = Σ w · value, the gradient of a score
  is w · (gradient · value − gradient · o). Other segments enter only through o
  and through the sum that divides w.
  """
  queries, segments, output, lse = saved
  wide = output.astype(jnp.float32) * gradient.astype(jnp.float32)
  sums = lse, jnp.sum(wide, axis=-1)
  to_queries, to_segments = 0.0, []
  with matmul_precision(queries.dtype.name):
    for segment in segments:
      part, *pair = _part_gradients(
          queries, gradient, *sums, segment, scale, cap
      )
      to_queries += part
      to_segments.append((*pair, None))
  return to_queries.astype(queries.dtype), tuple(to_segments)


_attend.defvjp(_forward, _backward)


def merge(parts: list[Part]) -> tuple[Array, Array]:
  """Computes Σ e^(peak − top) · output / Σ e^(peak − top) · total.

  The sums run over parts with disjoint slots; `top` is the largest peak.

  Returns:
    fp32[b, x, n, h]; fp32[b, x, n], the log-sum-exp of the scores.
  """
  top = parts[0].peak
  for part in parts[1:]:
    top = jnp.maximum(top, part.peak)
  factors = [jnp.exp(part.peak - top) for part in parts]
  pairs = list(zip(factors, parts, strict=True))
  total = sum(factor * part.total for factor, part in pairs)
  output = sum(
      (factor / total)[..., None] * part.output for factor, part in pairs
  )
  return output, top + jnp.log(total)


def _part(queries: Array, segment: Segment, scale: float, cap: float) -> Part:
  """Computes the softmax over one segment; arguments as in `attend`."""
  keys, values, visible = segment
  grouped = _by_segment_row(queries, *keys.shape[:2])
  scores = _scores(grouped, keys, visible, scale, cap)
  peak = jnp.max(scores, axis=-1)
  # Without a visible slot the peak is −∞, and −∞ − (−∞) is NaN.
  finite = jnp.where(jnp.isfinite(peak), peak, 0.0)
  weights = jnp.exp(scores - finite[..., None])
  output = jnp.einsum(
      "rkmjxs,rksh->rkmjxh",
      weights.astype(values.dtype),
      values,
      preferred_element_type=jnp.float32,
  )
  total = jnp.sum(weights, axis=-1)
  return Part(_by_query(output), _by_query(peak), _by_query(total))


def _part_gradients(
    queries: Array,
    gradient: Array,
    lse: Array,
    delta: Array,
    segment: Segment,
    scale: float,
    cap: float,
) -> tuple[Array, Array, Array]:
  """Computes the gradients of queries (fp32), keys and values for one segment.

  `gradient` [b, x, n, h] is that of the output, `lse` fp32[b, x, n] the
  log-sum-exp over all segments, and `delta` fp32[b, x, n] is
  Σ gradient · output. Other arguments are those of `attend`.
  """
  keys, values, visible = segment
  over = functools.partial(_by_segment_row, r=keys.shape[0], k=keys.shape[1])
  multiply = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  grouped, pulled = over(queries), over(gradient.astype(values.dtype))
  scores = _scores(grouped, keys, visible, scale, cap)
  weights = jnp.exp(scores - over(lse[..., None]))
  to_weights = multiply("rkmjxh,rksh->rkmjxs", pulled, values)
  to_scores = scale * weights * (to_weights - over(delta[..., None]))
  if cap:
    # An invisible slot has weight 0 and score −∞; 0 · −∞ would be NaN.
    capped = jnp.where(weights > 0, scores, 0.0)
    to_scores *= 1.0 - (capped / cap) ** 2
  narrow = to_scores.astype(keys.dtype)
  return (
      _by_query(multiply("rkmjxs,rkhs->rkmjxh", narrow, keys)),
      multiply("rkmjxs,rkmjxh->rkhs", narrow, grouped).astype(keys.dtype),
      multiply(
          "rkmjxs,rkmjxh->rksh", weights.astype(values.dtype), pulled
      ).astype(values.dtype),
  )


def _scores(
    grouped: Array, keys: Array, visible: Array, scale: float, cap: float
) -> Array:
  """Computes scores fp32[r, k, m, j, x, s], −∞ for invisible slots."""
  scores = jnp.einsum(
      "rkmjxh,rkhs->rkmjxs",
      grouped,
      keys,
      preferred_element_type=jnp.float32,
  )
  r, _, m, *_ = grouped.shape
  rows, x, s = visible.shape
  seen = jnp.broadcast_to(visible[:, None], (rows, r * m // rows, x, s))
  seen = seen.reshape(r, 1, m, 1, x, s)
  return jnp.where(seen, soft_cap(scale * scores, cap), -jnp.inf)


def _by_segment_row(y: Array, r: int, k: int) -> Array:
  """Maps [b, x, n, ...] to [r, k, m, j, x, ...], m = b / r and j = n / k."""
  b, x, n, *rest = y.shape
  y = y.reshape(r, b // r, x, k, n // k, *rest)
  return y.transpose(0, 3, 1, 4, 2, *range(5, y.ndim))


def _by_query(y: Array) -> Array:
  """Inverts `_by_segment_row`."""
  r, k, m, j, x, *rest = y.shape
  y = y.transpose(0, 2, 4, 1, 3, *range(5, y.ndim))
  return y.reshape(r * m, x, k * j, *rest)


def soft_cap(scores: Array, cap: float) -> Array:
  """Computes cap · tanh(scores / cap); a cap of 0 returns `scores`."""
  return cap * jnp.tanh(scores / cap) if cap else scores

"""Attention of new tokens over several key/value segments, as one softmax."""

import contextlib
import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from iapo_jax.config.model import WHOLE_TOKENS
from iapo_jax.core.types import Array
from iapo_jax.models import blocks

# Names of the arrays that a rematerialised layer keeps.
KEPT = ("attention_output", "attention_lse")
# A block with fewer queries takes longer and saves little.
_FEWEST = 128


@struct.dataclass
class Mask:
  """The slots of a segment that queries see, for a block of queries at a time.

  A query sees the `visible` slots that neither rule hides. A rule takes memory
  for the queries of one block only.

  Attributes:
    visible: bool[m, x or 1, s], m dividing b.
    causal: whether the slots are the queries, each blind to those after it.
    window: int32[], the number of tokens seen, itself included; 0 means all.
      None if there is no window.
    queries: int32[b, x], positions that the window compares; else None.
    slots: int32[r, s], positions likewise, r dividing b.
  """

  visible: Array
  causal: bool = struct.field(pytree_node=False, default=False)
  window: Array | None = None
  queries: Array | None = None
  slots: Array | None = None

  def of(self, start: int | Array, count: int) -> Array:
    """Returns bool[m, count or 1, s], of `count` queries from `start` on."""
    seen = self.visible
    if seen.shape[1] > 1:
      seen = _some(seen, start, count)
    if self.causal:
      last = start + jnp.arange(count)[:, None]
      seen = seen & (jnp.arange(seen.shape[2]) <= last)
    if self.window is None:
      return seen
    queries = _some(self.queries, start, count)
    return windowed(seen, self.window, queries, self.slots)

  def padded(self, more: int) -> "Mask":
    """Repeats the last query `more` times."""

    def pad(x: Array) -> Array:
      widths = [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)
      return jnp.pad(x, widths, mode="edge")

    many = self.visible.shape[1] > 1
    return self.replace(
        visible=pad(self.visible) if many else self.visible,
        queries=None if self.queries is None else pad(self.queries),
    )


# (keys [r, k, h, s], values [r, k, s, h], mask or bool[m, x or 1, s])
Segment = tuple[Array, Array, Mask | Array]
# Keys and values of each segment.
Pairs = tuple[tuple[Array, Array], ...]


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


def causal(x: int) -> Mask:
  """Returns the mask of x new tokens, each seeing itself and those before it.

  Up to 1,024 tokens it is an array, made once for all layers; then a rule.
  """
  if x > WHOLE_TOKENS:
    return Mask(jnp.ones((1, 1, x), bool), causal=True)
  return Mask(jnp.tri(x, dtype=bool)[None])


def block_size(x: int, slots: int) -> int:
  """Returns the number of queries per row, of x, whose scores exist at once.

  `slots` counts those of the largest segment, which has x of them or more. Up
  to 1,024 slots all queries are one block. A larger segment has blocks of
  2^20 scores, or of 128 queries: memory for scores stays that of 1,024
  queries up to 8,192 slots, and grows with the slots beyond.
  """
  most = max(_FEWEST, WHOLE_TOKENS**2 // slots)
  return -(-x // -(-x // most))


def attend(
    queries: Array,
    segments: list[Segment],
    *,
    scale: float,
    cap: float = 0.0,
    block: int | None = None,
) -> Array:
  """Attends with one softmax over the slots of all segments.

  A score is scale · query · key, and with a cap c > 0 it becomes
  c · tanh(score / c). Scores, softmax and sums are fp32. Every query must see
  at least one slot of some segment.

  The r rows of a segment divide the b rows of queries. Each segment row takes
  one matrix product, so keys are never copied. Each segment is reduced alone
  and the results are merged, so scores never change their layout. The backward
  pass recomputes the weights from the scores and their log-sum-exp.

  Scores exist for a block of queries at a time, so that their memory does not
  grow with x · s. A query's scores are never divided: its result does not
  depend on the block, but for rounding.

  Args:
    queries: [b, x, n, h].
    segments: keys, values and mask of each.
    scale: factor of the products.
    cap: c; 0 means none.
    block: queries of a row in a block; `block_size` by default.

  Returns:
    [b, x, n, h] in the dtype of `queries`.
  """
  chex.assert_rank(queries, 4)
  x = queries.shape[1]
  slots = max(keys.shape[3] for keys, _, _ in segments)
  block = min(block or block_size(x, slots), x)
  pairs, masks = [], []
  for keys, values, mask in segments:
    mask = mask if isinstance(mask, Mask) else Mask(mask)
    pairs.append((keys, values))
    # One block has its mask made here, once for both passes.
    masks.append(
        Mask(mask.of(0, x)) if block == x else mask.padded(-x % block)
    )
  form = _Form(scale, cap, block)
  return _attend(form, queries, tuple(pairs), tuple(masks))


@dataclasses.dataclass(frozen=True)
class _Form:
  """Numbers of `attend` that are part of the program."""

  scale: float
  cap: float
  block: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    form: _Form, queries: Array, pairs: Pairs, masks: tuple[Mask, ...]
) -> Array:
  return _forward(form, queries, pairs, masks)[0]


def _forward(
    form: _Form, queries: Array, pairs: Pairs, masks: tuple[Mask, ...]
) -> tuple[Array, tuple]:
  """Returns the output and the residuals of the backward pass."""
  x, block = queries.shape[1], form.block

  def run(start: int | Array, queries: Array) -> tuple[Array, Array]:
    parts = [
        _part(queries, (*pair, mask.of(start, block)), form)
        for pair, mask in zip(pairs, masks, strict=True)
    ]
    output, lse = merge(parts)
    return output.astype(queries.dtype), lse

  if block == x:
    output, lse = run(0, queries)
  else:
    # Masks do not depend on the layer. Without a checkpoint, JAX makes those of
    # all blocks before the scan over layers and keeps them: x · s numbers.
    again = jax.checkpoint(run, prevent_cse=False)
    some = jnp.arange(0, x, block), blocks.split(queries, block)
    output, lse = blocks.join(jax.lax.map(lambda y: again(*y), some), x)
  output = checkpoint_name(output, KEPT[0])
  lse = checkpoint_name(lse, KEPT[1])
  return output, (queries, pairs, masks, output, lse)


def _backward(
    form: _Form, saved: tuple, gradient: Array
) -> tuple[Array, Pairs, None]:
  """Computes the gradients of queries and of each segment's keys and values.

  With softmax weights w and an output o = Σ w · value, the gradient of a score
  is w · (gradient · value − gradient · o). Other segments enter only through o
  and through the sum that divides w. Blocks of queries are summed in fp32.
  """
  queries, pairs, masks, output, lse = saved
  x, block = queries.shape[1], form.block
  wide = output.astype(jnp.float32) * gradient.astype(jnp.float32)
  inputs = queries, gradient, lse, jnp.sum(wide, axis=-1)

  def run(start: int | Array, inputs: tuple) -> tuple[Pairs, Array]:
    to_queries, to_pairs = 0.0, []
    for pair, mask in zip(pairs, masks, strict=True):
      segment = *pair, mask.of(start, block)
      part, *to_pair = _part_gradients(*inputs, segment, form)
      to_queries += part
      to_pairs.append(tuple(to_pair))
    return tuple(to_pairs), to_queries

  def add(total: Pairs, some: tuple[Array, tuple]) -> tuple[Pairs, Array]:
    to_pairs, to_queries = run(*some)
    return jax.tree.map(jnp.add, total, to_pairs), to_queries

  with matmul_precision(queries.dtype.name):
    if block == x:
      to_pairs, to_queries = run(0, inputs)
    else:
      zeros = jax.tree.map(lambda y: jnp.zeros(y.shape, jnp.float32), pairs)
      some = jnp.arange(0, x, block), blocks.split(inputs, block)
      to_pairs, parts = jax.lax.scan(add, zeros, some)
      to_queries = blocks.join(parts, x)
  to_pairs = jax.tree.map(lambda y, z: y.astype(z.dtype), to_pairs, pairs)
  return to_queries.astype(queries.dtype), to_pairs, None


_attend.defvjp(_forward, _backward)


def _some(x: Array, start: int | Array, count: int) -> Array:
  """Takes `count` rows of axis 1 of x."""
  if x.shape[1] == count:
    return x
  return jax.lax.dynamic_slice_in_dim(x, start, count, axis=1)


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


def _part(
    queries: Array, segment: tuple[Array, Array, Array], form: _Form
) -> Part:
  """Computes the softmax over one segment, of a mask bool[m, x or 1, s]."""
  keys, values, visible = segment
  grouped = _by_segment_row(queries, *keys.shape[:2])
  scores = _scores(grouped, keys, visible, form.scale, form.cap)
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
    segment: tuple[Array, Array, Array],
    form: _Form,
) -> tuple[Array, Array, Array]:
  """Computes the gradients of queries, keys and values for one segment, fp32.

  `gradient` [b, x, n, h] is that of the output, `lse` fp32[b, x, n] the
  log-sum-exp over all segments, and `delta` fp32[b, x, n] is
  Σ gradient · output. The mask of the segment is bool[m, x or 1, s].
  """
  keys, values, visible = segment
  over = functools.partial(_by_segment_row, r=keys.shape[0], k=keys.shape[1])
  multiply = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  grouped, pulled = over(queries), over(gradient.astype(values.dtype))
  scores = _scores(grouped, keys, visible, form.scale, form.cap)
  weights = jnp.exp(scores - over(lse[..., None]))
  to_weights = multiply("rkmjxh,rksh->rkmjxs", pulled, values)
  to_scores = form.scale * weights * (to_weights - over(delta[..., None]))
  if form.cap:
    # An invisible slot has weight 0 and score −∞; 0 · −∞ would be NaN.
    capped = jnp.where(weights > 0, scores, 0.0)
    to_scores *= 1.0 - (capped / form.cap) ** 2
  narrow = to_scores.astype(keys.dtype)
  return (
      _by_query(multiply("rkmjxs,rkhs->rkmjxh", narrow, keys)),
      multiply("rkmjxs,rkmjxh->rkhs", narrow, grouped),
      multiply("rkmjxs,rkmjxh->rksh", weights.astype(values.dtype), pulled),
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

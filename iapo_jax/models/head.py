"""Log-probabilities of hidden states, without all [b, t, v] logits at once."""

import functools
import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from iapo_jax.config.model import ModelConfig
from iapo_jax.core import sharding
from iapo_jax.core.types import Array, Params, PyTree, TokenStatistics
from iapo_jax.models import attention, blocks, dense

# (log-probabilities [b, c], constants [b, c] of each token) -> losses [b, c]
TokenLoss = Callable[[Array, PyTree], Array]


def logits(
    params: Params,
    hidden: Array,
    *,
    cfg: ModelConfig,
    temperature: float = 1.0,
) -> Array:
  """Returns the logits fp32[..., v] of hidden states [..., d].

  They are soft-capped, then divided by the temperature.
  """
  few = hidden.ndim == 2 and sharding.platform() == "cpu"
  product = dense.scores_of_few if few else dense.scores
  scores = product(hidden, _table(params, cfg))
  return attention.soft_cap(scores, cfg.logit_cap) / temperature


def _name(cfg: ModelConfig) -> str:
  """Returns the name of the head's weights."""
  return "embedding" if cfg.tie_embeddings else "head"


def _table(params: Params, cfg: ModelConfig) -> Array:
  """Returns the head's weights [v, d], gathered along FSDP."""
  return sharding.constrain(params[_name(cfg)], "vocab", "width")


def statistics(scores: Array, targets: Array) -> TokenStatistics:
  """Computes statistics [...] of targets int32[...] under scores fp32[..., v].

  With scores less their maximum and lse = log Σ exp(score):
  log π(target) = score − lse and H = lse − Σ exp(score) · score / exp(lse),
  with one exponential per token. The target is selected by comparison, not by
  indexing, so that a head split over the vocabulary needs no gather.
  """
  chex.assert_type(scores, jnp.float32)
  chex.assert_equal_shape_prefix([scores, targets], targets.ndim)
  top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  shifted = scores - top
  weights = jnp.exp(shifted)
  total = jnp.sum(weights, axis=-1)
  lse = jnp.log(total)
  # −∞ · 0 would be NaN.
  known = jnp.where(weights > 0, shifted, 0.0)
  entropy = lse - jnp.sum(weights * known, axis=-1) / total
  is_target = jnp.arange(scores.shape[-1]) == targets[..., None]
  chosen = jnp.sum(jnp.where(is_target, shifted, 0.0), axis=-1)
  return TokenStatistics(chosen - lse, entropy, chosen >= 0.0)


def truncated(scores: Array, *, top_k: int = 0, top_p: float = 1.0) -> Array:
  """Sets scores outside of top-k, then outside of top-p, to −∞.

  Top-k keeps a token if fewer than k tokens have a higher score. Top-p then
  keeps a token if the tokens with higher scores hold less than `top_p` of the
  probability that is left: the fewest tokens that reach `top_p`, with the one
  that crosses it. So the most probable token always stays. Tokens of equal
  score stay or go together; then more than k tokens may stay.

  Order and result are those of transformers: `TopKLogitsWarper`, then
  `TopPLogitsWarper`, both after the temperature. At equal scores the latter
  keeps one by the order of its sort instead.

  Args:
    scores: fp32[..., v], divided by the temperature.
    top_k: at least 0; 0 keeps all.
    top_p: in (0, 1]; 1 keeps all.
  """
  chex.assert_type(scores, jnp.float32)
  if not top_k and top_p == 1:
    return scores
  below = jnp.max(scores, axis=-1, keepdims=True) - scores
  # Floats from 0 up have the order of their bits.
  bits = jax.lax.bitcast_convert_type(below, jnp.int32)
  weights, last = jnp.exp(-below), jnp.iinfo(jnp.int32).max
  if top_k:
    last = _last_kept(bits, 1, top_k)
    weights = jnp.where(bits <= last, weights, 0.0)
  if top_p < 1:
    total = jnp.sum(weights, axis=-1, keepdims=True)
    last = jnp.minimum(last, _last_kept(bits, weights, top_p * total))
  return jnp.where(bits <= last, scores, -jnp.inf)


def _last_kept(
    bits: Array, weights: Array | int, limit: Array | int
) -> Array:
  """Returns the largest x with Σ_(bits < x) weight < limit, bit by bit.

  A sort would gather a head split over the vocabulary; these sums stay where
  the shards are.

  Args:
    bits: int32[..., v], at least 0.
    weights: [..., v] or the weight of every token, at least 0.
    limit: [..., 1] or the limit of every row, above 0.

  Returns:
    int32[..., 1].
  """

  def with_bit(i: Array, known: Array) -> Array:
    tried = known | (jnp.int32(1) << (30 - i))
    above = jnp.sum(
        jnp.where(bits < tried, weights, 0), axis=-1, keepdims=True
    )
    return jnp.where(above < limit, tried, known)

  start = jnp.zeros((*bits.shape[:-1], 1), jnp.int32)
  return jax.lax.fori_loop(0, 31, with_bit, start)


def draw(scores: Array, uniforms: Array) -> tuple[Array, TokenStatistics]:
  """Samples softmax(scores) by inverting its distribution function, in fp32.

  Samples a block of tokens, then a token of the block. So a row needs only two
  random numbers, and nothing is gathered from a head split over the vocabulary.
  The `statistics` of the tokens come from the same sums.

  Args:
    scores: fp32[b, v].
    uniforms: fp32[b, 2] in [0, 1).

  Returns:
    Tokens int32[b], and their statistics [b].
  """
  chex.assert_type([scores, uniforms], jnp.float32)
  rows, size = scores.shape
  width = 2 ** math.ceil(math.log2(size) / 2)
  # Every shard gets as many whole blocks.
  padding = ((0, 0), (0, -size % (width * sharding.tensor_shards())))
  top = jnp.max(scores, axis=-1)
  padded = jnp.pad(scores, padding, constant_values=-jnp.inf)
  shifted = padded.reshape(rows, -1, width) - top[:, None, None]
  weights = jnp.exp(shifted)
  sums = jnp.sum(weights, axis=-1)
  total = jnp.sum(sums, axis=-1)
  lse = jnp.log(total)
  known = jnp.where(weights > 0, shifted, 0.0)
  entropy = lse - jnp.sum(jnp.sum(weights * known, axis=-1), axis=-1) / total
  block = _invert(sums, uniforms[:, 0])
  is_block = jnp.arange(sums.shape[1])[:, None] == block[:, None, None]
  row = jnp.sum(jnp.where(is_block, shifted, 0.0), axis=1)
  inside = _invert(jnp.exp(row), uniforms[:, 1])
  is_token = jnp.arange(width) == inside[:, None]
  chosen = jnp.sum(jnp.where(is_token, row, 0.0), axis=-1)
  stats = TokenStatistics(chosen - lse, entropy, chosen >= 0.0)
  return block * width + inside, stats


def _invert(weights: Array, uniform: Array) -> Array:
  """Returns the first i with Σ_(j ≤ i) weight > uniform · Σ_j weight."""
  sums = jnp.cumsum(weights, axis=-1)
  beyond = sums > uniform[:, None] * sums[:, -1:]
  # Because of rounding, sums may grow at an entry without weight.
  beyond &= weights > 0
  first = jnp.argmax(beyond, axis=-1)
  found = jnp.any(beyond, axis=-1)
  heaviest = jnp.argmax(weights, axis=-1)
  return jnp.where(found, first, heaviest).astype(jnp.int32)


def token_statistics(
    params: Params,
    hidden: Array,
    targets: Array,
    *,
    cfg: ModelConfig,
    temperature: float = 1.0,
    chunk: int = 128,
) -> TokenStatistics:
  """Computes `statistics` of hidden [b, t, d] and targets int32[b, t].

  Only [b, chunk, v] logits exist at once; the backward pass recomputes them.
  """
  chex.assert_equal_shape_prefix([hidden, targets], 2)
  length = targets.shape[1]
  # Gathers the head once instead of once per chunk.
  params = params | {_name(cfg): _table(params, cfg)}

  @jax.checkpoint
  def body(
      carry: None, part: tuple[Array, Array]
  ) -> tuple[None, TokenStatistics]:
    return carry, _chunk_statistics(params, *part, cfg, temperature)

  _, parts = jax.lax.scan(body, None, blocks.split((hidden, targets), chunk))
  return blocks.join(parts, length)


def _chunk_statistics(
    params: Params,
    hidden: Array,
    targets: Array,
    cfg: ModelConfig,
    temperature: float,
    rows: str | None = "batch",
) -> TokenStatistics:
  """Computes `statistics` of [b, c, d] at once; `rows` is b's logical axis."""
  scores = logits(params, hidden, cfg=cfg, temperature=temperature)
  scores = sharding.constrain(scores, rows, "length", "vocab")
  return statistics(scores, targets)


def token_loss(
    params: Params,
    hidden: Array,
    targets: Array,
    known: PyTree,
    *,
    loss: TokenLoss,
    cfg: ModelConfig,
    temperature: float = 1.0,
    chunk: int = 128,
) -> tuple[Array, TokenStatistics]:
  """Sums a loss of log-probabilities over all tokens.

  Only [b, chunk, v] logits exist at once. The forward pass computes a chunk's
  gradients while its logits exist, and the backward pass only scales them.

  Args:
    params: the decoder's weights.
    hidden: [b, t, d].
    targets: int32[b, t].
    known: arrays [b, t] passed to `loss` as constants.
    loss: computes each token's loss. Gradients flow only through the
      log-probabilities.
    cfg: the decoder.
    temperature: divides the logits.
    chunk: positions per chunk.

  Returns:
    The loss fp32[], and statistics [b, t] without gradients.
  """
  chex.assert_equal_shape_prefix(
      [hidden, targets, *jax.tree.leaves(known)], 2
  )

  def of_chunk(
      weights: Params, states: Array, wanted: Array, rest: tuple[PyTree, Array]
  ) -> tuple[Array, TokenStatistics]:
    stats = _chunk_statistics(weights, states, wanted, cfg, temperature, rows)
    others, there = rest
    losses = jnp.where(there, loss(stats.logprob, others), 0.0)
    return jnp.sum(losses), stats

  shards = sharding.data_shards()
  shards = shards if hidden.shape[0] % shards == 0 else 1
  rows = "batch" if shards == 1 else None
  there = jnp.ones(targets.shape, bool)
  total, parts = _summed(
      of_chunk,
      shards,
      {_name(cfg): params[_name(cfg)]},
      blocks.split((hidden, targets, (known, there)), chunk),
  )
  stats = blocks.join(parts, targets.shape[1])
  return total, jax.lax.stop_gradient(stats)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed(
    of_chunk: Callable[..., tuple[Array, TokenStatistics]],
    shards: int,
    weights: Params,
    chunks: tuple[Array, Array, PyTree],
) -> tuple[Array, TokenStatistics]:
  """Returns the summed loss of all chunks, and the statistics of each."""
  return _summed_forward(of_chunk, shards, weights, chunks)[0]


def _summed_forward(
    of_chunk: Callable[..., tuple[Array, TokenStatistics]],
    shards: int,
    weights: Params,
    chunks: tuple[Array, Array, PyTree],
) -> tuple[tuple[Array, TokenStatistics], tuple[Params, Array]]:
  """Computes `_summed` and the gradients of weights and hidden states.

  Each data shard sums its gradient of the weights, and the shards are added
  once. A sum per chunk would move the gradient of a whole vocabulary each time.
  """
  pull = jax.value_and_grad(of_chunk, (0, 1), has_aux=True)
  many = ()
  if shards > 1:
    many = (shards,)
    pull = jax.vmap(
        pull, in_axes=(None, 0, 0, 0), spmd_axis_name=sharding.BATCH_AXES
    )
    # [chunks, b, ...] -> [chunks, shards, b / shards, ...]
    chunks = jax.tree.map(
        lambda x: x.reshape(x.shape[0], shards, -1, *x.shape[2:]), chunks
    )

  def body(
      so_far: tuple[Array, Params], chunk: tuple
  ) -> tuple[tuple[Array, Params], tuple[TokenStatistics, Array]]:
    (value, stats), (to_weights, to_states) = pull(weights, *chunk)
    so_far = jax.tree.map(jnp.add, so_far, (value, to_weights))
    return so_far, (stats, to_states)

  start = (
      jnp.zeros(many, jnp.float32),
      jax.tree.map(lambda x: jnp.zeros((*many, *x.shape), x.dtype), weights),
  )
  sums, parts = jax.lax.scan(body, start, chunks)
  if shards > 1:
    sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
    parts = jax.tree.map(
        lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), parts
    )
  (total, to_weights), (stats, to_hidden) = sums, parts
  return (total, stats), (to_weights, to_hidden)


def _summed_backward(
    of_chunk: Callable[..., tuple[Array, TokenStatistics]],
    shards: int,
    gradients: tuple[Params, Array],
    cotangents: tuple[Array, TokenStatistics],
) -> tuple[Params, tuple[Array, None, None]]:
  """Scales the gradients by the gradient of the sum."""
  del of_chunk, shards
  factor, _ = cotangents
  to_weights, to_hidden = jax.tree.map(
      lambda x: (factor * x).astype(x.dtype), gradients
  )
  return to_weights, (to_hidden, None, None)


_summed.defvjp(_summed_forward, _summed_backward)

"""From hidden states to log-probabilities, never [b, t, v] at once."""

import chex
import jax
import jax.numpy as jnp

from iapo_jax import sharding
from iapo_jax.model_config import ModelConfig
from iapo_jax.models import attention
from iapo_jax.types import Array, Params, TokenStatistics


def logits(
    params: Params,
    hidden: Array,
    *,
    cfg: ModelConfig,
    temperature: float = 1.0,
) -> Array:
  """fp32[..., v]: the head's scores of every token, over the temperature.

  Args:
    params: the decoder's weights.
    hidden: [..., d] in the compute dtype.
    cfg: the decoder.
    temperature: divides the scores.
  """
  table = params["embedding" if cfg.tie_embeddings else "head"]
  table = sharding.constrain(table.astype(hidden.dtype), "vocab", "width")
  with attention.matmul_precision(cfg.dtype):
    scores = jnp.einsum(
        "...d,vd->...v", hidden, table, preferred_element_type=jnp.float32
    )
  return attention.soft_cap(scores, cfg.logit_cap) / temperature


def statistics(scores: Array, targets: Array) -> TokenStatistics:
  """Log-probability, entropy and rank of the targets, in fp32.

  With lse = log Σ exp(score): log π(target) = score − lse and
  H = lse − Σ π · score. The target is selected by comparison rather than by
  indexing, so that a head split over the vocabulary needs no gather.

  Args:
    scores: fp32[..., v].
    targets: int32[...].

  Returns:
    Statistics [...].
  """
  chex.assert_type(scores, jnp.float32)
  chex.assert_equal_shape_prefix([scores, targets], targets.ndim)
  top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  shifted = scores - top
  lse = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
  probabilities = jnp.exp(shifted - lse[..., None])
  entropy = lse - jnp.sum(probabilities * shifted, axis=-1)
  is_target = jnp.arange(scores.shape[-1]) == targets[..., None]
  chosen = jnp.sum(jnp.where(is_target, shifted, 0.0), axis=-1)
  return TokenStatistics(chosen - lse, entropy, chosen >= 0.0)


def token_statistics(
    params: Params,
    hidden: Array,
    targets: Array,
    *,
    cfg: ModelConfig,
    temperature: float = 1.0,
    chunk: int = 128,
) -> TokenStatistics:
  """`statistics` of a sequence of hidden states, a chunk of positions a time.

  Only [b, chunk, v] logits exist at once; the backward pass recomputes them.

  Args:
    params: the decoder's weights.
    hidden: [b, t, d].
    targets: int32[b, t].
    cfg: the decoder.
    temperature: of the distribution.
    chunk: positions.

  Returns:
    Statistics [b, t].
  """
  chex.assert_equal_shape_prefix([hidden, targets], 2)
  length = targets.shape[1]
  chunk = min(chunk, length)
  padding = -length % chunk

  def split(x: Array) -> Array:
    """[b, t, ...] -> [t / chunk, b, chunk, ...]."""
    widths = [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, widths)
    parts = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])
    return jnp.moveaxis(parts, 1, 0)

  @jax.checkpoint
  def body(
      carry: None, part: tuple[Array, Array]
  ) -> tuple[None, TokenStatistics]:
    states, wanted = part
    scores = logits(params, states, cfg=cfg, temperature=temperature)
    scores = sharding.constrain(scores, "batch", "length", "vocab")
    return carry, statistics(scores, wanted)

  _, parts = jax.lax.scan(body, None, (split(hidden), split(targets)))

  def join(x: Array) -> Array:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1)[:, :length]

  return jax.tree.map(join, parts)

"""The policy-gradient loss of each token, and the weights of tokens.

`token_weights` computes weights once over the *whole* batch, so that the loss
is Σ weights · loss and splitting it into micro-batches changes nothing.
"""

import chex
import jax
import jax.numpy as jnp

from iapo_jax.config.schema import AGGREGATIONS
from iapo_jax.core import masked
from iapo_jax.core.types import Array

# exp(20) is far beyond any clip range and far within fp32.
_MAX_LOG_RATIO = 20.0


def token_weights(
    mask: Array, *, aggregation: str, constant_length: int = 1
) -> Array:
  """Returns weights w such that the batch's loss is Σ w · loss over all tokens.

  `token_mean`: 1 / (tokens that learn).
  `sequence_mean`: the mean over a sequence's tokens that learn, then over the
  sequences that have such tokens.
  `constant_length`: 1 / (b · `constant_length`).

  `mask` bool[b, t] marks the tokens that learn. Returns fp32[b, t], 0 outside
  the mask. Raises ValueError for an unknown aggregation.
  """
  chex.assert_rank(mask, 2)
  valid = mask.astype(jnp.float32)
  if aggregation == "token_mean":
    return valid / jnp.maximum(jnp.sum(valid), 1.0)
  if aggregation == "sequence_mean":
    lengths = jnp.sum(valid, axis=1, keepdims=True)
    sequences = jnp.maximum(jnp.sum(lengths > 0), 1)
    return valid / (sequences * jnp.maximum(lengths, 1.0))
  if aggregation == "constant_length":
    return valid / (mask.shape[0] * constant_length)
  raise ValueError(
      f"aggregation = {aggregation!r}: must be one of {AGGREGATIONS}"
  )


def importance_ratio(logprobs: Array, old_logprobs: Array) -> Array:
  """π(o_t) / π_old(o_t), with the exponent kept within ±20."""
  chex.assert_equal_shape([logprobs, old_logprobs])
  difference = logprobs - jax.lax.stop_gradient(old_logprobs)
  return jnp.exp(jnp.clip(difference, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))


def sequence_log_ratios(
    logprobs: Array, old_logprobs: Array, mask: Array
) -> Array:
  """Mean of log (π(o_t) / π_old(o_t)) over the tokens that learn: log s.

  s is GSPO's length-normalised ratio of sequences, arXiv 2507.18071.
  Log-probabilities fp32[b, t], `mask` bool[b, t]. Returns fp32[b], 0 for rows
  without such tokens; a constant for the gradient.
  """
  chex.assert_equal_shape([logprobs, old_logprobs, mask])
  difference = masked.mean(logprobs - old_logprobs, mask)
  return jax.lax.stop_gradient(difference)


def sequence_ratio(logprobs: Array, log_ratios: Array) -> Array:
  """Returns s with the gradient s · ∇ log π(o_t): s · π(o_t) / sg[π(o_t)].

  GSPO-token, arXiv 2507.18071: the gradient of s · A where the tokens of a
  sequence share one advantage and weigh the same. Log-probabilities under the
  policy that learns and `log_ratios`, log s of each token's sequence, are
  fp32[b, t]; the exponent is kept within ±20.
  """
  chex.assert_equal_shape([logprobs, log_ratios])
  log_ratios = jnp.clip(log_ratios, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
  value = jnp.exp(jax.lax.stop_gradient(log_ratios))
  return value * jnp.exp(logprobs - jax.lax.stop_gradient(logprobs))


def clipped_surrogate(
    ratio: Array,
    advantages: Array,
    *,
    clip_low: float,
    clip_high: float,
) -> Array:
  """−min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A), per token.

  PPO (arXiv 1707.06347) with DAPO's separate upper clip (arXiv 2503.14476).
  `ratio` (ρ, of tokens or of their sequences) and `advantages` are fp32[b, t];
  advantages are constants for the gradient.
  """
  chex.assert_equal_shape([ratio, advantages])
  advantages = jax.lax.stop_gradient(advantages)
  clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
  return -jnp.minimum(ratio * advantages, clipped * advantages)


def k3_divergence(logprobs: Array, reference_logprobs: Array) -> Array:
  """exp(Δ) − Δ − 1 with Δ = log π_ref − log π, per token, in nats.

  The k3 estimator of KL(π ‖ π_ref) on tokens sampled from π: unbiased, and
  never negative. Both are fp32[b, t]; π_ref is a constant for the gradient. The
  exponent is kept within ±20.
  """
  chex.assert_equal_shape([logprobs, reference_logprobs])
  delta = jax.lax.stop_gradient(reference_logprobs) - logprobs
  delta = jnp.clip(delta, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
  # Where π is close to π_ref, Δ is near 0 and exp(Δ) − 1 would lose digits.
  return jnp.expm1(delta) - delta

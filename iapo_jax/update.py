"""Learning from a rollout: loss, micro-batches, optimizer updates."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from iapo_jax import losses, policy
from iapo_jax.config import Config
from iapo_jax.types import (
    Array,
    Params,
    Prompts,
    Rollout,
    TrainState,
)


@struct.dataclass
class Experience:
  """A graded, credited rollout: what the updates learn from.

  Attributes:
    prompts: q prompts.
    tokens: int32[b, t].
    old_logprobs: fp32[b, t], of the policy that sampled.
    reference_logprobs: fp32[b, t]; zeros where β = 0.
    advantages: fp32[b, t].
    weights: fp32[b, t], of `losses.token_weights` over the whole batch.
  """

  prompts: Prompts
  tokens: Array
  old_logprobs: Array
  reference_logprobs: Array
  advantages: Array
  weights: Array


def gather_experience(
    ref_params: Params | None,
    prompts: Prompts,
    rolled: Rollout,
    token_advantages: Array,
    cfg: Config,
) -> Experience:
  """What the updates learn from; scores the rollout under the reference.

  Args:
    ref_params: of the reference policy; None where β = 0.
    prompts: q prompts.
    rolled: their completions.
    token_advantages: fp32[b, t].
    cfg: the run's configuration.

  Returns:
    The experience.
  """
  reference = jnp.zeros_like(rolled.logprobs)
  if ref_params is not None:
    with jax.named_scope("reference"):
      reference = _reference(ref_params, prompts, rolled, cfg)
  return Experience(
      prompts=prompts,
      tokens=rolled.tokens,
      old_logprobs=rolled.logprobs,
      reference_logprobs=reference,
      advantages=token_advantages,
      weights=losses.token_weights(
          rolled.mask,
          aggregation=cfg.loss.aggregation,
          constant_length=cfg.rollout.max_tokens,
      ),
  )


def _reference(
    params: Params, prompts: Prompts, rolled: Rollout, cfg: Config
) -> Array:
  """fp32[b, t]: log-probabilities under the reference, micro-batch-wise."""
  count = prompts.lengths.shape[0]
  parts = policy.split_groups(
      (prompts, rolled.tokens), cfg.loss.micro_batches, count
  )
  logprobs = jax.lax.map(
      lambda part: policy.score(params, *part, **_scoring(cfg)).logprob, parts
  )
  return jax.lax.stop_gradient(policy.join_groups(logprobs, count))


@struct.dataclass
class _Known:
  """What is known of each token, [b, t] of `Experience`."""

  old_logprobs: Array
  reference_logprobs: Array
  advantages: Array
  weights: Array


def experience_loss(
    params: Params, part: Experience, cfg: Config
) -> tuple[Array, dict[str, Array]]:
  """Σ weights · (clipped surrogate + β · KL) over a part of the batch.

  Args:
    params: that learn.
    part: some groups of the batch, with weights over the whole batch.
    cfg: the run's configuration.

  Returns:
    The part's share of the loss; its shares of weighted sums (`sum/...`) and
    its maxima (`max/...`).
  """
  known = _Known(
      part.old_logprobs,
      part.reference_logprobs,
      part.advantages,
      part.weights,
  )

  def weighted(logprobs: Array, known: _Known) -> Array:
    terms = _terms(logprobs, known, cfg)
    per_token = terms["surrogate"]
    if cfg.loss.kl_weight:
      per_token += cfg.loss.kl_weight * terms["kl"]
    return known.weights * per_token

  loss, stats = policy.token_loss(
      params,
      part.prompts,
      part.tokens,
      known,
      loss=weighted,
      **_scoring(cfg),
  )
  terms = _terms(stats.logprob, known, cfg)
  ratio = losses.importance_ratio(stats.logprob, known.old_logprobs)
  clipped = (ratio < 1 - cfg.loss.clip_low) | (ratio > 1 + cfg.loss.clip_high)
  terms |= {"ratio": ratio, "clipped": clipped}
  live = known.weights > 0
  gap = jnp.abs(stats.logprob - known.old_logprobs)
  return loss, {
      "sum": {k: jnp.sum(known.weights * v) for k, v in terms.items()},
      "max": {"logprob_gap": jnp.max(jnp.where(live, gap, 0.0))},
  }


def _terms(logprobs: Array, known: _Known, cfg: Config) -> dict[str, Array]:
  """The terms of the loss, fp32[b, t]."""
  terms = {
      "surrogate": losses.clipped_surrogate(
          logprobs,
          known.old_logprobs,
          known.advantages,
          clip_low=cfg.loss.clip_low,
          clip_high=cfg.loss.clip_high,
      )
  }
  if cfg.loss.kl_weight:
    terms["kl"] = losses.k3_divergence(logprobs, known.reference_logprobs)
  return terms


def _scoring(cfg: Config) -> dict[str, Any]:
  """How completions are scored, for `policy`."""
  return {
      "cfg": cfg.model,
      "group_size": cfg.group_size,
      "temperature": cfg.rollout.temperature,
      "head_chunk": cfg.loss.head_chunk,
  }


@jax.named_scope("update")
def update(
    state: TrainState,
    experience: Experience,
    cfg: Config,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, Array]]:
  """`num_updates` optimizer updates, each over the whole batch.

  The largest |Δ log-prob| between rollout and training pass is the first
  update's: there both are the same policy.

  Args:
    state: to learn from.
    experience: of the rollout.
    cfg: the run's configuration.
    optimizer: of the policy.

  Returns:
    The state one step on, and the metrics of the updates.
  """
  count = experience.prompts.lengths.shape[0]
  parts = policy.split_groups(experience, cfg.loss.micro_batches, count)
  grad_fn = jax.grad(
      functools.partial(experience_loss, cfg=cfg), has_aux=True
  )

  def gradient(params: Params) -> tuple[Params, dict[str, Array]]:
    """Summed over micro-batches: the weights make it the batch's own.

    Metrics are weighted means over tokens, and maxima.
    """

    def add(total: Params, part: Experience) -> tuple[Params, dict]:
      grads, metrics = grad_fn(params, part)
      return jax.tree.map(jnp.add, total, grads), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, metrics = jax.lax.scan(add, zeros, parts)
    total = jnp.maximum(jnp.sum(experience.weights), 1e-8)
    means = jax.tree.map(lambda x: jnp.sum(x) / total, metrics["sum"])
    return grads, means | jax.tree.map(jnp.max, metrics["max"])

  def one_update(
      carry: tuple[Params, optax.OptState], _: None
  ) -> tuple[tuple[Params, optax.OptState], dict[str, Array]]:
    params, opt_state = carry
    grads, metrics = gradient(params)
    steps, opt_state = optimizer.update(grads, opt_state, params)
    metrics["grad_norm"] = optax.tree.norm(grads)
    return (optax.apply_updates(params, steps), opt_state), metrics

  (params, opt_state), metrics = jax.lax.scan(
      one_update,
      (state.params, state.opt_state),
      length=cfg.loss.num_updates,
  )
  gap = metrics.pop("logprob_gap")[0]
  metrics = {f"update/{k}": jnp.mean(v) for k, v in metrics.items()}
  state = state.replace(
      step=state.step + 1, params=params, opt_state=opt_state
  )
  return state, metrics | {"update/logprob_gap": gap}

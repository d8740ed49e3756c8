"""Learning from a rollout: loss, micro-batches, optimizer updates."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from iapo_jax import losses, micro_batches, policy
from iapo_jax.config import Config
from iapo_jax.types import (
    Array,
    Params,
    Prompts,
    Rollout,
    TrainState,
)


@struct.dataclass
class Tokens:
  """What is known of each token of a rollout.

  Attributes:
    ids: int32[b, t].
    old_logprobs: fp32[b, t], of the policy that sampled.
    reference_logprobs: fp32[b, t]; zeros where β = 0.
    advantages: fp32[b, t].
    weights: fp32[b, t], of `losses.token_weights` over the whole batch.
  """

  ids: Array
  old_logprobs: Array
  reference_logprobs: Array
  advantages: Array
  weights: Array


@struct.dataclass
class Experience:
  """A graded, credited rollout: what the updates learn from.

  Attributes:
    prompts: q prompts.
    lengths: int32[b], of the completions.
    tokens: theirs.
  """

  prompts: Prompts
  lengths: Array
  tokens: Tokens


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
  weights = losses.token_weights(
      rolled.mask,
      aggregation=cfg.loss.aggregation,
      constant_length=cfg.rollout.max_tokens,
  )
  return Experience(
      prompts=prompts,
      lengths=rolled.lengths,
      tokens=Tokens(
          ids=rolled.tokens,
          old_logprobs=rolled.logprobs,
          reference_logprobs=reference,
          advantages=token_advantages,
          weights=weights,
      ),
  )


def _reference(
    params: Params, prompts: Prompts, rolled: Rollout, cfg: Config
) -> Array:
  """fp32[b, t]: log-probabilities under the reference."""

  def score(
      part: tuple[Prompts, Array], there: Array, length: int
  ) -> tuple[None, Array]:
    del there  # nothing is summed
    some, ids = part
    stats = policy.score(
        params, some, ids[:, :length], **_scoring(cfg, ids.shape[0])
    )
    return None, stats.logprob

  _, logprobs = micro_batches.run(
      score, None, (prompts, rolled.tokens), rolled.lengths, **_parts(cfg)
  )
  return jax.lax.stop_gradient(logprobs)


def _scoring(cfg: Config, rows: int) -> dict[str, Any]:
  """How so many completions are scored, for `policy`.

  No more logits exist at once than those of a micro-batch of full completions.
  """
  full = cfg.sequences_per_step // cfg.loss.micro_batches
  return {
      "cfg": cfg.model,
      "group_size": cfg.group_size,
      "temperature": cfg.rollout.temperature,
      "head_chunk": max(1, cfg.loss.head_chunk * full // rows),
  }


def _parts(cfg: Config) -> dict[str, int]:
  """How a batch is divided, for `micro_batches`."""
  return {
      "groups": cfg.prompts_per_step,
      "parts": cfg.loss.micro_batches,
      "prompt_tokens": cfg.data.max_prompt_tokens,
      "max_tokens": cfg.rollout.max_tokens,
  }


def experience_loss(
    params: Params, prompts: Prompts, tokens: Tokens, cfg: Config
) -> tuple[Array, Array]:
  """Σ weights · (clipped surrogate + β · KL) over a part of the batch.

  Args:
    params: that learn.
    prompts: of the part's groups.
    tokens: of its completions, with weights over the whole batch.
    cfg: the run's configuration.

  Returns:
    The part's share of the loss; the log-probabilities of its tokens.
  """

  def weighted(logprobs: Array, known: Tokens) -> Array:
    terms = _terms(logprobs, known, cfg)
    per_token = terms["surrogate"]
    if cfg.loss.kl_weight:
      per_token += cfg.loss.kl_weight * terms["kl"]
    return known.weights * per_token

  loss, stats = policy.token_loss(
      params,
      prompts,
      tokens.ids,
      tokens,
      loss=weighted,
      **_scoring(cfg, tokens.ids.shape[0]),
  )
  return loss, stats.logprob


def _terms(logprobs: Array, known: Tokens, cfg: Config) -> dict[str, Array]:
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


def _metrics(logprobs: Array, known: Tokens, cfg: Config) -> dict[str, Array]:
  """Weighted means over the tokens, and the largest |Δ log-prob|."""
  ratio = losses.importance_ratio(logprobs, known.old_logprobs)
  clipped = (ratio < 1 - cfg.loss.clip_low) | (ratio > 1 + cfg.loss.clip_high)
  terms = _terms(logprobs, known, cfg)
  terms |= {"ratio": ratio, "clipped": clipped}
  total = jnp.maximum(jnp.sum(known.weights), 1e-8)
  means = {k: jnp.sum(known.weights * v) / total for k, v in terms.items()}
  gap = jnp.abs(logprobs - known.old_logprobs)
  return means | {
      "logprob_gap": jnp.max(jnp.where(known.weights > 0, gap, 0.0))
  }


def _gradients(
    params: Params, experience: Experience, cfg: Config
) -> tuple[Params, Array]:
  """Of the whole batch's loss; the log-probabilities fp32[b, t].

  Micro-batches are summed: the weights of tokens are over the whole batch.
  """
  grad_fn = jax.grad(
      functools.partial(experience_loss, cfg=cfg), has_aux=True
  )

  def step(
      part: tuple[Prompts, Tokens], there: Array, length: int
  ) -> tuple[Params, Array]:
    prompts, tokens = part
    tokens = jax.tree.map(lambda x: x[:, :length], tokens)
    weights = jnp.where(there[:, None], tokens.weights, 0.0)
    return grad_fn(params, prompts, tokens.replace(weights=weights))

  return micro_batches.run(
      step,
      jax.tree.map(jnp.zeros_like, params),
      (experience.prompts, experience.tokens),
      experience.lengths,
      **_parts(cfg),
  )


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

  def one_update(
      carry: tuple[Params, optax.OptState], _: None
  ) -> tuple[tuple[Params, optax.OptState], dict[str, Array]]:
    params, opt_state = carry
    grads, logprobs = _gradients(params, experience, cfg)
    metrics = _metrics(logprobs, experience.tokens, cfg)
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

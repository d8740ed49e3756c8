"""The policy-gradient update: loss, micro-batches, optimizer."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from iapo_jax.config.schema import Config
from iapo_jax.core import sharding
from iapo_jax.core.types import (
  Array,
  KVSegment,
  Params,
  Prompts,
  PyTree,
  Rollout,
  TrainState,
)
from iapo_jax.models import head
from iapo_jax.rl import finite, losses, micro_batches, policy
from iapo_jax.rl.early_answers import EarlyAnswers


@struct.dataclass
class Tokens:
  """Per-token inputs of the loss.

  Attributes:
    ids: int32[b, t].
    old_logprobs: fp32[b, t], of the policy that sampled.
    reference_logprobs: fp32[b, t]; zeros if β = 0.
    advantages: fp32[b, t].
    weights: fp32[b, t], `losses.token_weights` over the whole batch.
    log_ratios: fp32[b, t], of each token's sequence; None if ratios are per
      token.
    early: fp32[b, t], weights of −log π on tokens of early answers; None if
      no early answers are learned.
  """

  ids: Array
  old_logprobs: Array
  reference_logprobs: Array
  advantages: Array
  weights: Array
  log_ratios: Array | None = None
  early: Array | None = None


@struct.dataclass
class Experience:
  """A graded, credited rollout from which the updates learn.

  Attributes:
    prompts: q prompts.
    lengths: int32[b], of the completions.
    tokens: of the completions.
  """

  prompts: Prompts
  lengths: Array
  tokens: Tokens

  @property
  def group_size(self) -> int:
    """Completions of each prompt."""
    return self.lengths.shape[0] // self.prompts.lengths.shape[0]


def gather_experience(
    ref_params: Params | None,
    prompts: Prompts,
    rolled: Rollout,
    token_advantages: Array,
    learned: Array,
    cfg: Config,
) -> Experience:
  """Collects the inputs of the updates; scores under the reference policy.

  `token_advantages` fp32[b, t]; `learned` bool[b, t], the tokens that carry
  loss; `ref_params` is None if β = 0.
  """
  tokens = Tokens(
      ids=rolled.tokens,
      old_logprobs=rolled.logprobs,
      reference_logprobs=jnp.zeros_like(rolled.logprobs),
      advantages=token_advantages,
      weights=losses.token_weights(
          learned,
          aggregation=cfg.loss.aggregation,
          constant_length=cfg.rollout.max_tokens,
      ),
  )
  experience = Experience(prompts, rolled.lengths, tokens)
  if ref_params is None:
    return experience
  with jax.named_scope("reference"):
    reference = _logprobs(ref_params, experience, cfg)
  return experience.replace(
      tokens=tokens.replace(reference_logprobs=reference)
  )


def with_early_answers(
    experience: Experience, early: EarlyAnswers, *, weight: float
) -> Experience:
  """Adds rows that teach to answer early.

  The loss gains `weight` times the mean of −log π(answer) over the rows with an
  answer. The rows of a prompt are its completions, then its early answers.
  """
  zeros = jnp.zeros(early.tokens.shape, jnp.float32)
  there = jnp.sum(jnp.any(early.learned, axis=1))
  each = weight * early.learned / jnp.maximum(there, 1)
  taught = Tokens(early.tokens, zeros, zeros, zeros, zeros, early=each)
  groups = experience.prompts.lengths.shape[0]

  def beside(x: Array, y: Array) -> Array:
    parts = [z.reshape(groups, -1, *z.shape[1:]) for z in (x, y)]
    joined = jnp.concatenate(parts, axis=1)
    return joined.reshape(-1, *x.shape[1:])

  lengths, tokens = jax.tree.map(
      beside,
      (experience.lengths, experience.tokens.replace(early=zeros)),
      (early.lengths, taught),
  )
  return experience.replace(lengths=lengths, tokens=tokens)


def _in_micro_batches(
    step: micro_batches.Step,
    zeros: PyTree,
    experience: Experience,
    known: PyTree,
    cfg: Config,
) -> tuple[PyTree, Array]:
  """Runs `step` on parts of (starts, known), [b, ...]; see `micro_batches`.

  Micro-batches reorder completions, so `starts` hold the index of their prompt.
  """
  shards = sharding.data_shards()
  local = experience.prompts.lengths.shape[0] // shards
  group_size = experience.group_size
  index = jnp.repeat(jnp.arange(local, dtype=jnp.int32), group_size)
  starts = policy.starts(experience.prompts, group_size)
  return micro_batches.run(
      step,
      zeros,
      (starts.replace(prompts=jnp.tile(index, shards)), known),
      experience.lengths,
      parts=cfg.loss.micro_batches,
      max_tokens=cfg.rollout.max_tokens,
  )


def _logprobs(params: Params, experience: Experience, cfg: Config) -> Array:
  """Computes fp32[b, t] under a policy; a constant for the gradient."""
  encoded = policy.prefill(params, experience.prompts, cfg=cfg.model)

  def score(
      part: tuple[policy.Starts, Array], there: Array, length: int
  ) -> tuple[None, Array]:
    del there  # nothing is summed
    starts, ids = part
    ids = ids[:, :length]
    hidden, _ = policy.follow(
        params, encoded, starts, ids[:, :-1], cfg=cfg.model
    )
    stats = head.token_statistics(
        params, hidden, ids, **_scoring(cfg, ids.shape[0])
    )
    return None, stats.logprob

  _, logprobs = _in_micro_batches(
      score, None, experience, experience.tokens.ids, cfg
  )
  return jax.lax.stop_gradient(logprobs)


def _scoring(cfg: Config, rows: int) -> dict[str, Any]:
  """Returns the arguments with which `head` scores `rows` completions.

  More rows get smaller chunks, so that logits take no more memory than in a
  micro-batch of full completions.
  """
  full = cfg.sequences_per_step // cfg.loss.micro_batches
  return {
      "cfg": cfg.model,
      "temperature": cfg.rollout.temperature,
      "chunk": max(1, cfg.loss.head_chunk * full // rows),
  }


def _loss(
    params: Params,
    encoded: KVSegment,
    starts: policy.Starts,
    tokens: Tokens,
    cfg: Config,
) -> tuple[Array, Array]:
  """Σ weights · (clipped surrogate + β · KL), plus the early-answer loss.

  `tokens` are a part of the batch, with weights over the whole batch. Returns
  that part of the loss and the log-probabilities fp32[b, t].
  """

  def weighted(logprobs: Array, known: Tokens) -> Array:
    terms = _terms(logprobs, known, cfg)
    per_token = terms["surrogate"]
    if cfg.loss.kl_weight:
      per_token += cfg.loss.kl_weight * terms["kl"]
    if known.early is None:
      return known.weights * per_token
    # Rows of early answers have no old log-probabilities, so no ratio either.
    per_token = jnp.where(known.weights > 0, per_token, 0.0)
    return known.weights * per_token - known.early * logprobs

  hidden, _ = policy.follow(
      params, encoded, starts, tokens.ids[:, :-1], cfg=cfg.model
  )
  loss, stats = head.token_loss(
      params,
      hidden,
      tokens.ids,
      tokens,
      loss=weighted,
      **_scoring(cfg, tokens.ids.shape[0]),
  )
  return loss, stats.logprob


def _terms(logprobs: Array, known: Tokens, cfg: Config) -> dict[str, Array]:
  """Returns the terms of the loss, fp32[b, t] each."""
  terms = {
      "surrogate": losses.clipped_surrogate(
          _ratios(logprobs, known),
          known.advantages,
          clip_low=cfg.loss.clip_low,
          clip_high=cfg.loss.clip_high,
      )
  }
  if cfg.loss.kl_weight:
    terms["kl"] = losses.k3_divergence(logprobs, known.reference_logprobs)
  return terms


def _ratios(logprobs: Array, known: Tokens) -> Array:
  """Returns the ratios of tokens, or of their sequences: fp32[b, t]."""
  if known.log_ratios is None:
    return losses.importance_ratio(logprobs, known.old_logprobs)
  return losses.sequence_ratio(logprobs, known.log_ratios)


def _metrics(logprobs: Array, known: Tokens, cfg: Config) -> dict[str, Array]:
  """Returns weighted means over the tokens, and the largest |Δ log-prob|."""
  ratio = _ratios(logprobs, known)
  clipped = (ratio < 1 - cfg.loss.clip_low) | (ratio > 1 + cfg.loss.clip_high)
  terms = _terms(logprobs, known, cfg)
  terms |= {"ratio": ratio, "clipped": clipped}
  total = jnp.maximum(jnp.sum(known.weights), 1e-8)
  means = {k: jnp.sum(known.weights * v) / total for k, v in terms.items()}
  # If no token learns, the mean would be 0; 1 is the ratio of equal policies.
  means["ratio"] = jnp.where(
      jnp.any(known.weights > 0), means["ratio"], 1.0
  )
  gap = jnp.abs(logprobs - known.old_logprobs)
  if known.early is not None:
    total = jnp.sum(known.early * logprobs)
    means["early_nll"] = -total / cfg.loss.early_weight
  return means | {
      "logprob_gap": jnp.max(jnp.where(known.weights > 0, gap, 0.0))
  }


def _with_log_ratios(
    params: Params, experience: Experience, cfg: Config
) -> Experience:
  """Adds log-ratios of sequences if the loss uses them."""
  if cfg.loss.ratio == "token":
    return experience
  known = experience.tokens
  logprobs = _logprobs(params, experience, cfg)
  ratios = losses.sequence_log_ratios(
      logprobs, known.old_logprobs, known.weights > 0
  )
  ratios = jnp.broadcast_to(ratios[:, None], known.ids.shape)
  return experience.replace(tokens=known.replace(log_ratios=ratios))


def _gradients(
    params: Params, experience: Experience, cfg: Config
) -> tuple[Params, Array]:
  """Returns the gradient of the batch's loss, and log-probabilities fp32[b, t].

  Sums micro-batches: the weights of tokens are over the whole batch. Encodes
  prompts once for all micro-batches. Sums the gradients with respect to the
  keys and values of the prompts, and propagates them through the encoding once.
  """

  def encode(params: Params) -> tuple[tuple[Array, Array], KVSegment]:
    segment = policy.prefill(params, experience.prompts, cfg=cfg.model)
    return (segment.keys, segment.values), segment

  cache, pull, segment = jax.vjp(encode, params, has_aux=True)

  def loss(
      params: Params,
      cache: tuple[Array, Array],
      starts: policy.Starts,
      tokens: Tokens,
  ) -> tuple[Array, Array]:
    encoded = segment.replace(keys=cache[0], values=cache[1])
    return _loss(params, encoded, starts, tokens, cfg)

  def step(
      part: tuple[policy.Starts, Tokens], there: Array, length: int
  ) -> tuple[tuple[Params, PyTree], Array]:
    starts, tokens = part
    tokens = jax.tree.map(lambda x: x[:, :length], tokens)
    weights, early = jax.tree.map(
        lambda x: jnp.where(there[:, None], x, 0.0),
        (tokens.weights, tokens.early),
    )
    tokens = tokens.replace(weights=weights, early=early)
    return jax.grad(loss, (0, 1), has_aux=True)(params, cache, starts, tokens)

  zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, jnp.float32), (params, cache)
  )
  (total, to_cache), logprobs = _in_micro_batches(
      step, zeros, experience, experience.tokens, cfg
  )
  to_cache = jax.tree.map(lambda x, y: x.astype(y.dtype), to_cache, cache)
  return jax.tree.map(jnp.add, total, *pull(to_cache)), logprobs


@jax.named_scope("update")
def update(
    state: TrainState,
    experience: Experience,
    cfg: Config,
    optimizer: optax.GradientTransformation,
    known: Mapping[str, Array] | None = None,
) -> tuple[TrainState, dict[str, Array]]:
  """Makes `num_updates` optimizer updates, each over the whole batch.

  Skips an update with a number that is not finite (`finite.apply_update`);
  `known` are further metrics that must be finite. `logprob_gap` is the largest
  |Δ log-prob| between rollout and training pass in the first update, when both
  are the same policy.

  Returns:
    The state after the step, and the metrics of the updates.
  """

  def one_update(
      carry: tuple[Params, optax.OptState], _: None
  ) -> tuple[tuple[Params, optax.OptState], dict[str, Array]]:
    params, opt_state = carry
    inputs = _with_log_ratios(params, experience, cfg)
    grads, logprobs = _gradients(params, inputs, cfg)
    metrics = _metrics(logprobs, inputs.tokens, cfg)
    params, opt_state, more = finite.apply_update(
        optimizer, grads, params, opt_state, {**(known or {}), **metrics}
    )
    return (params, opt_state), metrics | more

  (params, opt_state), metrics = jax.lax.scan(
      one_update,
      (state.params, state.opt_state),
      length=cfg.loss.num_updates,
  )
  gap = metrics.pop("logprob_gap")[0]
  skipped = jnp.sum(metrics.pop("skipped"))
  metrics = {f"update/{k}": jnp.mean(v) for k, v in metrics.items()}
  state = state.replace(
      step=state.step + 1, params=params, opt_state=opt_state
  )
  return state, metrics | {
      "update/logprob_gap": gap,
      "update/skipped": skipped,
  }

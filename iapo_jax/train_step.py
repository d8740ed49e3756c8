"""One compiled step: rollout, grading, probes, credit, policy gradient."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from iapo_jax import (
    advantages,
    losses,
    masked,
    mi,
    policy,
    probes,
    rewards,
    rollout,
    sharding,
)
from iapo_jax.config import Config
from iapo_jax.state import StateSpec
from iapo_jax.types import (
    Array,
    CreditWeights,
    Grades,
    Params,
    Prompts,
    PyTree,
    Rollout,
    Samples,
    StepOutput,
    TokenStatistics,
    TrainState,
    Vocabulary,
)

TrainStep = Callable[
    [TrainState, Params | None, Prompts], tuple[TrainState, StepOutput]
]


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


def make_train_step(
    cfg: Config,
    mesh: Mesh,
    *,
    vocabulary: Vocabulary,
    grader: rewards.Grader,
    optimizer: optax.GradientTransformation,
    spec: StateSpec,
) -> TrainStep:
  """The whole step as one jitted, sharded program; the state is donated.

  Args:
    cfg: the run's configuration.
    mesh: devices.
    vocabulary: of the tokenizer.
    grader: grades inside the program.
    optimizer: of the policy.
    spec: of the state.

  Returns:
    (state, reference parameters or None where β = 0, prompts) -> (state,
    output). Calling it twice compiles once.
  """
  batch = sharding.batch_sharding(mesh)
  whole = sharding.replicated(mesh)
  reference = spec.shardings.params if cfg.loss.kl_weight else None

  def step(
      state: TrainState, ref_params: Params | None, prompts: Prompts
  ) -> tuple[TrainState, StepOutput]:
    with sharding.scope(mesh):
      key = jax.random.fold_in(jax.random.key(state.seed), state.step)
      sample_key, shuffle_key = jax.random.split(key)
      frozen = sharding.gather_for_decoding(
          state.params, spec.param_axes, cfg.model.dtype
      )
      rolled = sample(frozen, prompts, sample_key, cfg, vocabulary)
      grades = grader(rolled, prompts)
      probe = run_probes(frozen, rolled, grades, prompts, cfg, vocabulary)
      samples, metrics = assign_credit(
          rolled, grades, probe, state.weights, shuffle_key, cfg
      )
      experience = gather_experience(
          ref_params, prompts, rolled, samples.advantages, cfg
      )
      state, update_metrics = update(state, experience, cfg, optimizer)
    return state, StepOutput(metrics | update_metrics, samples)

  return jax.jit(
      step,
      donate_argnums=0,
      in_shardings=(spec.shardings, reference, batch),
      out_shardings=(spec.shardings, StepOutput(whole, batch)),
  )


def sample(
    params: Params,
    prompts: Prompts,
    key: Array,
    cfg: Config,
    vocabulary: Vocabulary,
) -> Rollout:
  """The training rollout."""
  return rollout.sample(
      params,
      prompts,
      key,
      cfg=cfg.model,
      group_size=cfg.group_size,
      max_tokens=cfg.rollout.max_tokens,
      eos_ids=vocabulary.eos_ids,
      pad_id=vocabulary.pad_id,
      temperature=cfg.rollout.temperature,
  )


def run_probes(
    params: Params,
    rolled: Rollout,
    grades: Grades,
    prompts: Prompts,
    cfg: Config,
    vocabulary: Vocabulary,
) -> TokenStatistics:
  """Answer statistics [b, t + 1] against the gold answer's first token.

  Probes run on reasoning tokens; the `faithful` credit, like the authors'
  code, asks at every completion token.
  """
  faithful = cfg.credit.mode == "faithful"
  return probes.answer_statistics(
      params,
      rolled.context,
      policy.first_positions(prompts, cfg.group_size),
      rolled.lengths if faithful else grades.reasoning_lengths,
      jnp.asarray(vocabulary.elicitation, jnp.int32),
      jnp.repeat(prompts.gold[:, 0], cfg.group_size),
      cfg=cfg.model,
      temperature=cfg.rollout.temperature,
      chunk=cfg.probe.chunk,
      head_chunk=cfg.loss.head_chunk,
  )


def assign_credit(
    rolled: Rollout,
    grades: Grades,
    probe: TokenStatistics,
    weights: CreditWeights,
    key: Array,
    cfg: Config,
) -> tuple[Samples, dict[str, Array]]:
  """Rewards, information and advantages of a rollout, with their metrics."""
  correctness, form = rewards.combine(
      grades,
      correct=cfg.reward.correct,
      wrong=cfg.reward.wrong,
      well_formed=cfg.reward.well_formed,
      malformed=cfg.reward.malformed,
  )
  reward = correctness + form
  slots = jnp.arange(rolled.tokens.shape[1])
  reasoning = slots < grades.reasoning_lengths[:, None]
  information = mi.realised_information(probe.entropy, reasoning)
  if cfg.credit.shuffle:
    information = mi.shuffled_information(information, reasoning, key)
  group_adv, per_token = _advantages(
      reward, information, reasoning, rolled, grades, probe, weights, cfg
  )
  samples = Samples(
      tokens=rolled.tokens,
      lengths=rolled.lengths,
      reasoning_lengths=grades.reasoning_lengths,
      correct=grades.correct,
      well_formed=grades.well_formed,
      rewards=reward,
      entropies=rolled.entropies,
      answer_entropies=probe.entropy,
      information=information,
      advantages=per_token,
  )
  metrics = (
      _reward_metrics(correctness, form, rolled, grades, cfg)
      | _probe_metrics(probe, grades.reasoning_lengths)
      | _credit_metrics(group_adv, per_token, rolled)
  )
  return samples, metrics


def _advantages(
    reward: Array,
    information: Array,
    reasoning: Array,
    rolled: Rollout,
    grades: Grades,
    probe: TokenStatistics,
    weights: CreditWeights,
    cfg: Config,
) -> tuple[Array, Array]:
  """The group advantages [b] and the token advantages [b, t]."""
  mode = cfg.credit.mode
  if mode == "length_penalty":
    reward = advantages.length_penalised_rewards(
        reward,
        grades.correct,
        rolled.lengths,
        max_length=cfg.rollout.max_tokens,
        weight=weights.length,
    )
  group_adv = advantages.group_advantages(
      reward, group_size=cfg.group_size, normalise=mode != "length_penalty"
  )
  if mode in ("grpo", "length_penalty"):
    return group_adv, jnp.where(rolled.mask, group_adv[:, None], 0.0)
  if mode == "faithful":
    information = mi.reference_surprise(probe.entropy, rolled.mask)
  return group_adv, advantages.iapo_advantages(
      group_adv,
      reward,
      grades.correct,
      information,
      rolled.entropies,
      rolled.mask,
      reasoning,
      mode=mode,
      info_weight=weights.info,
      explore_weight=weights.explore,
      discount=weights.discount,
      cost=weights.cost,
      horizon=cfg.credit.horizon,
  )


def _reward_metrics(
    correctness: Array,
    form: Array,
    rolled: Rollout,
    grades: Grades,
    cfg: Config,
) -> dict[str, Array]:
  reward = correctness + form
  spread = jnp.ptp(reward.reshape(-1, cfg.group_size), axis=1)
  return {
      "reward/total": jnp.mean(reward),
      "reward/correctness": jnp.mean(correctness),
      "reward/format": jnp.mean(form),
      "reward/accuracy": jnp.mean(grades.correct),
      "reward/well_formed": jnp.mean(grades.well_formed),
      "reward/zero_spread_groups": jnp.mean(spread == 0),
      "length/completion": jnp.mean(rolled.lengths),
      "length/reasoning": jnp.mean(grades.reasoning_lengths),
      "length/unfinished": jnp.mean(~rolled.ended),
      "policy/entropy": masked.mean(rolled.entropies, rolled.mask, None),
  }


def _probe_metrics(
    probe: TokenStatistics, reasoning_lengths: Array
) -> dict[str, Array]:
  """Whether the probes know anything, and as much as they say.

  `accuracy` is how often the gold answer's first token is the most probable at
  the end of the reasoning. A calibrated probe's mean log-likelihood of the
  gold token, over all probed positions, is about the mean of −H there.
  """
  last = reasoning_lengths[:, None]
  final = jax.tree.map(
      lambda x: jnp.take_along_axis(x, last, axis=1)[:, 0], probe
  )
  probed = jnp.arange(probe.entropy.shape[1]) <= last
  likelihood = masked.mean(probe.logprob, probed, None)
  entropy = masked.mean(probe.entropy, probed, None)
  return {
      "probe/entropy_first": jnp.mean(probe.entropy[:, 0]),
      "probe/entropy_last": jnp.mean(final.entropy),
      "probe/accuracy": jnp.mean(final.hit),
      "probe/gold_logprob": likelihood,
      "probe/entropy": entropy,
      "probe/calibration_gap": likelihood + entropy,
  }


def _credit_metrics(
    group_adv: Array, per_token: Array, rolled: Rollout
) -> dict[str, Array]:
  """How large the token credit is against the group advantage |A|."""
  group = jnp.broadcast_to(group_adv[:, None], per_token.shape)
  credit = jnp.square(per_token - group)
  rms = jnp.sqrt(masked.mean(credit, rolled.mask, None))
  scale = masked.mean(jnp.abs(group), rolled.mask, None)
  return {
      "credit/rms": rms,
      "credit/group_abs": scale,
      "credit/rms_over_group": rms / jnp.maximum(scale, 1e-8),
  }


def _split(tree: PyTree, parts: int, num_prompts: int) -> PyTree:
  """[rows, ...] -> [parts, rows / parts, ...] by whole groups.

  Part j takes every `parts`-th prompt, so each part is spread over all data
  shards like the batch is.
  """

  def split(x: Array) -> Array:
    per_part = num_prompts // parts
    group = x.shape[0] // num_prompts
    x = x.reshape(per_part, parts, group, *x.shape[1:])
    x = jnp.moveaxis(x, 1, 0)
    return x.reshape(parts, per_part * group, *x.shape[3:])

  return jax.tree.map(split, tree)


def _join(x: Array, num_prompts: int) -> Array:
  """The inverse of `_split` on one array of sequences."""
  parts, rows = x.shape[:2]
  per_part = num_prompts // parts
  x = x.reshape(parts, per_part, rows // per_part, *x.shape[2:])
  return jnp.moveaxis(x, 0, 1).reshape(parts * rows, *x.shape[3:])


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
  parts = _split((prompts, rolled.tokens), cfg.loss.micro_batches, count)
  logprobs = jax.lax.map(
      lambda part: _score(params, *part, cfg).logprob, parts
  )
  return jax.lax.stop_gradient(_join(logprobs, count))


def _score(
    params: Params, prompts: Prompts, tokens: Array, cfg: Config
) -> TokenStatistics:
  return policy.score(
      params,
      prompts,
      tokens,
      cfg=cfg.model,
      group_size=cfg.group_size,
      temperature=cfg.rollout.temperature,
      head_chunk=cfg.loss.head_chunk,
  )


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
  logprobs = _score(params, part.prompts, part.tokens, cfg).logprob
  surrogate = losses.clipped_surrogate(
      logprobs,
      part.old_logprobs,
      part.advantages,
      clip_low=cfg.loss.clip_low,
      clip_high=cfg.loss.clip_high,
  )
  per_token = surrogate
  sums = {"surrogate": surrogate}
  if cfg.loss.kl_weight:
    divergence = losses.k3_divergence(logprobs, part.reference_logprobs)
    per_token += cfg.loss.kl_weight * divergence
    sums["kl"] = divergence
  ratio = losses.importance_ratio(logprobs, part.old_logprobs)
  clipped = (ratio < 1 - cfg.loss.clip_low) | (ratio > 1 + cfg.loss.clip_high)
  sums |= {"ratio": ratio, "clipped": clipped}
  live = part.weights > 0
  gap = jnp.abs(logprobs - part.old_logprobs)
  metrics = {
      "sum": {k: jnp.sum(part.weights * v) for k, v in sums.items()},
      "max": {"logprob_gap": jnp.max(jnp.where(live, gap, 0.0))},
  }
  loss = jnp.sum(part.weights * per_token)
  return loss, jax.lax.stop_gradient(metrics)


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
  parts = _split(experience, cfg.loss.micro_batches, count)
  grad_fn = jax.grad(
      functools.partial(experience_loss, cfg=cfg), has_aux=True
  )

  def gradient(params: Params) -> tuple[Params, dict[str, dict[str, Array]]]:
    """Summed over micro-batches: the weights make it the batch's own."""

    def add(total: Params, part: Experience) -> tuple[Params, dict]:
      grads, metrics = grad_fn(params, part)
      return jax.tree.map(jnp.add, total, grads), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, metrics = jax.lax.scan(add, zeros, parts)
    return grads, {
        "sum": jax.tree.map(jnp.sum, metrics["sum"]),
        "max": jax.tree.map(jnp.max, metrics["max"]),
    }

  def one_update(
      carry: tuple[Params, optax.OptState], _: None
  ) -> tuple[tuple[Params, optax.OptState], dict[str, Array]]:
    params, opt_state = carry
    grads, metrics = gradient(params)
    steps, opt_state = optimizer.update(grads, opt_state, params)
    metrics = metrics["sum"] | metrics["max"]
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

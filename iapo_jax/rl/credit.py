"""From a graded, probed rollout to token advantages and their metrics."""

import chex
import jax
import jax.numpy as jnp

from iapo_jax.config.schema import Config
from iapo_jax.core import masked
from iapo_jax.core.types import (
  AnswerStatistics,
  Array,
  CreditWeights,
  Grades,
  Rollout,
  Samples,
)
from iapo_jax.rewards.reward import combine
from iapo_jax.rl import advantages, mi, selection
from iapo_jax.rl.own import Credit, Evidence


def _rewards(
    grades: Grades, cfg: Config
) -> tuple[Array, dict[str, Array]]:
  """The reward of each completion, fp32[b], and the means of its parts."""
  correctness, form = combine(
      grades,
      correct=cfg.reward.correct,
      wrong=cfg.reward.wrong,
      well_formed=cfg.reward.well_formed,
      malformed=cfg.reward.malformed,
  )
  return correctness + form, {
      "reward/correctness": jnp.mean(correctness),
      "reward/format": jnp.mean(form),
  }


def assign(
    rolled: Rollout,
    grades: Grades,
    probe: AnswerStatistics | None,
    weights: CreditWeights,
    key: Array,
    cfg: Config,
    *,
    reward: Array | None = None,
    own: Credit | None = None,
) -> tuple[Samples, dict[str, Array]]:
  """Rewards, information and advantages of a rollout, with their metrics.

  Without probes entropies and information are 0 and `probe/...` is left out.

  Args:
    rolled: the rollout.
    grades: of its completions.
    probe: what is known of answers, if it was asked.
    weights: of the credit.
    key: for all that is drawn.
    cfg: the run's configuration.
    reward: fp32[b], a user's, in place of the configured one.
    own: a user's credit, in place of the configured one.

  Returns:
    What is known of each completion, and means over the batch.
  """
  parts = {}
  if reward is None:
    reward, parts = _rewards(grades, cfg)
  chex.assert_shape(reward, rolled.lengths.shape)
  shuffle_key, truncation_key = jax.random.split(key)
  ranked = _ranked(reward, rolled, grades, weights, cfg)
  reasoning, answers = _reasoning_and_answers(rolled, grades, probe, cfg)
  information = mi.realised_information(answers, reasoning)
  kept, learned = _selected(reward, rolled, truncation_key, cfg)
  group_adv = advantages.group_advantages(
      ranked,
      group_size=cfg.group_size,
      normalise=cfg.credit.normalise,
      kept=kept,
  )
  evidence = Evidence(
      group_advantages=group_adv,
      rewards=reward,
      correct=grades.correct,
      information=_credited(information, reasoning, shuffle_key, cfg),
      entropies=rolled.entropies,
      mask=rolled.mask,
      reasoning=reasoning,
  )
  if own:
    per_token = _of_user(own, evidence)
  else:
    per_token = _per_token(evidence, answers, rolled.lengths, weights, cfg)
  samples = Samples(
      tokens=rolled.tokens,
      lengths=rolled.lengths,
      reasoning_lengths=grades.reasoning_lengths,
      correct=grades.correct,
      well_formed=grades.well_formed,
      rewards=reward,
      entropies=rolled.entropies,
      answer_entropies=answers,
      information=information,
      group_advantages=group_adv,
      advantages=per_token,
      learned=learned,
  )
  spread = selection.with_spread(
      ranked, group_size=cfg.group_size, kept=kept
  )
  metrics = _metrics(samples, spread, rolled, grades, probe)
  return samples, parts | metrics


def _reasoning_and_answers(
    rolled: Rollout,
    grades: Grades,
    probe: AnswerStatistics | None,
    cfg: Config,
) -> tuple[Array, Array]:
  """Which tokens are reasoning, bool[b, t]; fp32[b, t + 1] in nats.

  The latter is how uncertain the answer is before each token and after the
  last; 0 without probes.
  """
  slots = jnp.arange(rolled.tokens.shape[1])
  reasoning = slots < grades.reasoning_lengths[:, None]
  if probe:
    return reasoning, mi.uncertainty(probe, estimator=cfg.probe.estimator)
  return reasoning, jnp.zeros((reasoning.shape[0], slots.size + 1))


def _ranked(
    reward: Array,
    rolled: Rollout,
    grades: Grades,
    weights: CreditWeights,
    cfg: Config,
) -> Array:
  """The reward that members of a group are compared by."""
  longest = cfg.rollout.max_tokens
  if cfg.reward.overlong_tokens:
    reward = advantages.overlong_penalised_rewards(
        reward,
        rolled.lengths,
        max_length=longest,
        buffer=cfg.reward.overlong_tokens,
    )
  if cfg.credit.mode == "length_penalty":
    reward = advantages.length_penalised_rewards(
        reward,
        grades.correct,
        rolled.lengths,
        max_length=longest,
        weight=weights.length,
    )
  return reward


def _selected(
    reward: Array, rolled: Rollout, key: Array, cfg: Config
) -> tuple[Array | None, Array]:
  """Who is compared, bool[b] (None: all); which tokens learn, bool[b, t]."""
  select, group_size = cfg.select, cfg.group_size
  # What the environment wrote is nothing to learn from.
  kept, learned = None, rolled.chosen
  if select.shortest:
    kept = selection.shortest(
        rolled.lengths, group_size=group_size, keep=select.shortest
    )
    learned &= kept[:, None]
  if select.with_spread:
    spread = selection.with_spread(
        reward, group_size=group_size, kept=kept
    )
    learned &= spread[:, None]
  if select.first_tokens:
    learned &= selection.truncated(
        rolled.mask,
        key,
        always=select.first_tokens,
        short=select.short_tokens,
        probability=select.later_share,
    )
  return kept, learned


def _credited(
    information: Array, reasoning: Array, key: Array, cfg: Config
) -> Array:
  """The information that is credited; another one for controls."""
  if cfg.credit.information == "shuffled":
    return mi.shuffled_information(information, reasoning, key)
  if cfg.credit.information == "none":
    return jnp.zeros_like(information)
  return information


def _of_user(own: Credit, evidence: Evidence) -> Array:
  """A user's token advantages, [b, t]."""
  found = own(evidence)
  chex.assert_shape(found, evidence.mask.shape)
  found = jnp.where(evidence.mask, found.astype(jnp.float32), 0.0)
  return jax.lax.stop_gradient(found)


def _per_token(
    evidence: Evidence,
    answers: Array,
    lengths: Array,
    weights: CreditWeights,
    cfg: Config,
) -> Array:
  """The configured token advantages, [b, t]."""
  mode, group_adv = cfg.credit.mode, evidence.group_advantages
  if mode == "group_length_penalty":
    group_adv = advantages.length_penalised_advantages(
        group_adv,
        evidence.correct,
        lengths,
        group_size=cfg.group_size,
        weight=weights.length,
    )
  if mode == "gtpo":
    return advantages.entropy_weighted_advantages(
        group_adv,
        evidence.rewards,
        evidence.entropies,
        evidence.mask,
        group_size=cfg.group_size,
        weight=weights.explore,
    )
  if mode not in advantages.TOKEN_CREDITS:
    return jnp.where(evidence.mask, group_adv[:, None], 0.0)
  information, credited = evidence.information, evidence.correct
  if mode == "faithful":
    information = mi.reference_surprise(answers, evidence.mask)
  if not cfg.credit.only_correct:
    credited = jnp.ones_like(credited)
  return advantages.iapo_advantages(
      group_adv,
      evidence.rewards,
      credited,
      information,
      evidence.entropies,
      evidence.mask,
      evidence.reasoning,
      mode=mode,
      info_weight=weights.info,
      explore_weight=weights.explore,
      discount=weights.discount,
      cost=weights.cost,
      horizon=cfg.credit.horizon,
  )


def _metrics(
    samples: Samples,
    spread: Array,
    rolled: Rollout,
    grades: Grades,
    probe: AnswerStatistics | None,
) -> dict[str, Array]:
  """Means over the batch, or over its tokens."""
  metrics = _reward_metrics(samples.rewards, spread, rolled, grades)
  metrics |= _credit_metrics(
      samples.group_advantages, samples.advantages, rolled
  )
  if probe:
    metrics |= _probe_metrics(probe, grades.reasoning_lengths)
  return metrics


def _reward_metrics(
    reward: Array,
    spread: Array,
    rolled: Rollout,
    grades: Grades,
) -> dict[str, Array]:
  return {
      "reward/total": jnp.mean(reward),
      "reward/accuracy": jnp.mean(grades.correct),
      "reward/well_formed": jnp.mean(grades.well_formed),
      "reward/zero_spread_groups": jnp.mean(~spread),
      "reward/timeouts": jnp.mean(grades.timed_out),
      "length/completion": jnp.mean(rolled.lengths),
      "length/reasoning": jnp.mean(grades.reasoning_lengths),
      "length/unfinished": jnp.mean(~rolled.ended),
      "policy/entropy": masked.mean(rolled.entropies, rolled.mask, None),
  }


def _probe_metrics(
    probe: AnswerStatistics, reasoning_lengths: Array
) -> dict[str, Array]:
  """Whether the probes know anything, and as much as they say.

  `accuracy` is how often the gold answer's first token is the most probable at
  the end of the reasoning. A calibrated probe's mean log-likelihood of the
  gold token, over all probed positions, is about the mean of −H there.
  """
  last = reasoning_lengths[:, None]

  def final(x: Array) -> Array:
    return jnp.take_along_axis(x, last, axis=1)[:, 0]

  probed = jnp.arange(probe.entropy.shape[1]) <= last
  likelihood = masked.mean(probe.logprob, probed, None)
  entropy = masked.mean(probe.entropy, probed, None)
  return {
      "probe/entropy_first": jnp.mean(probe.entropy[:, 0]),
      "probe/entropy_last": jnp.mean(final(probe.entropy)),
      "probe/accuracy": jnp.mean(final(probe.hit)),
      "probe/gold_logprob": likelihood,
      "probe/entropy": entropy,
      "probe/calibration_gap": likelihood + entropy,
      "probe/tokens": jnp.mean(probe.spent),
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
      # 0 where no group has spread: there is nothing to compare with.
      "credit/rms_over_group": jnp.where(
          scale > 0, rms / jnp.maximum(scale, 1e-8), 0.0
      ),
  }

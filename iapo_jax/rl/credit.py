"""Computes token advantages and their metrics from a graded, probed rollout."""

from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
from flax import struct

from iapo_jax.config.credits import CREDITS
from iapo_jax.config.schema import Config
from iapo_jax.core import endings, masked
from iapo_jax.core.types import (
  AnswerStatistics,
  Array,
  CreditWeights,
  Grades,
  Rollout,
)
from iapo_jax.rewards.reward import combine
from iapo_jax.rl import advantages, credits, mi, selection
from iapo_jax.rl.own import Credit, Evidence


@struct.dataclass
class Credited:
  """Token advantages and their evidence.

  Attributes:
    evidence: the arrays from which the advantages were computed.
    advantages: fp32[b, t], 0 after the end; constants for the gradient.
    learned: bool[b, t], the tokens that carry loss.
  """

  evidence: Evidence
  advantages: Array
  learned: Array


def assign(
    rolled: Rollout,
    grades: Grades,
    probe: AnswerStatistics | None,
    weights: CreditWeights,
    key: Array,
    cfg: Config,
    *,
    reward: Array | None = None,
    parts: Mapping[str, Array] | None = None,
    own: Credit | None = None,
) -> tuple[Credited, dict[str, Array]]:
  """Credits each token of a rollout; also returns metrics of the batch.

  A user's `reward` fp32[b] or credit (`own`) replaces the configured one;
  `parts` are rewards fp32[b] by name, for metrics. Without probes, uncertainty
  and information are 0, and there are no `probe/...` metrics.
  """
  if reward is None:
    reward, parts = _rewards(grades, cfg)
  chex.assert_shape(reward, rolled.lengths.shape)
  shuffle_key, truncation_key = jax.random.split(key)
  compared = _compared(reward, rolled, grades, weights, cfg)
  kept, learned = _selected(reward, rolled, truncation_key, cfg)
  group_adv = advantages.group_advantages(
      compared,
      group_size=cfg.group_size,
      normalise=cfg.credit.normalise,
      kept=kept,
  )
  evidence = _evidence(
      reward, group_adv, rolled, grades, probe, shuffle_key, cfg
  )
  if own:
    per_token = own(evidence)
  else:
    per_token = getattr(credits, cfg.credit.mode)(evidence, weights, cfg)
  chex.assert_shape(per_token, evidence.mask.shape)
  per_token = jnp.where(evidence.mask, per_token.astype(jnp.float32), 0.0)
  per_token = jax.lax.stop_gradient(per_token)
  spread = selection.with_spread(
      compared, group_size=cfg.group_size, kept=kept
  )
  metrics = {
      f"reward/{name}": jnp.mean(part) for name, part in (parts or {}).items()
  } | _reward_metrics(reward, spread, rolled, grades)
  metrics |= _credit_metrics(group_adv, per_token, evidence.mask)
  if probe:
    metrics |= _probe_metrics(probe, grades.reasoning_lengths)
  return Credited(evidence, per_token, learned), metrics


def _rewards(
    grades: Grades, cfg: Config
) -> tuple[Array, dict[str, Array]]:
  """Returns the reward of each completion, fp32[b], and its parts."""
  correctness, form = combine(
      grades,
      correct=cfg.reward.correct,
      wrong=cfg.reward.wrong,
      well_formed=cfg.reward.well_formed,
      malformed=cfg.reward.malformed,
  )
  return correctness + form, {"correctness": correctness, "format": form}


def _compared(
    reward: Array,
    rolled: Rollout,
    grades: Grades,
    weights: CreditWeights,
    cfg: Config,
) -> Array:
  """Returns the rewards, less penalties, that group advantages compare."""
  longest = cfg.rollout.max_tokens
  if cfg.reward.overlong_tokens:
    reward = advantages.overlong_penalised_rewards(
        reward,
        rolled.lengths,
        max_length=longest,
        buffer=cfg.reward.overlong_tokens,
    )
  if CREDITS[cfg.credit.mode].penalises_rewards:
    priced = advantages.priced_tokens(
        cfg.credit.priced, rolled.mask, *_parts(rolled, grades)
    )
    reward = advantages.length_penalised_rewards(
        reward,
        grades.correct,
        jnp.sum(priced, axis=1),
        max_length=longest,
        weight=weights.length,
    )
  return reward


def _parts(rolled: Rollout, grades: Grades) -> tuple[Array, Array]:
  """Returns the tokens of reasoning and of the answer, bool[b, t] each."""
  slots = jnp.arange(rolled.tokens.shape[1])
  reasoning = slots < grades.reasoning_lengths[:, None]
  before_end = slots < (rolled.lengths - rolled.ended)[:, None]
  return reasoning, before_end & ~reasoning


def _selected(
    reward: Array, rolled: Rollout, key: Array, cfg: Config
) -> tuple[Array | None, Array]:
  """Returns the compared members, bool[b], and the learned tokens, bool[b, t].

  None means that all members are compared.
  """
  select, group_size = cfg.select, cfg.group_size
  # Tokens that the environment wrote do not learn.
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
  if select.finished:
    learned &= rolled.ended[:, None]
  if select.first_tokens:
    learned &= selection.truncated(
        rolled.mask,
        key,
        always=select.first_tokens,
        short=select.short_tokens,
        probability=select.later_share,
    )
  return kept, learned


def _evidence(
    reward: Array,
    group_adv: Array,
    rolled: Rollout,
    grades: Grades,
    probe: AnswerStatistics | None,
    key: Array,
    cfg: Config,
) -> Evidence:
  """Collects the arrays that a credit may read; `key` shuffles the control."""
  rows, slots = rolled.tokens.shape
  reasoning, answer = _parts(rolled, grades)
  uncertainty = jnp.zeros((rows, slots + 1))
  if probe:
    uncertainty = mi.uncertainty(probe, estimator=cfg.probe.estimator)
  information = mi.realised_information(uncertainty, reasoning)
  if cfg.credit.information == "shuffled":
    information = mi.shuffled_information(information, reasoning, key)
  elif cfg.credit.information == "none":
    information = jnp.zeros_like(information)
  return Evidence(
      group_advantages=group_adv,
      rewards=reward,
      correct=grades.correct,
      information=information,
      entropies=rolled.entropies,
      mask=rolled.mask,
      reasoning=reasoning,
      answer=answer,
      uncertainty=uncertainty,
  )


def _reward_metrics(
    reward: Array,
    spread: Array,
    rolled: Rollout,
    grades: Grades,
) -> dict[str, Array]:
  guessed = {}
  if grades.guessed is not None:
    guessed = {"reward/guessed": jnp.mean(grades.guessed)}
  rows = rolled.lengths, rolled.ended, grades.reasoning_lengths
  ends = endings.of(*rows, grades.well_formed)
  late_ends, late_tokens = endings.late(
      rolled.lengths, rolled.ended, rolled.tokens.shape[1]
  )
  return guessed | {
      "reward/total": jnp.mean(reward),
      "reward/accuracy": jnp.mean(grades.correct),
      "reward/well_formed": jnp.mean(grades.well_formed),
      "reward/zero_spread_groups": jnp.mean(~spread),
      "reward/timeouts": jnp.mean(grades.timed_out),
      "length/completion": jnp.mean(rolled.lengths),
      "length/reasoning": jnp.mean(grades.reasoning_lengths),
      "length/answer": jnp.mean(endings.answer_lengths(*rows)),
      "length/unfinished": jnp.mean(ends.cut),
      "length/late_ends": late_ends,
      "length/late_tokens": late_tokens,
      "format/ended_in_reasoning": jnp.mean(ends.in_reasoning),
      "format/malformed_end": jnp.mean(ends.malformed),
      "policy/entropy": masked.mean(rolled.entropies, rolled.mask, None),
  }


def _credit_metrics(
    group_adv: Array, per_token: Array, mask: Array
) -> dict[str, Array]:
  """Compares the size of the token credit with the group advantage |A|."""
  group = jnp.broadcast_to(group_adv[:, None], per_token.shape)
  rms = jnp.sqrt(masked.mean(jnp.square(per_token - group), mask, None))
  scale = masked.mean(jnp.abs(group), mask, None)
  return {
      "credit/rms": rms,
      "credit/group_abs": scale,
      # 0 if no group has spread: there is nothing to compare with.
      "credit/rms_over_group": jnp.where(
          scale > 0, rms / jnp.maximum(scale, 1e-8), 0.0
      ),
  }


def _probe_metrics(
    probe: AnswerStatistics, reasoning_lengths: Array
) -> dict[str, Array]:
  """Measures accuracy and calibration of the probes.

  `accuracy` is how often the gold answer's first token is the most probable at
  the end of the reasoning. If probes are calibrated, the mean log-likelihood of
  the gold token over all probed positions is about the mean of −H there.
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

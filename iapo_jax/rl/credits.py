"""The credit modes: one function for each entry of `config.credits.CREDITS`.

A mode returns the advantage of each token, fp32[b, t]. `credit.assign` ignores
values outside `evidence.mask` and stops gradients.
"""

import jax.numpy as jnp

from iapo_jax.config.schema import Config
from iapo_jax.core import masked
from iapo_jax.core.types import Array, CreditWeights
from iapo_jax.rl import advantages, mi
from iapo_jax.rl.own import Evidence


def grpo(evidence: Evidence, weights: CreditWeights, cfg: Config) -> Array:
  """A on every token."""
  return _on_every_token(evidence.group_advantages, evidence)


def gtpo(evidence: Evidence, weights: CreditWeights, cfg: Config) -> Array:
  """A plus or minus an entropy-weighted share of w_explore · T."""
  return advantages.entropy_weighted_advantages(
      evidence.group_advantages,
      evidence.rewards,
      evidence.entropies,
      evidence.mask,
      group_size=cfg.group_size,
      weight=weights.explore,
  )


def length_penalty(
    evidence: Evidence, weights: CreditWeights, cfg: Config
) -> Array:
  """A on every token, from rewards that are already less w · T / T_max.

  T counts only the tokens that `credit.price` names.
  """
  return _on_every_token(evidence.group_advantages, evidence)


def group_length_penalty(
    evidence: Evidence, weights: CreditWeights, cfg: Config
) -> Array:
  """A − w · z(T) on every token of correct completions, A on others.

  T counts only the tokens that `credit.price` names.
  """
  penalised = advantages.length_penalised_advantages(
      evidence.group_advantages,
      evidence.correct,
      jnp.sum(_priced(evidence, cfg), axis=1),
      group_size=cfg.group_size,
      weight=weights.length,
  )
  return _on_every_token(penalised, evidence)


def paper(evidence: Evidence, weights: CreditWeights, cfg: Config) -> Array:
  """A + w_info · Z(D) − sign(r) · w_explore · Z(h).

  Z(D) is over the reasoning tokens, Z(h) over the completion. arXiv 2602.19049.
  """
  information = masked.unit_zscore(evidence.information, evidence.reasoning)
  exploration = masked.unit_zscore(evidence.entropies, evidence.mask)
  return _shaped(evidence, information, exploration, weights)


def to_go(evidence: Evidence, weights: CreditWeights, cfg: Config) -> Array:
  """A + w_info · Σ_{s ≥ t} γ^{s−t} (D_s − c [s]) − sign(r) · w_explore · Z(h).

  c [s] is c on tokens that `credit.price` counts, by default the reasoning, and
  0 on others. `credit.only_correct` limits the sum to correct completions.
  """
  credited = evidence.correct
  if not cfg.credit.only_correct:
    credited = jnp.ones_like(credited)
  information = advantages.information_to_go(
      evidence.information,
      credited,
      evidence.reasoning,
      discount=weights.discount,
      cost=weights.cost,
      priced=_priced(evidence, cfg),
  )
  exploration = masked.unit_zscore(evidence.entropies, evidence.mask)
  return _shaped(evidence, information, exploration, weights)


def faithful(evidence: Evidence, weights: CreditWeights, cfg: Config) -> Array:
  """A + w_info · N(surprise) − sign(r) · w_explore · N(h).

  The authors' published formula, with exact probes.
  """
  surprise = mi.reference_surprise(evidence.uncertainty, evidence.mask)
  information = advantages.reference_normalised(
      surprise, horizon=cfg.credit.horizon
  )
  exploration = advantages.reference_normalised(
      jnp.where(evidence.mask, evidence.entropies, 0.0)
  )
  return _shaped(evidence, information, exploration, weights)


def _priced(evidence: Evidence, cfg: Config) -> Array:
  """Returns bool[b, t]: the tokens that `credit.price` counts."""
  return advantages.priced_tokens(
      cfg.credit.priced, evidence.mask, evidence.reasoning, evidence.answer
  )


def _on_every_token(per_completion: Array, evidence: Evidence) -> Array:
  """Repeats fp32[b] on every token: fp32[b, t]."""
  return jnp.broadcast_to(per_completion[:, None], evidence.mask.shape)


def _shaped(
    evidence: Evidence,
    information: Array,
    exploration: Array,
    weights: CreditWeights,
) -> Array:
  """Adds both terms, fp32[b, t] each, to A with their weights."""
  return advantages.shaped_advantages(
      evidence.group_advantages,
      evidence.rewards,
      information,
      exploration,
      evidence.mask,
      info_weight=weights.info,
      explore_weight=weights.explore,
  )

"""Formulas of rewards, group advantages and token credit.

They know no configuration. Weights may be traced, so that one compiled program
serves all of their values. Arguments are the same everywhere:

  rewards (r), group_adv (A)   fp32[b], prompt-major
  correct, credited            bool[b]
  lengths (T)                  int32[b], in tokens
  mi (D), entropy (h)          fp32[b, t], in nats
  mask, reasoning_mask         bool[b, t], tokens of completion and reasoning
  priced                       bool[b, t], tokens that cost something
"""

import chex
import jax
import jax.numpy as jnp

from iapo_jax.core import masked
from iapo_jax.core.types import Array


def group_advantages(
    rewards: Array,
    *,
    group_size: int,
    normalise: bool = True,
    kept: Array | None = None,
) -> Array:
  """A = (r − mean_G r) / (std_G r + 1e-4), the std with ddof 1.

  GRPO, arXiv 2402.03300; without `normalise` only the mean is subtracted
  (Dr. GRPO, arXiv 2503.20783).
  Mean and std run over the members that are `kept`, bool[b] (None: all), at
  least 2 of each group. Returns fp32[b], 0 where `kept` is false.
  """
  chex.assert_rank(rewards, 1)
  grouped = rewards.reshape(-1, group_size)
  there = jnp.ones_like(grouped, bool)
  if kept is not None:
    there = kept.reshape(-1, group_size)
  centred = grouped - masked.mean(grouped, there)[:, None]
  if normalise:
    centred /= masked.std(grouped, there, ddof=1)[:, None] + 1e-4
  # A group without spread must give exactly 0. Otherwise the rounding error of
  # its mean would be scaled up by 1 / 1e-4.
  learns = there & masked.differ(grouped, there)
  return jnp.where(learns, centred, 0.0).reshape(-1)


def length_penalised_rewards(
    rewards: Array,
    correct: Array,
    lengths: Array,
    *,
    max_length: int,
    weight: Array | float,
) -> Array:
  """Subtracts w · T / T_max from r on correct completions.

  `lengths` may also count a part of each completion. A control for claims about
  length. Use it with group advantages that are *not* divided by the standard
  deviation: in a group whose completions are all correct, the division cancels
  w. Returns fp32[b].
  """
  chex.assert_equal_shape([rewards, correct, lengths])
  penalty = weight * lengths.astype(jnp.float32) / max_length
  return rewards - jnp.where(correct, penalty, 0.0)


def length_penalised_advantages(
    group_adv: Array,
    correct: Array,
    lengths: Array,
    *,
    group_size: int,
    weight: Array | float,
) -> Array:
  """A − w · z(T) on correct completions, z over the group's correct ones.

  `lengths` may also count a part of each completion. The penalty follows the
  division by the standard deviation of rewards, so the division cannot cancel
  it. The penalties of a group sum to 0. z(T), with ddof 0, is 0 where a group's
  correct completions have equal lengths. Returns fp32[b].
  """
  chex.assert_equal_shape([group_adv, correct, lengths])
  grouped = lengths.astype(jnp.float32).reshape(-1, group_size)
  right = correct.reshape(-1, group_size)
  centred = grouped - masked.mean(grouped, right)[:, None]
  spread = masked.std(grouped, right)[:, None]
  # Equal lengths give 0, however their mean rounds.
  differ = masked.differ(grouped, right) & (spread > 0)
  z = jnp.where(differ, centred / jnp.where(differ, spread, 1.0), 0.0)
  return group_adv - weight * jnp.where(right, z, 0.0).reshape(-1)


def overlong_penalised_rewards(
    rewards: Array, lengths: Array, *, max_length: int, buffer: int
) -> Array:
  """Subtracts min(max((T − (T_max − buffer)) / buffer, 0), 1) from r.

  DAPO's soft overlong punishment, arXiv 2503.14476; `buffer` is in 1 .. T_max.
  Returns fp32[b].
  """
  chex.assert_equal_shape([rewards, lengths])
  beyond = lengths.astype(jnp.float32) - (max_length - buffer)
  return rewards - jnp.clip(beyond / buffer, 0.0, 1.0)


def entropy_weighted_advantages(
    group_adv: Array,
    rewards: Array,
    entropy: Array,
    mask: Array,
    *,
    group_size: int,
    weight: Array | float,
) -> Array:
  """GTPO: adds (r ≥ 0) or subtracts (r < 0) an entropy-weighted share of w · T.

    r ≥ 0:  A + w · T · h_t / Σ_j h_(j, t)
    r < 0:  A − w · T · (1 / h_t) / Σ_j (1 / h_(j, t))

  The sums run over members j of the group that have an r of the same sign and
  a token t. arXiv 2508.04349 as IAPO's authors compute it, except that their
  code also counts members that have ended. Returns fp32[b, t], 0 outside
  `mask`; a constant for the gradient.
  """
  chex.assert_equal_shape([group_adv, rewards])
  chex.assert_equal_shape([entropy, mask])
  good = (rewards >= 0)[:, None]
  floored = jnp.maximum(entropy, 1e-6)  # keeps 1 / h finite for a certain token
  value = jnp.where(good, floored, 1.0 / floored)
  lengths = jnp.sum(mask, axis=1, keepdims=True)

  def share(members: Array) -> Array:
    """Divides each member's value by its group's sum over `members`."""
    parts = jnp.where(mask & members, value, 0.0)
    grouped = parts.reshape(-1, group_size, parts.shape[1])
    total = jnp.sum(grouped, axis=1, keepdims=True)
    return (grouped / jnp.where(total > 0, total, 1.0)).reshape(parts.shape)

  bonus = weight * lengths * (share(good) - share(~good))
  advantages = jnp.where(mask, group_adv[:, None] + bonus, 0.0)
  return jax.lax.stop_gradient(advantages)


def discounted_to_go(x: Array, discount: Array | float) -> Array:
  """y_t = Σ_{s ≥ t} γ^{s−t} x_s along the last axis of fp32[b, t]."""
  chex.assert_rank(x, 2)

  def combine(
      late: tuple[Array, Array], early: tuple[Array, Array]
  ) -> tuple[Array, Array]:
    late_factor, late_sum = late
    early_factor, early_sum = early
    return late_factor * early_factor, early_sum + early_factor * late_sum

  factors = jnp.full_like(x, discount)
  _, to_go = jax.lax.associative_scan(
      combine, (factors, x), reverse=True, axis=1
  )
  return to_go


def priced_tokens(
    price: str, mask: Array, reasoning_mask: Array, answer_mask: Array
) -> Array:
  """Returns `priced` for one of `config.credits.PRICES`; empty prices none.

  `both` counts the EOS, which belongs to neither reasoning nor answer.
  """
  chex.assert_equal_shape([mask, reasoning_mask, answer_mask])
  masks = {"reasoning": reasoning_mask, "answer": answer_mask, "both": mask}
  return masks[price] if price else jnp.zeros_like(mask)


def information_to_go(
    mi: Array,
    credited: Array,
    reasoning_mask: Array,
    *,
    discount: Array | float,
    cost: Array | float,
    priced: Array | None = None,
) -> Array:
  """[credited] · Σ_{s ≥ t} γ^{s−t} (D_s − c · [s priced]).

  D is 0 after the reasoning. `priced` None prices the reasoning: the sum is
  Σ_{s=t..R} γ^{s−t} (D_s − c) for t ≤ R, 0 after. If the answer is priced, the
  sum runs on through it, so that the reasoning carries the cost of the answer
  that follows. 0 on tokens that are neither reasoning nor priced.

  One-step information credits the token that states a result. The forward sum
  also reaches the decision that made the result possible. With γ = 1 and c = 0
  it telescopes to H_{t−1} − H_R. An extension by this project, not in the
  paper. `cost` (c) is in nats per token. Returns fp32[b, t].
  """
  priced = reasoning_mask if priced is None else priced
  chex.assert_equal_shape([mi, reasoning_mask, priced])
  net = jnp.where(reasoning_mask, mi, 0.0) - jnp.where(priced, cost, 0.0)
  gate = (reasoning_mask | priced) & credited[:, None]
  return jnp.where(gate, discounted_to_go(net, discount), 0.0)


def reference_normalised(x: Array, *, horizon: int = 1) -> Array:
  """n(x) / (‖n(x)‖₂ + 1e-8) of fp32[b, t] as the authors' code computes it.

  n(x) = x − mean(x) / (std(x) + 1e-8): the division binds to the mean only,
  and mean, std (ddof 1) and norm run over padding too. With `horizon` K > 1,
  n(x) is replaced by Σ_{j<K} λ^{K−1−j} x_{t+j} of the raw values, λ = 0.5,
  which gives the farthest token the largest weight.
  """
  chex.assert_rank(x, 2)
  if horizon > 1:
    padded = jnp.pad(x, ((0, 0), (0, horizon - 1)))
    width = x.shape[1]
    shifted = sum(
        0.5 ** (horizon - 1 - j) * padded[:, j : j + width]
        for j in range(horizon)
    )
  else:
    average = jnp.mean(x, axis=1, keepdims=True)
    spread = jnp.std(x, axis=1, keepdims=True, ddof=1)
    shifted = x - average / (spread + 1e-8)
  return shifted / (jnp.linalg.norm(shifted, axis=1, keepdims=True) + 1e-8)


def shaped_advantages(
    group_adv: Array,
    rewards: Array,
    information: Array,
    exploration: Array,
    mask: Array,
    *,
    info_weight: Array | float,
    explore_weight: Array | float,
) -> Array:
  """A + w_info · information − sign(r) · w_explore · exploration, per token.

  Confident tokens gain in trajectories of positive reward and lose in others.
  IAPO, arXiv 2602.19049. `information`, made from D, and `exploration`, made
  from h, are fp32[b, t]. Returns fp32[b, t], 0 outside `mask`; a constant for
  the gradient.
  """
  chex.assert_equal_shape([group_adv, rewards])
  chex.assert_equal_shape([information, exploration, mask])
  advantages = (
      group_adv[:, None]
      + info_weight * information
      - jnp.sign(rewards)[:, None] * explore_weight * exploration
  )
  return jax.lax.stop_gradient(jnp.where(mask, advantages, 0.0))

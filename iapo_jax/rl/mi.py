"""Computes the information of each token from probe statistics.

Early exit: end the reasoning after token t, ask for the answer, and measure its
uncertainty H_t. Token t resolves H_{t−1} − H_t.
"""

import chex
import jax
import jax.numpy as jnp

from iapo_jax.config.schema import ESTIMATORS
from iapo_jax.core import draws
from iapo_jax.core.errors import fail
from iapo_jax.core.types import AnswerStatistics, Array


def uncertainty(stats: AnswerStatistics, *, estimator: str) -> Array:
  """Returns the uncertainty of the answer after each prefix.

    entropy         H of the answer's first token
    gold            −log π(a) of the whole gold answer a
    own             −log π(a) of the completion's answer a
    answer_entropy  Σ_j H(a_j | a_<j) along the completion's answer
    gold_chance     1 − π(a) of the whole gold answer a, a probability

  All are in nats except `gold_chance`. IAPO (arXiv 2602.19049) uses `entropy`.
  `gold` and `own` are pointwise: they follow the probability of one answer.
  `answer_entropy` estimates the entropy of whole answers along one of them; its
  mean over answers drawn from π is that entropy. Where probes are consistent,
  1 − `gold_chance` is the probability that the completion ends right, which is
  the value of its prefix.

  `stats.answer` must score the gold answer for `gold` and `gold_chance`, and
  the completion's answer for `own` and `answer_entropy`. Returns fp32[b,
  t + 1], 0 beyond the last probe and where there is no answer. Raises
  ValueError for an unknown estimator, `ConfigError` if a user's probing left
  out the answer that the estimator reads.
  """
  if estimator == "entropy":
    return stats.entropy
  if estimator in ESTIMATORS and stats.answer is None:
    fail(
        "probe.estimator",
        estimator,
        "reads `answer` of the statistics, which Own.probing returns as None;"
        " return it, or use entropy",
    )
  if estimator in ("gold", "own"):
    return -stats.answer.logprob
  if estimator == "answer_entropy":
    return stats.answer.entropy
  if estimator == "gold_chance":
    return -jnp.expm1(stats.answer.logprob)
  raise ValueError(f"estimator = {estimator!r}: must be one of {ESTIMATORS}")


def realised_information(
    answer_entropy: Array, reasoning_mask: Array
) -> Array:
  """D_t = H_{t−1} − H_t on reasoning tokens, 0 elsewhere.

  The conditional mutual information of the random token O_t with the answer,
  given the prefix, is E[H_{t−1} − H_t] over O_t where the elicited answer
  distributions are consistent (π_{t−1}(a) = E π_t(a)). D_t is its one-sample
  value and may be negative. The sum over R reasoning tokens telescopes to
  H_0 − H_R. IAPO, arXiv 2602.19049.

  `answer_entropy` fp32[b, t + 1] is H_0 .. H_t in nats, or another
  `uncertainty`; `reasoning_mask` bool[b, t] is true on tokens 1..R. Returns
  fp32[b, t] in nats; a constant for the gradient.
  """
  chex.assert_rank([answer_entropy, reasoning_mask], 2)
  chex.assert_equal(answer_entropy.shape[1], reasoning_mask.shape[1] + 1)
  information = answer_entropy[:, :-1] - answer_entropy[:, 1:]
  return jax.lax.stop_gradient(jnp.where(reasoning_mask, information, 0.0))


def shuffled_information(
    information: Array, reasoning_mask: Array, key: Array
) -> Array:
  """Permutes the information of each row over its positions, as a control.

  Keeps total, mean and spread of a row. A credit that does better than this
  control uses *where* information falls. `reasoning_mask` bool[b, t] is true on
  tokens 1..R, a prefix of each row. The order of a row depends only on `key`,
  the number of the row and R. Returns fp32[b, t], 0 where the mask is false.
  """
  chex.assert_equal_shape([information, reasoning_mask])
  noise = draws.uniform(key, *information.shape)
  # Sorting by noise permutes the prefix; the rest stays behind it.
  order = jnp.argsort(jnp.where(reasoning_mask, noise, 2.0), axis=-1)
  shuffled = jnp.take_along_axis(information, order, axis=-1)
  return jnp.where(reasoning_mask, shuffled, 0.0)


def reference_surprise(answer_entropy: Array, mask: Array) -> Array:
  """Computes the per-token term of the authors' code, with exact probes.

  surprise_i = (E_i + E_{i−1}) / 2 − E_{i+1} belongs to token o_{i+1}, with
  E_i = H_i for i < T, E_{−1} := 0 and E_T := 0. Its first and last values are
  therefore entropies, not differences. For comparison only.

  `answer_entropy` fp32[b, t + 1] is H at every completion position, `mask`
  bool[b, t] the tokens of each completion. Returns fp32[b, t] in nats, 0
  outside `mask`; a constant for the gradient.
  """
  chex.assert_rank([answer_entropy, mask], 2)
  chex.assert_equal(answer_entropy.shape[1], mask.shape[1] + 1)
  # mask[:, i] is true where token o_{i+1} exists, that is i < T.
  kept = jnp.where(mask, answer_entropy[:, :-1], 0.0)
  before = jnp.pad(kept, ((0, 0), (1, 0)))[:, :-1]
  after = jnp.pad(kept, ((0, 0), (0, 1)))[:, 1:]
  surprise = (kept + before) / 2.0 - after
  return jax.lax.stop_gradient(jnp.where(mask, surprise, 0.0))

"""The final answers of a policy that continues from a prefix.

The probes of `iapo_jax.rl.probes` ask for the answer at once. Here is the
distribution of the answers that the policy really ends with. For a small
vocabulary and short completions it follows exactly from the next-token
distributions after every text; for larger policies it is estimated from counts.

A text is a completion so far that has not ended. Of v tokens the last one,
v − 1, ends a completion. The n_i = (v − 1)^i texts of i tokens are ordered by
their digits, so that text j continues as the texts j (v − 1) + token.
"""

from collections.abc import Sequence

import chex
import numpy as np
from scipy import special

Array = np.ndarray


def texts(vocab_size: int, length: int) -> Array:
  """Returns all texts of a length, in order: int32[n, length]."""
  number = np.arange((vocab_size - 1) ** length)[:, None]
  place = (vocab_size - 1) ** np.arange(length)[::-1]
  return (number // place % (vocab_size - 1)).astype(np.int32)


def text_numbers(tokens: Array, vocab_size: int) -> Array:
  """Returns the number of text o_1..o_i among those of i tokens.

  int64[b, t + 1] for tokens int[b, t]; numbers after the end are meaningless.
  """
  chex.assert_rank(tokens, 2)
  numbers = np.zeros((tokens.shape[0], tokens.shape[1] + 1), np.int64)
  for i, token in enumerate(tokens.T):
    digit = np.minimum(token, vocab_size - 2)
    numbers[:, i + 1] = numbers[:, i] * (vocab_size - 1) + digit
  return numbers


def final_answers(
    chances: Sequence[Array], ends: Sequence[Array], *, count: int
) -> list[Array]:
  """Returns P(the policy ends with answer a | o_1..o_i) for every text.

    P_i(a) = π(end) [a is given by o_1..o_i] + Σ_token π(token) P_{i+1}(a)

  and P_t(a) = [a is given by o_1..o_t] for completions of full length.

  Args:
    chances: float64[n_i, v] for i = 0..t − 1, next-token distributions.
    ends: int[n_i] for i = 0..t, the answer that a text gives if it ends there.
    count: a, the number of answers; no answer counts as one.

  Returns:
    float64[n_i, a] for i = 0..t.
  """
  chex.assert_equal(len(ends), len(chances) + 1)
  one = np.eye(count)
  found = [one[ends[-1]]]
  for chance, end in zip(chances[::-1], ends[-2::-1], strict=True):
    later = found[-1].reshape(len(chance), -1, count)
    given = np.einsum("nk,nka->na", chance[:, :-1], later)
    found.append(given + chance[:, -1:] * one[end])
  return found[::-1]


def next_information(
    chances: Sequence[Array], answers: Sequence[Array]
) -> list[Array]:
  """Returns I(O_{i+1}; A | o_1..o_i) in nats for every text.

    H(A | o_1..o_i) − Σ_token π(token) H(A | o_1..o_i, token)

  This is the conditional mutual information of the next token, which may be
  the end, and the final answer. After the end the entropy is 0.

  Args:
    chances: float64[n_i, v] for i = 0..t − 1.
    answers: float64[n_i, a] for i = 0..t, from `final_answers`.

  Returns:
    float64[n_i] for i = 0..t − 1.
  """
  open_ = [entropy(x) for x in answers]
  return [
      before - np.sum(chance[:, :-1] * after.reshape(len(chance), -1), axis=1)
      for chance, before, after in zip(
          chances, open_[:-1], open_[1:], strict=True
      )
  ]


def reached(chances: Sequence[Array]) -> list[Array]:
  """Returns P(o_1..o_i) of every text: float64[n_i] for i = 0..t.

  `chances` are float64[n_i, v] for i = 0..t − 1.
  """
  found = [np.ones(1)]
  for chance in chances:
    found.append((found[-1][:, None] * chance[:, :-1]).reshape(-1))
  return found


def entropy(distribution: Array) -> Array:
  """Returns −Σ_a p log p along the last axis, in nats: float64[...]."""
  return np.sum(special.entr(distribution), axis=-1)


def divergence(p: Array, q: Array) -> Array:
  """Returns KL(p ‖ q) = Σ_a p log (p / q) along the last axis, in nats.

  Infinite where q is 0 and p is not. float[..., a] -> float64[...].
  """
  chex.assert_equal_shape([p, q])
  return np.sum(special.rel_entr(p, q), axis=-1)


def entropy_of_counts(counts: Array) -> Array:
  """Estimates the entropy of the distribution that counts were drawn from.

    ψ(n) − (1 / n) Σ_a n_a G(n_a),
    G(n) = ψ(n) + (−1)^n / 2 · (ψ((n + 1) / 2) − ψ(n / 2))

  Schürmann, arXiv cond-mat/0403192 (ξ = ½), after Grassberger, arXiv
  physics/0307138. The entropy of the frequencies is too low by about
  (a − 1) / 2n; the bias of this estimate falls exponentially in the n_a.

  Args:
    counts: int[..., a], draws of each answer; at least one in total.

  Returns:
    float64[...] in nats.
  """
  total = np.sum(counts, axis=-1)
  n = np.maximum(counts, 1).astype(np.float64)
  sign = np.where(counts % 2, -1.0, 1.0)
  turn = special.digamma((n + 1) / 2) - special.digamma(n / 2)
  weighted = counts * (special.digamma(n) + sign / 2 * turn)
  return special.digamma(total) - np.sum(weighted, axis=-1) / total


def log_chance_of_counts(hits: Array, draws: int) -> Array:
  """Returns E log p given `hits` int[...] of `draws`, in nats.

    ψ(hits + ½) − ψ(draws + 1)

  The mean under the posterior of Jeffreys' prior, Beta(½, ½). Without a hit it
  is about −log draws − 2, although the true value may be far lower.
  """
  return special.digamma(hits + 0.5) - special.digamma(draws + 1.0)

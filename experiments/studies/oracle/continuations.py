"""What a policy ends with if it goes on from a prefix: exactly, or by samples.

The probes of `iapo_jax.rl.probes` ask for the answer at once. Beside them stands
the distribution of the answers that the policy really ends with. For a
vocabulary of a few words and short completions it follows from the next-token
distributions after every text; for larger policies from counts.

Texts are the completions so far that did not end. Of v tokens the last one,
v − 1, ends a completion; the n_i = (v − 1)^i texts of i tokens are in the order
of their digits, so that text j goes on as texts j (v − 1) + token.
"""

from collections.abc import Sequence

import chex
import numpy as np
from scipy import special

Array = np.ndarray


def texts(vocab_size: int, length: int) -> Array:
  """int32[n, length]: all texts of a length, in their order.

  Args:
    vocab_size: v.
    length: of each; 0 gives the empty one.
  """
  number = np.arange((vocab_size - 1) ** length)[:, None]
  place = (vocab_size - 1) ** np.arange(length)[::-1]
  return (number // place % (vocab_size - 1)).astype(np.int32)


def text_numbers(tokens: Array, vocab_size: int) -> Array:
  """int64[b, t + 1]: which text o_1..o_i is among those of i tokens.

  Args:
    tokens: int[b, t]; numbers after the end mean nothing.
    vocab_size: v.
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
  """P(the policy ends with answer a | o_1..o_i), for every text.

    P_i(a) = π(end) [a is given by o_1..o_i] + Σ_token π(token) P_{i+1}(a)

  and P_t(a) = [a is given by o_1..o_t] where the longest completion is over.

  Args:
    chances: float64[n_i, v] for i = 0..t − 1, next-token distributions.
    ends: int[n_i] for i = 0..t, which answer a text gives if it ends there.
    count: a, the answers that there are; none at all is one of them.

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
  """I(O_{i+1}; A | o_1..o_i) in nats: how much the next token will tell.

    H(A | o_1..o_i) − Σ_token π(token) H(A | o_1..o_i, token)

  the conditional mutual information of the next token, the end among them,
  with the answer that the policy ends with. After the end nothing is open.

  Args:
    chances: float64[n_i, v] for i = 0..t − 1.
    answers: float64[n_i, a] for i = 0..t, of `final_answers`.

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
  """P(o_1..o_i) of every text: float64[n_i] for i = 0..t.

  Args:
    chances: float64[n_i, v] for i = 0..t − 1.
  """
  found = [np.ones(1)]
  for chance in chances:
    found.append((found[-1][:, None] * chance[:, :-1]).reshape(-1))
  return found


def entropy(distribution: Array) -> Array:
  """−Σ_a p log p along the last axis, in nats: float64[...]."""
  return np.sum(special.entr(distribution), axis=-1)


def divergence(p: Array, q: Array) -> Array:
  """KL(p ‖ q) = Σ_a p log (p / q) along the last axis, in nats.

  Args:
    p: float[..., a].
    q: float[..., a]; where it is 0 and p is not, the result is infinite.

  Returns:
    float64[...].
  """
  chex.assert_equal_shape([p, q])
  return np.sum(special.rel_entr(p, q), axis=-1)


def entropy_of_counts(counts: Array) -> Array:
  """The entropy of what counts were drawn from, nearly without bias.

    ψ(n) − (1 / n) Σ_a n_a G(n_a),
    G(n) = ψ(n) + (−1)^n / 2 · (ψ((n + 1) / 2) − ψ(n / 2))

  Schürmann, arXiv cond-mat/0403192 (ξ = ½), after Grassberger, arXiv
  physics/0307138. The entropy of the frequencies is too low by about
  (a − 1) / 2n; this one's bias falls exponentially in the n_a.

  Args:
    counts: int[..., a], draws of each answer; at least one in all.

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
  """E log p given `hits` of `draws`: ψ(hits + ½) − ψ(draws + 1).

  The mean under the posterior of Jeffreys' prior, Beta(½, ½). It is finite
  without a hit: about −log draws − 2, where the truth may be far lower.

  Args:
    hits: int[...].
    draws: n.

  Returns:
    float64[...] in nats.
  """
  return special.digamma(hits + 0.5) - special.digamma(draws + 1.0)

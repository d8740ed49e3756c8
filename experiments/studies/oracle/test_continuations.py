"""Final answers of small vocabularies, by hand and by brute force."""

import itertools
import math

import continuations
import enumeration
import numpy as np
import pytest

LOG2 = math.log(2)


def bernoulli(p):
  return -p * math.log(p) - (1 - p) * math.log(1 - p)


def two_tokens():
  """The first token is a fair coin, the second one repeats it in 3 of 4.

  Tokens 0 and 1; 2 would end, and never comes. The second is the answer.
  """
  return [
      np.array([[0.5, 0.5, 0.0]]),
      np.array([[0.75, 0.25, 0.0], [0.25, 0.75, 0.0]]),
  ], [np.array([0]), np.array([0, 1]), np.array([0, 1, 0, 1])]


def random_policy(seed=0, vocab=4, length=3, count=3):
  """Chances and answers without any structure, ends everywhere."""
  rng = np.random.default_rng(seed)
  sizes = [(vocab - 1) ** i for i in range(length + 1)]
  chances = [rng.dirichlet(np.ones(vocab), size) for size in sizes[:-1]]
  return chances, [rng.integers(count, size=size) for size in sizes]


def test_texts():
  np.testing.assert_array_equal(
      continuations.texts(3, 2), [[0, 0], [0, 1], [1, 0], [1, 1]]
  )
  assert continuations.texts(3, 0).shape == (1, 0)
  # 1, 0, 1 of two digits: 1, then 2 · 1 + 0, then 2 · 2 + 1.
  np.testing.assert_array_equal(
      continuations.text_numbers(np.array([[1, 0, 1]]), 3), [[0, 1, 2, 5]]
  )
  every = continuations.texts(4, 3)
  np.testing.assert_array_equal(
      continuations.text_numbers(every, 4)[:, 3], np.arange(27)
  )


def test_information_of_two_tokens():
  chances, ends = two_tokens()
  answers = continuations.final_answers(chances, ends, count=2)
  # P(0) = 1/2 · 3/4 + 1/2 · 1/4.
  np.testing.assert_allclose(answers[0], [[0.5, 0.5]])
  np.testing.assert_allclose(answers[1], [[0.75, 0.25], [0.25, 0.75]])
  first, second = continuations.next_information(chances, answers)
  # log 2 is open before the first, H(1/4) = 0.562 after it, nothing at last.
  np.testing.assert_allclose(first, [LOG2 - bernoulli(0.25)])
  np.testing.assert_allclose(second, [bernoulli(0.25)] * 2)


def test_the_end_tells_too():
  """Two answers: 1 if it goes on (in 1 of 4), 0 if it ends at once."""
  answers = continuations.final_answers(
      [np.array([[0.25, 0.75]])], [np.array([0]), np.array([1])], count=2
  )
  np.testing.assert_allclose(answers[0], [[0.75, 0.25]])
  (found,) = continuations.next_information([np.array([[0.25, 0.75]])], answers)
  np.testing.assert_allclose(found, [bernoulli(0.25)])


def test_telescoping():
  """Σ_i E I(O_{i+1}; A | o_1..o_i) = H(A): in the end nothing is open."""
  chances, ends = random_policy()
  answers = continuations.final_answers(chances, ends, count=3)
  information = continuations.next_information(chances, answers)
  reached = continuations.reached(chances)
  total = sum(
      np.sum(r * i) for r, i in zip(reached, information, strict=False)
  )
  np.testing.assert_allclose(total, continuations.entropy(answers[0])[0])
  assert all((i > -1e-12).all() for i in information)


def test_beside_all_completions():
  """The recursion against sums over completions, one by one."""
  chances, ends = random_policy(seed=1)
  end = 3
  found = enumeration.enumerate_completions(
      lambda p: () if end in p or len(p) == 3 else range(4)
  )
  numbers = continuations.text_numbers(found.tokens, 4)
  weights, given = [], []
  for row, length in enumerate(found.lengths):
    weights.append(
        math.prod(
            chances[i][numbers[row, i], found.tokens[row, i]]
            for i in range(length)
        )
    )
    ended = found.tokens[row, length - 1] == end
    last = length - ended
    given.append(np.eye(3)[ends[last][numbers[row, last]]])
  np.testing.assert_allclose(sum(weights), 1.0)
  brute = enumeration.given_prefix(
      np.array(given), np.array(weights), found
  )
  answers = continuations.final_answers(chances, ends, count=3)
  for row, length in enumerate(found.lengths):
    for i in range(length):
      np.testing.assert_allclose(
          answers[i][numbers[row, i]], brute[found.prefixes[row, i]], rtol=1e-5
      )


def test_a_consistent_policy_has_no_gap():
  """Elicited = final: KL is 0, and the mean of D is the information."""
  chances, ends = random_policy(seed=2)
  answers = continuations.final_answers(chances, ends, count=3)
  information = continuations.next_information(chances, answers)
  elicited = answers
  for i, chance in enumerate(chances):
    np.testing.assert_array_equal(
        continuations.divergence(answers[i], elicited[i]), 0
    )
    open_ = continuations.entropy(elicited[i])
    later = continuations.entropy(elicited[i + 1]).reshape(len(chance), -1)
    later = np.concatenate([later, np.zeros((len(chance), 1))], axis=1)
    mean = np.sum(chance * (open_[:, None] - later), axis=1)
    np.testing.assert_allclose(mean, information[i], atol=1e-12)


def test_divergence():
  # ½ log 2 + ½ log (2/3).
  np.testing.assert_allclose(
      continuations.divergence(np.array([0.5, 0.5]), np.array([0.25, 0.75])),
      0.5 * LOG2 + 0.5 * math.log(2 / 3),
  )
  assert continuations.divergence(
      np.array([0.5, 0.5]), np.array([1.0, 0.0])
  ) == math.inf


@pytest.mark.parametrize("p", [0.5, 0.8])
def test_entropy_of_counts_has_little_bias(p):
  """Its mean over all outcomes of 16 draws, exactly."""
  n = 16
  mean = plain = 0.0
  for k in range(n + 1):
    chance = math.comb(n, k) * p**k * (1 - p) ** (n - k)
    mean += chance * continuations.entropy_of_counts(np.array([k, n - k]))
    share = np.array([k, n - k]) / n
    plain += chance * continuations.entropy(share)
  # Frequencies are too low by about 1 / 2n.
  np.testing.assert_allclose(plain - bernoulli(p), -1 / (2 * n), rtol=0.15)
  assert abs(mean - bernoulli(p)) < 1e-3


def test_entropy_of_counts_by_hand():
  # G(1) = ψ(1) − ½ (ψ(1) − ψ(½)) = −γ − log 2 and ψ(2) = 1 − γ: all draws
  # differ, and so there must be more to see.
  np.testing.assert_allclose(
      continuations.entropy_of_counts(np.array([1, 1])), 1 + LOG2
  )
  rows = np.array(list(itertools.product([0, 3], [1, 2])))
  assert continuations.entropy_of_counts(rows).shape == (4,)


def test_log_chance_of_counts():
  # ψ(3/2) − ψ(3) = (2 − γ − 2 log 2) − (3/2 − γ).
  np.testing.assert_allclose(
      continuations.log_chance_of_counts(np.array(1), 2), 0.5 - 2 * LOG2
  )

"""Enumerated completions and tabular policies, by hand and by brute force."""

import itertools
import math

import enumeration
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tabular
from jax.flatten_util import ravel_pytree
from tabular import TabularParams


def binary_tree(depth):
  """Two tokens, `end` = 2 everywhere, two answers."""
  return tabular.make_tree(
      lambda prefix: (0, 1, 2) if len(prefix) < depth else (2,),
      num_tokens=2,
      num_answers=2,
  )


def random_params(tree, seed):
  rng = np.random.default_rng(seed)
  nodes, actions = tree.allowed.shape
  return TabularParams(
      steps=jnp.asarray(rng.normal(size=(nodes, actions))),
      answers=jnp.asarray(rng.normal(size=(nodes, tree.num_answers))),
  )


def test_completions_of_a_vocabulary():
  """All of 0 (the end) and 1 up to two tokens: (0), (1, 0), (1, 1)."""
  found = enumeration.enumerate_completions(
      lambda p: () if 0 in p or len(p) == 2 else (0, 1)
  )
  np.testing.assert_array_equal(found.tokens, [[0, 0], [1, 0], [1, 1]])
  np.testing.assert_array_equal(found.lengths, [1, 2, 2])
  # Prefixes in the order of the walk: (), (0), (1), (1, 0), (1, 1).
  np.testing.assert_array_equal(
      found.prefixes, [[0, 1, 1], [0, 2, 3], [0, 2, 4]]
  )
  assert found.num_prefixes == 5
  np.testing.assert_array_equal(found.mask, [[1, 0], [1, 1], [1, 1]])


def test_what_cannot_be_enumerated():
  with pytest.raises(ValueError, match="limit = 7"):
    enumeration.enumerate_completions(
        lambda p: () if len(p) == 3 else (0, 1), limit=7
    )
  with pytest.raises(ValueError, match="no completion has a token"):
    enumeration.enumerate_completions(lambda p: ())
  with pytest.raises(ValueError, match=r"next_steps\(\(0,\)\) = \(\)"):
    tabular.make_tree(
        lambda p: () if p else (0,), num_tokens=1, num_answers=2
    )


def test_expectations_given_a_prefix():
  completions = enumeration.enumerate_completions(
      lambda p: () if 0 in p or len(p) == 2 else (0, 1)
  )
  weights = jnp.array([0.5, 0.125, 0.375])
  x = jnp.array([[1.0], [2.0], [4.0]])
  # (): 0.5 + 0.25 + 1.5; (1): (0.25 + 1.5) / 0.5; the rest are their own.
  np.testing.assert_allclose(
      enumeration.given_prefix(x, weights, completions)[:, 0],
      [2.25, 1.0, 3.5, 2.0, 4.0],
  )
  values = jnp.array([[8.0, 9.0], [2.0, 3.0], [2.0, 7.0]])
  # First: 4 + 0.25 + 0.75; second: (0.125 * 3 + 0.375 * 7) / 0.5 = 6.
  np.testing.assert_allclose(
      enumeration.expected_next(values, weights, completions),
      [[5.0, 0.0], [5.0, 6.0], [5.0, 6.0]],
  )


def test_prefix_without_probability():
  completions = enumeration.enumerate_completions(
      lambda p: () if 0 in p or len(p) == 2 else (0, 1)
  )
  weights = jnp.array([1.0, 0.0, 0.0])
  found = enumeration.given_prefix(jnp.ones((3, 1)), weights, completions)
  np.testing.assert_array_equal(found[:, 0], [1.0, 1.0, 0.0, 0.0, 0.0])
  found = enumeration.expected_next(jnp.ones((3, 2)), weights, completions)
  np.testing.assert_array_equal(found, [[1, 0], [1, 0], [1, 0]])


def test_group_advantages_by_hand():
  rewards, weights = jnp.array([1.0, -1.0]), jnp.array([0.75, 0.25])
  # Mean 0.5, deviations 0.5 and -1.5, variance 0.75 * 0.25 + 0.25 * 2.25.
  centred = np.array([0.5, -1.5])
  np.testing.assert_allclose(
      enumeration.group_advantages(rewards, weights, normalise=False), centred
  )
  np.testing.assert_allclose(
      enumeration.group_advantages(rewards, weights),
      centred / (math.sqrt(0.75) + 1e-4),
  )


def test_tabular_policy_by_hand():
  """One token or none, then one of two answers."""
  tree, numbers = tabular.make_tree(
      lambda p: (1,) if p else (0, 1), num_tokens=1, num_answers=2
  )
  assert numbers == {(): 0, (0,): 1}
  params = TabularParams(
      steps=jnp.log(jnp.array([[0.25, 0.75], [1.0, 1.0]])),
      answers=jnp.log(jnp.array([[0.5, 0.5], [0.75, 0.25]])),
  )
  # Token 0, end, answers 2 and 3; then end, answers 2 and 3.
  np.testing.assert_array_equal(
      tree.completions.tokens, [[0, 1, 2], [0, 1, 3], [1, 2, 0], [1, 3, 0]]
  )
  np.testing.assert_allclose(
      tabular.weights(params, tree), [0.1875, 0.0625, 0.375, 0.375]
  )
  # 3 * 0.25 + 2 * 0.75 tokens; 0.1875 + 0.375 are right.
  np.testing.assert_allclose(tabular.expected_length(params, tree), 2.25)
  np.testing.assert_allclose(tabular.accuracy(params, tree), 0.5625)
  step = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
  two = math.log(2.0)
  # The step is as uncertain as the answer after token 0.
  np.testing.assert_allclose(
      tabular.entropies(params, tree),
      [[step, 0, step], [step, 0, step], [step, two, 0], [step, two, 0]],
  )
  np.testing.assert_allclose(
      tabular.information(params, tree, probe="elicited"),
      [[two - step, 0, 0], [two - step, 0, 0], [0, 0, 0], [0, 0, 0]],
      atol=1e-15,
  )
  # What is answered in the end is right in 0.5625 of all.
  given = tabular.answer_distributions(params, tree, probe="consistent")
  np.testing.assert_allclose(given[0, 0], [0.5625, 0.4375])
  np.testing.assert_allclose(given[0, 1], [0.75, 0.25])


def test_probabilities_sum_to_one():
  tree, _ = binary_tree(3)
  params = random_params(tree, 0)
  assert len(tree.completions.tokens) == 15 * 2
  np.testing.assert_allclose(jnp.sum(tabular.weights(params, tree)), 1.0)


def test_expected_information_is_mutual_information():
  """Against I(O; Y) of the joint table; every reasoning has two tokens."""
  tree, numbers = tabular.make_tree(
      lambda p: (0, 1) if len(p) < 2 else (2,), num_tokens=2, num_answers=2
  )
  params = random_params(tree, 1)
  joint = np.zeros((2, 2))  # of the first token and the answer
  steps = np.exp(params.steps[:, :2])
  steps /= steps.sum(1, keepdims=True)
  answers = np.asarray(jax.nn.softmax(params.answers))
  for first, second in itertools.product(range(2), repeat=2):
    chance = steps[0, first] * steps[numbers[first,], second]
    joint[first] += chance * answers[numbers[first, second]]
  apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
  mutual = np.sum(joint * np.log(joint / apart))

  @jax.jit
  def expected(given):
    return enumeration.expected_next(
        tabular.information(given, tree, probe="consistent"),
        tabular.weights(given, tree),
        tree.completions,
    )

  found = expected(params)
  np.testing.assert_allclose(found[:, 0], mutual, rtol=1e-12)


def test_gradient_is_that_of_the_expectation():
  """Against the sum over completions of p A ∂ log π, by differences."""
  tree, _ = binary_tree(2)
  params = random_params(tree, 2)
  credit = np.random.default_rng(2).normal(size=tree.steps.shape)
  log_of = jax.jit(tabular.logprobs)
  found = jax.jit(tabular.gradient)(params, tree, credit)
  weights = np.asarray(tabular.weights(params, tree))[:, None]
  for name in ("steps", "answers"):
    for place in ((0, 0), (2, 1)):
      ends = []
      for sign in (1, -1):
        moved = np.array(getattr(params, name))
        moved[place] += sign * 1e-5
        log = np.asarray(log_of(params.replace(**{name: moved}), tree))
        ends.append(np.sum(weights * credit * log))
      np.testing.assert_allclose(
          getattr(found, name)[place], (ends[0] - ends[1]) / 2e-5, atol=1e-9
      )


def test_natural_gradient_is_the_fisher_inverse():
  tree, _ = binary_tree(2)
  params = random_params(tree, 3)
  credit = np.random.default_rng(3).normal(size=tree.steps.shape)
  flat, restore = ravel_pytree(params)
  mask = tree.completions.mask
  scores = jax.jit(
      jax.jacobian(lambda x: tabular.logprobs(restore(x), tree))
  )(flat)
  weights = tabular.weights(params, tree)[:, None] * mask
  fisher = jnp.einsum("bt,btx,bty->xy", weights, scores, scores)
  plain, _ = ravel_pytree(
      jax.jit(tabular.gradient)(params, tree, credit)
  )
  natural, _ = ravel_pytree(
      jax.jit(tabular.natural_gradient)(params, tree, credit)
  )
  # Shifts of a row's logits are in the null space, so compare their effects.
  np.testing.assert_allclose(fisher @ natural, plain, atol=1e-14)


def test_unknown_words_are_refused():
  tree, _ = binary_tree(1)
  params = random_params(tree, 4)
  with pytest.raises(ValueError, match="mode = 'other'"):
    tabular.token_advantages(params, tree, mode="other")
  with pytest.raises(ValueError, match="probe = 'other'"):
    tabular.token_advantages(params, tree, mode="to_go", probe="other")

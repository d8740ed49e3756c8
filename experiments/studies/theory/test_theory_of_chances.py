"""Claim 12 of docs/theory.md: a price against the chance of being right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tabular
from chains import OPEN, RIGHT, chain, derivatives, random_table

from iapo_jax.rl import advantages, mi


def chances(params, tree):
  """The chance of the right answer if reasoning ends: float[b, t + 1]."""
  found = tabular.answer_distributions(params, tree, probe="elicited")
  return found[..., 0]


def credit_of(params, tree, cost):
  """As `to_go` has it with `gold_chance`, γ = 1 and without gate."""
  uncertainty = 1 - chances(params, tree)
  gained = mi.realised_information(uncertainty, tree.reasoning_mask)
  everyone = jnp.ones(gained.shape[0], bool)
  return advantages.information_to_go(
      gained, everyone, tree.reasoning_mask, discount=1.0, cost=cost
  )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cost", [0.0, 0.03, 0.3])
def test_claim_12_it_ascends_correctness_at_a_price(seed, cost):
  tree, params, _ = random_table(seed)
  credit = credit_of(params, tree, cost)
  update = tabular.gradient(params, tree, credit)

  def priced(steps):
    # Answers given after the reasoning do not change: they have no credit.
    at = params.replace(steps=steps)
    return tabular.accuracy(at, tree) - cost * tabular.expected_length(at, tree)

  np.testing.assert_allclose(
      update.steps, jax.grad(priced)(params.steps), atol=1e-12
  )
  np.testing.assert_array_equal(update.answers, 0)
  for direction in (update, tabular.natural_gradient(params, tree, credit)):
    length, correct = derivatives(params, tree, direction)
    assert correct > cost * length


def test_claim_12_by_hand():
  """A guess at once, or one token and right: it is worth 1/2, and costs c."""
  tree, params = chain(OPEN, RIGHT)
  for cost in (0.1, 0.4, 0.6):
    update = tabular.gradient(params, tree, credit_of(params, tree, cost))
    length, correct = derivatives(params, tree, update)
    # ΔQ = 1/2 - c; x differs by a token, and by 1/2.
    np.testing.assert_allclose(length, (0.5 - cost) / 8)
    np.testing.assert_allclose(correct, (0.5 - cost) / 16)

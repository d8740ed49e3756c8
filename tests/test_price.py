"""What a length penalty and a token cost count, and what cut ones learn."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from iapo_jax.config import parsing
from iapo_jax.config.credits import CREDITS
from iapo_jax.config.schema import AGGREGATIONS, Config
from iapo_jax.core.types import Grades, Rollout
from iapo_jax.rl import advantages, credit, losses, mi, state

# A completion of 2 tokens of reasoning, 3 of answer and an EOS.
REASONING = np.array([[1, 1, 0, 0, 0, 0, 0]], bool)
ANSWER = np.array([[0, 0, 1, 1, 1, 0, 0]], bool)
MASK = np.array([[1, 1, 1, 1, 1, 1, 0]], bool)


class InformationToGoTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
      # D is 1, 0.5; c 0.25, discount 0.5. Net 0.75, 0.25, to go from the end.
      ("reasoning", [0.875, 0.25, 0, 0, 0, 0, 0]),
      # Net 1, 0.5, then -0.25 thrice: -0.25, -0.375, -0.4375 of the answer;
      # 0.5 - 0.21875; 1 + 0.140625. The EOS costs nothing.
      ("answer", [1.140625, 0.28125, -0.4375, -0.375, -0.25, 0, 0]),
      # The EOS costs, too: -0.25, -0.375, -0.4375, -0.46875;
      # 0.25 - 0.234375; 0.75 + 0.0078125.
      (
          "both",
          [0.7578125, 0.015625, -0.46875, -0.4375, -0.375, -0.25, 0],
      ),
      # The same as the first, without a cost: 1 + 0.25, 0.5.
      ("", [1.25, 0.5, 0, 0, 0, 0, 0]),
  )
  def test_by_hand(self, price, expected):
    priced = advantages.priced_tokens(price, MASK, REASONING, ANSWER)
    to_go = self.variant(
        functools.partial(
            advantages.information_to_go, discount=0.5, cost=0.25
        )
    )
    information = jnp.array([[1.0, 0.5, 9.0, 9.0, 9.0, 9.0, 9.0]])
    got = to_go(information, jnp.array([True]), REASONING, priced=priced)
    np.testing.assert_array_equal(got, [expected])
    wrong = to_go(information, jnp.array([False]), REASONING, priced=priced)
    np.testing.assert_array_equal(wrong, np.zeros((1, 7)))

  def test_undiscounted_it_is_what_remains_less_what_will_be_paid(self):
    uncertain = np.array([[2.0, 1.5, 0.25, 0, 0, 0, 0, 0]], np.float32)
    got = advantages.information_to_go(
        mi.realised_information(uncertain, REASONING), np.ones(1, bool),
        REASONING, discount=1.0, cost=0.125, priced=MASK,
    )  # fmt: skip
    # H_{t-1} - H_R, less 0.125 a token from t to the EOS.
    left = np.array([1.75, 1.25, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(
        got[0], left - 0.125 * np.array([6, 5, 4, 3, 2, 1, 0])
    )

  @chex.variants(with_jit=True)
  def test_the_price_of_reasoning_is_bit_for_bit_what_it_was(self):
    rng = np.random.default_rng(0)
    information = rng.normal(size=(5, 37)).astype(np.float32)
    mask = np.arange(37) < np.array([0, 1, 9, 36, 37])[:, None]
    credited = np.array([1, 1, 1, 0, 1], bool)

    @self.variant
    def before(x, discount, cost):
      net = jnp.where(mask, x - cost, 0.0)
      gate = mask & credited[:, None]
      return jnp.where(gate, advantages.discounted_to_go(net, discount), 0.0)

    @self.variant
    def now(x, discount, cost):
      return advantages.information_to_go(
          x, credited, mask, discount=discount, cost=cost, priced=mask
      )

    for numbers in ((0.9, 0.0), (1.0, 0.01)):
      numbers = tuple(map(jnp.float32, numbers))
      np.testing.assert_array_equal(
          now(information, *numbers), before(information, *numbers)
      )


# A group of four, of at most eight tokens: one as it should be, one that is
# cut, one that ends inside the reasoning, one that is right but malformed.
ROLLED = Rollout(
    tokens=jnp.zeros((4, 8), jnp.int32),
    lengths=jnp.array([6, 8, 4, 7]),
    ended=jnp.array([True, False, True, True]),
    logprobs=jnp.zeros((4, 8)),
    entropies=jnp.zeros((4, 8)),
    context=(),
)
GRADES = Grades(
    correct=jnp.array([True, False, False, True]),
    well_formed=jnp.array([True, False, False, False]),
    reasoning_lengths=jnp.array([2, 8, 3, 4]),
    timed_out=jnp.zeros(4, bool),
)


def make_config(mode="grpo", finished=False, shortest=0, **fields):
  """A configuration without probes, in which only costs and lengths credit."""
  base = Config()
  if CREDITS[mode].penalises_rewards:
    fields["normalise"] = False
  changes = {
      "group_size": 4,
      "rollout": dataclasses.replace(base.rollout, max_tokens=8),
      "credit": dataclasses.replace(
          base.credit, mode=mode, explore_weight=0.0, **fields
      ),
      "select": dataclasses.replace(
          base.select, finished=finished, shortest=shortest
      ),
  }
  return parsing.checked(dataclasses.replace(base, **changes))


def assign(rolled=ROLLED, **fields):
  cfg = make_config(**fields)
  weights = state.credit_weights(cfg.credit)
  return credit.assign(rolled, GRADES, None, weights, jax.random.key(0), cfg)


def test_the_metrics_of_lengths_and_endings():
  _, metrics = assign()
  expected = {
      # 3 + 0 + 0 + 2 tokens.
      "length/answer": 1.25,
      "length/unfinished": 0.25,
      "format/ended_in_reasoning": 0.25,
      "format/malformed_end": 0.25,
      # Of the tokens after the fourth: 2 + 4 + 0 + 3.
      "length/late_ends": 0.5,
      "length/late_tokens": 2.25,
  }
  assert {name: float(metrics[name]) for name in expected} == expected


# Tokens of the two right completions.
COUNTED = {"reasoning": (2, 4), "answer": (3, 2), "both": (6, 7)}


@pytest.mark.parametrize("price", [*COUNTED, "auto"])
def test_a_length_penalty_counts_what_is_priced(price):
  first, last = COUNTED["both" if price == "auto" else price]
  credited, _ = assign(mode="length_penalty", price=price, length_weight=2.0)
  # Rewards 1.5, -1.5, -1.5, 0.5, less 2 / 8 a token of the right ones.
  rewards = np.array([1.5 - first / 4, -1.5, -1.5, 0.5 - last / 4])
  np.testing.assert_allclose(
      credited.advantages[:, 0], rewards - rewards.mean(), atol=1e-6
  )
  plain, _ = assign()
  credited, _ = assign(mode="group_length_penalty", price=price)
  # z of two lengths is -1 for the shorter and 1 for the longer.
  sign = 1.0 if first < last else -1.0
  np.testing.assert_allclose(
      credited.advantages[:, 0] - plain.advantages[:, 0],
      [sign, 0, 0, -sign],
      atol=1e-6,
  )


@pytest.mark.parametrize(
    ("price", "counted"),
    # From t = 1 on: tokens that are still to be paid.
    [
        ("reasoning", [2, 1, 0, 0, 0, 0]),
        ("answer", [3, 3, 3, 2, 1, 0]),
        ("both", [6, 5, 4, 3, 2, 1]),
    ],
)
def test_to_go_charges_what_is_priced(price, counted):
  plain, _ = assign()
  fields = {"mode": "to_go", "discount": 1.0, "cost": 0.125}
  credited, _ = assign(**fields, price=price)
  charged = credited.advantages - plain.advantages
  np.testing.assert_allclose(
      charged[0, :6], -0.125 * np.array(counted), atol=1e-6
  )
  # The wrong ones are not credited: `credit.only_correct`.
  np.testing.assert_array_equal(charged[1:3], np.zeros((2, 8)))


def test_only_finished_completions_learn():
  everyone, _ = assign()
  finished, metrics = assign(finished=True)
  expected = np.array(ROLLED.mask)
  np.testing.assert_array_equal(everyone.learned, expected)
  expected[1] = False
  np.testing.assert_array_equal(finished.learned, expected)
  # The cut one still counts in the group's mean and standard deviation.
  np.testing.assert_array_equal(finished.advantages, everyone.advantages)
  assert metrics["reward/zero_spread_groups"] == 0
  # Together with another selection: of the two shortest both ended.
  both, _ = assign(finished=True, shortest=2)
  expected[3] = False
  np.testing.assert_array_equal(both.learned, expected)


def test_a_batch_of_cut_completions_teaches_nothing():
  rolled = ROLLED.replace(ended=jnp.zeros(4, bool))
  credited, metrics = assign(rolled, finished=True)
  assert not credited.learned.any()
  chex.assert_tree_all_finite(metrics)
  rng = np.random.default_rng(0)
  new, old = rng.normal(size=(2, 4, 8)).astype(np.float32)
  for aggregation in AGGREGATIONS:
    weights = losses.token_weights(
        credited.learned, aggregation=aggregation, constant_length=8
    )

    def loss(logprobs, weights=weights):
      surrogate = losses.clipped_surrogate(
          losses.importance_ratio(logprobs, old), credited.advantages,
          clip_low=0.2, clip_high=0.28,
      )  # fmt: skip
      kl = losses.k3_divergence(logprobs, old)
      return jnp.sum(weights * (surrogate + kl))

    value, gradient = jax.value_and_grad(loss)(new)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((4, 8)))

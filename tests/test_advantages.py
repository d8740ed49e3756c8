"""Group advantages and token credits, by hand and by their properties."""

import dataclasses
import functools
import inspect
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from iapo_jax.config.credits import CREDITS
from iapo_jax.config.schema import Config, CreditConfig
from iapo_jax.core.types import CreditWeights
from iapo_jax.rl import advantages, credits, mi
from iapo_jax.rl.own import Evidence

S = 1 / math.sqrt(2)


class GroupAdvantagesTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    group = self.variant(
        functools.partial(advantages.group_advantages, group_size=4)
    )
    rewards = jnp.array([1.5, -0.5, -0.5, 1.5, 1.5, -0.5, -0.5, -0.5])
    # First group: mean 0.5, deviations ±1, std sqrt(4 / 3).
    a = 1 / (math.sqrt(4 / 3) + 1e-4)
    # Second: mean 0, sum of squares 2.25 + 3 * 0.25 = 3, std sqrt(3 / 3) = 1.
    b, c = 1.5 / 1.0001, -0.5 / 1.0001
    np.testing.assert_allclose(
        group(rewards), [a, -a, -a, a, b, c, c, c], 1e-6
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_without_division(self):
    group = self.variant(
        functools.partial(
            advantages.group_advantages, group_size=2, normalise=False
        )
    )
    rewards = jnp.array([1.5, -0.5, 4.0, 3.0])
    # Means 0.5 and 3.5.
    np.testing.assert_array_equal(group(rewards), [1.0, -1.0, 0.5, -0.5])

  @chex.variants(with_jit=True, without_jit=True)
  def test_no_spread_gives_zero(self):
    group = self.variant(
        functools.partial(advantages.group_advantages, group_size=8)
    )
    # The rewards of the default configuration, whose sums are exact.
    rewards = jnp.repeat(jnp.array([1.5, 0.5, -0.5, -1.5, 0.0]), 8)
    np.testing.assert_array_equal(group(rewards), np.zeros(40))

  @chex.variants(with_jit=True, without_jit=True)
  def test_groups_do_not_meet(self):
    group = self.variant(
        functools.partial(advantages.group_advantages, group_size=4)
    )
    rewards = np.random.default_rng(0).normal(size=12).astype(np.float32)
    changed = rewards.copy()
    changed[4:8] = 100.0, 0.0, 3.0, 7.0
    before, after = group(rewards), group(changed)
    np.testing.assert_array_equal(before[:4], after[:4])
    np.testing.assert_array_equal(before[8:], after[8:])

  def test_scalar_groups_are_refused(self):
    with self.assertRaises(AssertionError):
      advantages.group_advantages(jnp.ones((2, 4)), group_size=4)


class LengthPenaltyTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    penalised = self.variant(
        functools.partial(advantages.length_penalised_rewards, max_length=40)
    )
    got = penalised(
        jnp.array([1.5, 0.5, -1.5]),
        jnp.array([True, True, False]),
        jnp.array([10, 40, 40]),
        weight=0.5,
    )
    # 1.5 - 0.5 * 10 / 40, 0.5 - 0.5 * 40 / 40, and the wrong one as it was.
    np.testing.assert_array_equal(got, [1.375, 0.0, -1.5])


class DiscountedToGoTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    to_go = self.variant(advantages.discounted_to_go)
    x = jnp.array([[1.0, 0.0, 2.0, 4.0], [8.0, 0.0, 0.0, 0.0]])
    # From the end: 4; 2 + 4 / 2 = 4; 0 + 4 / 2 = 2; 1 + 2 / 2 = 2.
    np.testing.assert_array_equal(
        to_go(x, 0.5), [[2.0, 2.0, 4.0, 4.0], [8.0, 0.0, 0.0, 0.0]]
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_extreme_discounts(self):
    to_go = self.variant(advantages.discounted_to_go)
    x = jnp.array([[1.0, -3.0, 2.0]])
    np.testing.assert_array_equal(to_go(x, 0.0), x)
    # Sums from the end: 2, 2 - 3, 2 - 3 + 1.
    np.testing.assert_array_equal(to_go(x, 1.0), [[0.0, -1.0, 2.0]])

  @chex.variants(with_jit=True, without_jit=True)
  def test_against_a_loop(self):
    to_go = self.variant(advantages.discounted_to_go)
    # Not negative, so that no cancellation blurs the comparison.
    x = np.random.default_rng(1).uniform(size=(5, 137)).astype(np.float32)
    expected = x.astype(np.float64)
    for t in reversed(range(136)):
      expected[:, t] += 0.9 * expected[:, t + 1]
    np.testing.assert_allclose(to_go(x, 0.9), expected, 1e-6)


class InformationToGoTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_undiscounted_it_is_what_remains(self):
    lengths = np.array([0, 1, 6, 9])
    entropies = np.random.default_rng(2).uniform(0, 3, (4, 10))
    entropies = entropies.astype(np.float32)
    mask = np.arange(9) < lengths[:, None]
    to_go = self.variant(
        functools.partial(advantages.information_to_go, discount=1.0, cost=0.0)
    )
    information = mi.realised_information(entropies, mask)
    got = to_go(information, np.ones(4, bool), mask)
    # H_{t-1} - H_R for t = 1..R.
    last = np.take_along_axis(entropies, lengths[:, None], axis=1)
    expected = np.where(mask, entropies[:, :-1] - last, 0.0)
    # Nine differences of numbers below 4, each exact to 2^-23.
    np.testing.assert_allclose(got, expected, 1e-6, 9 * 2.0**-23)

  @chex.variants(with_jit=True, without_jit=True)
  def test_only_correct_rows(self):
    to_go = self.variant(
        functools.partial(
            advantages.information_to_go, discount=0.5, cost=0.25
        )
    )
    information = jnp.array([[1.0, 0.25, 0.75, 9.0]] * 2)
    mask = jnp.array([[1, 1, 1, 0]] * 2, bool)
    # Net 0.75, 0, 0.5: 0.5; 0 + 0.5 / 2; 0.75 + 0.25 / 2.
    np.testing.assert_array_equal(
        to_go(information, jnp.array([True, False]), mask),
        [[0.875, 0.25, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]],
    )


def n_of(x):
  """METHOD section 2 literally, fp64: x − mean / (std + 1e-8), unbiased."""
  mean = sum(x) / len(x)
  std = math.sqrt(sum((v - mean) ** 2 for v in x) / (len(x) - 1))
  return np.array([v - mean / (std + 1e-8) for v in x])


def window_of(x, horizon):
  """The reversed kernel: the token j ahead weighs 0.5^(K − 1 − j)."""
  y = np.zeros(len(x))
  for t in range(len(x)):
    for j in range(horizon):
      if t + j < len(x):
        y[t] += 0.5 ** (horizon - 1 - j) * x[t + j]
  return y


def capital_n_of(x, horizon=1):
  x = [float(v) for v in x]
  y = n_of(x) if horizon == 1 else window_of(x, horizon)
  return y / (math.sqrt(sum(v * v for v in y)) + 1e-8)


class ReferenceNormalisedTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    normalised = self.variant(advantages.reference_normalised)
    # Mean 2, unbiased std 2: x - 2 / 2 = -1, 1, 3, norm sqrt(11). A z-score
    # would be -1, 0, 1: the precedence defect shows.
    np.testing.assert_allclose(
        normalised(jnp.array([[0.0, 2.0, 4.0]])),
        np.array([[-1.0, 1.0, 3.0]]) / math.sqrt(11),
        1e-6,
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_horizon_impulse(self):
    normalised = self.variant(
        functools.partial(advantages.reference_normalised, horizon=3)
    )
    impulse = jnp.zeros((1, 6)).at[0, 3].set(1.0)
    # The token two before the impulse weighs 1, the impulse itself 0.25.
    weights = np.array([[0.0, 1.0, 0.5, 0.25, 0.0, 0.0]])
    # Norm sqrt(1 + 0.25 + 0.0625).
    np.testing.assert_allclose(
        normalised(impulse), weights / math.sqrt(1.3125), 1e-6
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_horizon_takes_raw_values(self):
    normalised = self.variant(
        functools.partial(advantages.reference_normalised, horizon=2)
    )
    # 1 / 2 + 2, 2 / 2 + 4, 4 / 2: squares 6.25 + 25 + 4.
    np.testing.assert_allclose(
        normalised(jnp.array([[1.0, 2.0, 4.0]])),
        np.array([[2.5, 5.0, 2.0]]) / math.sqrt(35.25),
        1e-6,
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_against_the_formula(self):
    x = np.random.default_rng(3).normal(size=(4, 21)).astype(np.float32)
    for horizon in (1, 2, 5, 30):
      normalised = self.variant(
          functools.partial(advantages.reference_normalised, horizon=horizon)
      )
      expected = np.stack([capital_n_of(row, horizon) for row in x])
      # Rows have norm 1.
      np.testing.assert_allclose(normalised(x), expected, 1e-6, 1e-6)


def test_a_function_for_each_entry_of_the_configuration():
  found = inspect.getmembers(credits, inspect.isfunction)
  public = {
      name: function
      for name, function in found
      if function.__module__ == credits.__name__ and name[0] != "_"
  }
  assert set(public) == set(CREDITS)
  for function in public.values():
    assert list(inspect.signature(function).parameters) == [
        "evidence", "weights", "cfg",
    ]  # fmt: skip
  numbers = {name for mode in CREDITS.values() for name in mode.weights}
  assert numbers <= set(vars(CreditConfig()))


INFORMED = ("paper", "to_go", "faithful")

# Two rows for every mode: a correct one of 4 tokens, 3 of reasoning, and a
# wrong one of 2 tokens. What lies in the padding must not count.
ROWS = {
    "group_advantages": np.array([0.5, -1.0], np.float32),
    "rewards": np.array([1.5, -0.5], np.float32),
    "correct": np.array([True, False]),
    "entropies": np.array([[1, 1, 3, 3], [0, 4, 7, 7]], np.float32),
    "mask": np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool),
    "reasoning": np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool),
    "answer": np.zeros((2, 4), bool),
    "uncertainty": np.full((2, 5), np.nan, np.float32),
}
# Z(h): 1, 1, 3, 3 is -1, -1, 1, 1 over 2; 0, 4 is -2, 2 over 2 sqrt(2).


def make_batch(lengths=(12, 7, 4, 9), width=12, seed=5):
  """A random batch as the fields of `Evidence`."""
  rng = np.random.default_rng(seed)
  count, lengths = len(lengths), np.asarray(lengths)
  mask = np.arange(width) < lengths[:, None]
  reasoning = np.arange(width) < (lengths[:, None] - 3)
  information = rng.normal(size=mask.shape)
  entropies = rng.uniform(0, 3, mask.shape)
  return {
      "group_advantages": rng.normal(size=count).astype(np.float32),
      "rewards": np.array([1.5, -0.5, 0.5, -1.5], np.float32),
      "correct": np.array([True, False, True, True]),
      "information": np.where(reasoning, information, 0).astype(np.float32),
      "entropies": np.where(mask, entropies, 0).astype(np.float32),
      "mask": mask,
      "reasoning": reasoning,
      "answer": mask & ~reasoning,
      "uncertainty": rng.uniform(0, 3, (count, width + 1)).astype(np.float32),
  }


def pad_batch(batch, count):
  return {
      name: np.pad(x, ((0, 0), (0, count))) if x.ndim == 2 else x
      for name, x in batch.items()
  }


def make_weights(info=2.0, explore=0.5, discount=0.9, cost=0.0):
  return CreditWeights(info, explore, discount, cost, length=1.0)


class CreditsTest(chex.TestCase):

  def credit(self, mode, horizon=1, **weights):
    """Fields of `Evidence` -> advantages [b, t] of a mode."""
    cfg = Config()
    fields = dataclasses.replace(cfg.credit, mode=mode, horizon=horizon)
    cfg = dataclasses.replace(cfg, credit=fields)

    @self.variant
    def run(evidence):
      return getattr(credits, mode)(evidence, make_weights(**weights), cfg)

    return lambda **fields: run(Evidence(**fields))

  @chex.variants(with_jit=True, without_jit=True)
  def test_paper_by_hand(self):
    information = jnp.array([[1.0, 2.0, 3.0, 50.0], [3.0, 1.0, 50.0, 50.0]])
    got = self.credit("paper")(**ROWS, information=information)
    # Z(D): -1, 0, 1 over sqrt(2); 1, -1 over sqrt(2).
    # Row 1, r > 0: 0.5 + 2 Z(D) - 0.5 Z(h).
    first = [0.5 - 2 * S + 0.25, 0.75, 0.5 + 2 * S - 0.25, 0.5 - 0.25]
    # Row 2, r < 0: -1 + 2 (S, -S) + 0.5 (-S, S).
    second = [-1 + 1.5 * S, -1 - 1.5 * S, 0.0, 0.0]
    np.testing.assert_allclose(got, [first, second], 1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_to_go_by_hand(self):
    information = jnp.array([[1.0, 0.25, 0.75, 50.0], [3.0, 1.0, 50.0, 50.0]])
    got = self.credit("to_go", discount=0.5, cost=0.25)(
        **ROWS, information=information
    )
    # Row 1: net 0.75, 0, 0.5, to go 0.875, 0.25, 0.5, then 0:
    # 0.5 + 1.75 + 0.25, 0.5 + 0.5 + 0.25, 0.5 + 1 - 0.25, 0.5 - 0.25.
    first = [2.5, 1.25, 1.25, 0.25]
    # Row 2 is wrong, so no information: -1 + 0.5 (-S, S).
    second = [-1 - 0.5 * S, -1 + 0.5 * S, 0.0, 0.0]
    np.testing.assert_allclose(got, [first, second], 1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_faithful_by_hand(self):
    # (E_i + E_(i-1)) / 2 - E_(i+1): row 1 has 8 / 2 - 4, 12 / 2 - 4 and 8 / 2,
    # row 2 5 / 3 - 2 / 3 and 4 / 2. The 9s are not there.
    uncertainty = jnp.array([[8.0, 4.0, 4.0, 9.0], [10 / 3, 2 / 3, 9.0, 9.0]])
    # The 9 lies in the padding, where the authors' rows hold zeros.
    entropies = jnp.array([[2.0, 6.0, 4.0], [4.0, 2.0, 9.0]])
    mask = jnp.array([[1, 1, 1], [1, 1, 0]], bool)
    got = self.credit("faithful")(**ROWS | {
        "information": jnp.full((2, 3), jnp.nan),
        "uncertainty": uncertainty,
        "entropies": entropies,
        "mask": mask,
        "reasoning": mask,
        "answer": ~mask,
    })  # fmt: skip
    # Row 1: surprise mean 2, std 2, n = -1, 1, 3, norm sqrt(11);
    # entropy mean 4, std 2, n = 0, 4, 2, norm sqrt(20).
    info = 2 * np.array([-1, 1, 3]) / math.sqrt(11)
    explore = 0.5 * np.array([0, 4, 2]) / math.sqrt(20)
    first = 0.5 + info - explore
    # Row 2: surprise mean 1, std 1, n = 0, 1, -1, norm sqrt(2), the padding's
    # -1 included; entropy 4, 2, 0: mean 2, std 2, n = 3, 1, -1, norm sqrt(11).
    info = 2 * np.array([0, 1, -1]) * S
    explore = 0.5 * np.array([3, 1, -1]) / math.sqrt(11)
    second = (-1 + info + explore) * [1, 1, 0]
    np.testing.assert_allclose(got, [first, second], 1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_faithful_against_the_formula(self):
    batch = make_batch()
    surprise = mi.reference_surprise(batch["uncertainty"], batch["mask"])
    for horizon in (1, 3):
      got = self.credit("faithful", horizon=horizon)(**batch)
      # The exploration term has no window.
      expected = [
          a + 2 * capital_n_of(x, horizon) - 0.5 * np.sign(r) * capital_n_of(h)
          for a, x, r, h in zip(
              batch["group_advantages"],
              surprise,
              batch["rewards"],
              batch["entropies"],
              strict=True,
          )
      ]
      np.testing.assert_allclose(
          got, np.where(batch["mask"], expected, 0.0), 1e-6, 1e-6
      )

  @chex.variants(with_jit=True, without_jit=True)
  def test_only_the_rewards_sign_counts(self):
    mask = np.ones((3, 4), bool)
    got = self.credit("paper")(
        group_advantages=np.zeros(3, np.float32),
        rewards=np.array([0.1, 0.0, -7.0], np.float32),
        correct=np.ones(3, bool),
        information=np.zeros((3, 4), np.float32),
        entropies=np.tile(ROWS["entropies"][:1], (3, 1)),
        mask=mask,
        reasoning=mask,
        answer=~mask,
        uncertainty=np.zeros((3, 5), np.float32),
    )
    # Z(h) = -0.5, -0.5, 0.5, 0.5 weighed by 0.5: subtracted, gone, added.
    row = np.array([-0.25, -0.25, 0.25, 0.25])
    np.testing.assert_allclose(got, [-row, 0 * row, row], 1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_confident_tokens_gain_where_the_reward_is_positive(self):
    batch = make_batch()
    for name in ("information", "uncertainty"):
      batch[name] = np.zeros_like(batch[name])
    for mode in INFORMED:
      # Without information: surprise 0 has n = 0.
      got = self.credit(mode)(**batch) - batch["group_advantages"][:, None]
      for row, h, valid, r in zip(
          got, batch["entropies"], batch["mask"], batch["rewards"], strict=True
      ):
        # Most to least certain token: falling for r > 0, rising for r < 0.
        ordered = np.asarray(row)[valid][np.argsort(h[valid])]
        self.assertTrue((np.sign(r) * np.diff(ordered) < 0).all())

  @chex.variants(with_jit=True, without_jit=True)
  def test_wrong_rows_carry_no_information_to_go(self):
    batch = make_batch()
    credit = self.credit("to_go", explore=0.0)
    got = credit(**{**batch, "correct": np.zeros(4, bool)})
    np.testing.assert_array_equal(
        got, np.where(batch["mask"], batch["group_advantages"][:, None], 0.0)
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_paper_does_not_ask_for_correctness(self):
    batch = make_batch()
    credit = self.credit("paper")
    np.testing.assert_array_equal(
        credit(**batch), credit(**{**batch, "correct": ~batch["correct"]})
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_no_weights_leave_the_group_advantage(self):
    batch = make_batch()
    for mode in INFORMED:
      got = self.credit(mode, info=0.0, explore=0.0)(**batch)
      np.testing.assert_array_equal(
          got, np.where(batch["mask"], batch["group_advantages"][:, None], 0.0)
      )

  @chex.variants(with_jit=True, without_jit=True)
  def test_zero_outside_the_mask(self):
    batch = make_batch()
    for mode in INFORMED:
      got = np.asarray(self.credit(mode)(**batch))
      np.testing.assert_array_equal(got[~batch["mask"]], 0.0)
      self.assertTrue((got[batch["mask"]] != 0.0).all())

  @chex.variants(with_jit=True, without_jit=True)
  def test_padding_changes_nothing_in_paper_and_to_go(self):
    batch = make_batch()
    for mode in ("paper", "to_go"):
      credit = self.credit(mode)
      np.testing.assert_allclose(
          credit(**pad_batch(batch, 9)),
          np.pad(credit(**batch), ((0, 0), (0, 9))),
          1e-6,
          1e-6,
      )

  @chex.variants(with_jit=True, without_jit=True)
  def test_neighbours_change_nothing_in_paper_and_to_go(self):
    batch = make_batch()
    for mode in ("paper", "to_go"):
      together = self.credit(mode)(**batch)
      for i, length in enumerate(batch["mask"].sum(1)):
        alone = {
            name: x[i : i + 1, :length] if x.ndim == 2 else x[i : i + 1]
            for name, x in batch.items()
        } | {"uncertainty": batch["uncertainty"][i : i + 1, : length + 1]}
        np.testing.assert_allclose(
            self.credit(mode)(**alone)[0], together[i, :length], 1e-6, 1e-6
        )

  @chex.variants(with_jit=True, without_jit=True)
  def test_faithful_depends_on_padding(self):
    # METHOD defect 5, kept on purpose: mean, std and norm see the padding.
    batch = make_batch()
    credit = self.credit("faithful")
    padded = credit(**pad_batch(batch, 9))[:, :12]
    difference = np.abs(padded - credit(**batch))
    self.assertGreater(difference[batch["mask"]].max(), 0.05)

  @chex.variants(with_jit=True, without_jit=True)
  def test_rows_without_reasoning(self):
    batch = make_batch(lengths=(3, 3, 1, 0))
    # Reasoning is 3 tokens shorter than the row: none anywhere.
    self.assertFalse(batch["reasoning"].any())
    for mode in ("paper", "to_go"):
      credit = self.credit(mode, explore=0.0)
      np.testing.assert_array_equal(
          credit(**batch),
          np.where(batch["mask"], batch["group_advantages"][:, None], 0.0),
      )
    for mode in INFORMED:
      chex.assert_tree_all_finite(self.credit(mode)(**batch))

  @chex.variants(with_jit=True, without_jit=True)
  def test_is_a_constant_for_the_gradient(self):
    batch = make_batch()
    rest = {
        name: batch.pop(name)
        for name in ("rewards", "correct", "mask", "reasoning", "answer")
    }
    for mode in INFORMED:
      credit = self.credit(mode)

      def total(inputs, credit=credit):
        return jnp.sum(credit(**inputs, **rest) ** 2)

      for gradient in jax.tree.leaves(jax.grad(total)(batch)):
        np.testing.assert_array_equal(gradient, 0.0)

  @parameterized.parameters(*INFORMED)
  def test_weights_may_be_traced(self, mode):
    evidence, traces = Evidence(**make_batch()), []

    def credit(weights):
      return getattr(credits, mode)(evidence, weights, Config())

    @jax.jit
    def jitted(weights):
      traces.append(mode)
      return credit(weights)

    for values in ((1.0, 0.5, 0.9, 0.0), (3.0, 0.0, 0.5, 0.1)):
      weights = make_weights(*values)
      got = jitted(jax.tree.map(jnp.float32, weights))
      np.testing.assert_allclose(got, credit(weights), 1e-6, 1e-6)
    self.assertLen(traces, 1)

"""What other methods change: advantages and masks, by hand."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from recorded import learn, make_params, make_setup, record

from iapo_jax.config import methods
from iapo_jax.config import parsing as config_lib
from iapo_jax.core.errors import ConfigError
from iapo_jax.rl import advantages, credit, selection


def partial(variant, function, **settings):
  return variant(functools.partial(function, **settings))


class KeptGroupAdvantagesTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_statistics_are_of_the_kept(self):
    group = partial(
        self.variant, advantages.group_advantages, group_size=4
    )
    rewards = jnp.array([1.0, 3.0, 100.0, -50.0, 2.0, 2.0, 9.0, 9.0])
    kept = jnp.array([1, 1, 0, 0, 1, 1, 0, 0], bool)
    # Mean 2, std (ddof 1) sqrt(2); the second group's kept ones are equal.
    a = 1 / (math.sqrt(2) + 1e-4)
    np.testing.assert_allclose(
        group(rewards, kept=kept), [-a, a, 0, 0, 0, 0, 0, 0], 1e-6
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_nobody_is_kept(self):
    group = partial(self.variant, advantages.group_advantages, group_size=2)
    got = group(jnp.array([1.0, 3.0]), kept=jnp.zeros(2, bool))
    np.testing.assert_array_equal(got, np.zeros(2))


class GroupLengthPenaltyTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    penalised = partial(
        self.variant, advantages.length_penalised_advantages, group_size=4
    )
    got = penalised(
        jnp.array([1.0, 1.0, -1.0, 0.5, 1.0, -1.0, -1.0, -1.0]),
        jnp.array([1, 1, 0, 1, 1, 0, 0, 0], bool),
        jnp.array([10, 20, 90, 30, 7, 1, 2, 3]),
        weight=0.5,
    )
    # Correct: 10, 20, 30: mean 20, variance (100 + 0 + 100) / 3 = 200 / 3.
    z = 10 / math.sqrt(200 / 3)
    expected = [1 + z / 2, 1, -1, 0.5 - z / 2, 1, -1, -1, -1]
    np.testing.assert_allclose(got, expected, 1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_equal_lengths_and_no_correct_ones(self):
    penalised = partial(
        self.variant, advantages.length_penalised_advantages, group_size=2
    )
    group = jnp.array([0.3, -0.3, 0.1, -0.1])
    correct = jnp.array([1, 1, 0, 0], bool)
    got = penalised(group, correct, jnp.array([9, 9, 1, 5]), weight=2.0)
    np.testing.assert_array_equal(got, group)

  @chex.variants(with_jit=True, without_jit=True)
  def test_penalties_of_a_group_add_up_to_nothing(self):
    rng = np.random.default_rng(0)
    penalised = partial(
        self.variant, advantages.length_penalised_advantages, group_size=8
    )
    got = penalised(
        jnp.zeros(64),
        jnp.asarray(rng.random(64) < 0.6),
        jnp.asarray(rng.integers(1, 70, 64)),
        weight=1.0,
    )
    sums = np.asarray(got).reshape(8, 8).sum(axis=1)
    np.testing.assert_allclose(sums, np.zeros(8), atol=1e-5)


class OverlongTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    penalised = partial(
        self.variant,
        advantages.overlong_penalised_rewards,
        max_length=20,
        buffer=4,
    )
    # Nothing up to 16, then a quarter a token.
    np.testing.assert_array_equal(
        penalised(jnp.ones(5), jnp.array([1, 16, 17, 19, 20])),
        [1.0, 1.0, 0.75, 0.25, 0.0],
    )


class EntropyWeightedTest(chex.TestCase):

  def credit(self, **more):
    return partial(
        self.variant,
        advantages.entropy_weighted_advantages,
        **{"group_size": 3, "weight": 0.5} | more,
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    got = self.credit()(
        jnp.array([1.0, 2.0, -1.0]),
        jnp.array([1.5, 0.0, -0.5]),
        jnp.array([[1.0, 3.0, 9.0], [3.0, 5.0, 5.0], [0.5, 0.25, 7.0]]),
        jnp.array([[1, 1, 0], [1, 0, 0], [1, 1, 0]], bool),
    )
    # r >= 0 are the first two (0 counts); T = 2 and 1. Token 1: entropies
    # 1 and 3 of 4. Token 2: the second has ended, all goes to the first.
    # r < 0 is the third alone: its share is 1 wherever it lives, T = 2.
    expected = [
        [1 + 0.5 * 2 * 1 / 4, 1 + 0.5 * 2 * 1, 0],
        [2 + 0.5 * 1 * 3 / 4, 0, 0],
        [-1 - 0.5 * 2, -1 - 0.5 * 2, 0],
    ]
    np.testing.assert_allclose(got, expected, 1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_wrong_ones_share_by_confidence(self):
    got = self.credit(group_size=2)(
        jnp.zeros(2),
        jnp.array([-1.0, -1.0]),
        jnp.array([[0.5], [2.0]]),
        jnp.ones((2, 1), bool),
    )
    # 1 / h: 2 and 0.5 of 2.5; T = 1.
    np.testing.assert_allclose(got, [[-0.4], [-0.1]], 1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_padding_and_certain_tokens(self):
    rng = np.random.default_rng(1)
    mask = np.arange(6) < np.array([6, 2, 4, 1, 3, 5])[:, None]
    entropy = rng.random(mask.shape).astype(np.float32)
    entropy[0, 0] = entropy[3, 0] = 0.0
    rewards = jnp.array([1.5, -1.5, 0.5, -0.5, -1.5, 1.5])
    credit = self.credit()
    got = credit(jnp.zeros(6), rewards, entropy, mask)
    wide = [np.pad(x, ((0, 0), (0, 3)), constant_values=v)
            for x, v in ((entropy, 7.0), (mask, False))]  # fmt: skip
    padded = credit(jnp.zeros(6), rewards, *wide)
    chex.assert_tree_all_finite(got)
    np.testing.assert_array_equal(padded, np.pad(got, ((0, 0), (0, 3))))
    np.testing.assert_array_equal(np.asarray(got)[~mask], 0.0)


class SelectionTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_shortest_by_hand(self):
    shortest = partial(
        self.variant, selection.shortest, group_size=4, keep=2
    )
    # 3 and 5; of three equals the first two.
    np.testing.assert_array_equal(
        shortest(jnp.array([9, 3, 7, 5, 4, 4, 4, 8])),
        np.array([0, 1, 0, 1, 1, 1, 0, 0], bool),
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_with_spread_by_hand(self):
    spread = partial(self.variant, selection.with_spread, group_size=2)
    np.testing.assert_array_equal(
        spread(jnp.array([1.0, 1.0, 1.0, 0.5, 0.0, 0.0])),
        np.array([0, 0, 1, 1, 0, 0], bool),
    )
    # Of those that are kept: 1 and 1; 1 and 0; one alone; none.
    kept = np.array([1, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0], bool)
    rewards = jnp.array([1.0, 1.0, 0.0, 0.0] * 4)
    found = partial(self.variant, selection.with_spread, group_size=4)(
        rewards, kept=kept
    )
    np.testing.assert_array_equal(
        found.reshape(4, 4)[:, 0], np.array([0, 1, 0, 0], bool)
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_truncation_by_hand(self):
    mask = np.arange(8) < np.array([8, 5, 2, 0])[:, None]
    key = jax.random.key(0)

    def keep(probability):
      return np.asarray(partial(
          self.variant, selection.truncated, always=3, short=6,
          probability=probability,
      )(mask, key))  # fmt: skip

    first = mask & (np.arange(8) < 3)
    np.testing.assert_array_equal(keep(0.0), first)
    # Eight tokens are not fewer than six: only the first three stay.
    expected = mask.copy()
    expected[0, 3:] = False
    np.testing.assert_array_equal(keep(1.0), expected)

  @chex.variants(with_jit=True, without_jit=True)
  def test_truncation_keeps_its_share_whatever_the_padding(self):
    cut = partial(
        self.variant, selection.truncated, always=4, short=99, probability=0.3
    )
    mask = np.ones((200, 54), bool)
    kept = np.asarray(cut(mask, jax.random.key(1)))
    # 200 x 50 draws: a standard deviation of 0.0046.
    self.assertAlmostEqual(kept[:, 4:].mean(), 0.3, delta=0.02)
    wide = np.pad(mask, ((0, 8), (0, 6)))
    again = np.asarray(cut(wide, jax.random.key(1)))
    np.testing.assert_array_equal(again, np.pad(kept, ((0, 8), (0, 6))))
    other = np.asarray(cut(mask, jax.random.key(2)))
    self.assertFalse(np.array_equal(kept, other))


def chosen(name):
  config = config_lib.default()
  config.rollout.max_tokens = 400
  methods.choose(config, name)
  return config_lib.parse(config)


def test_every_method_is_a_configuration():
  found = {name: chosen(name) for name in methods.NAMES}
  assert len(set(found.values())) == len(methods.NAMES)
  # METHOD's table, what changes against GRPO.
  grpo = found["grpo"]
  assert grpo.loss.aggregation == "sequence_mean"
  assert (grpo.loss.clip_low, grpo.loss.clip_high) == (0.2, 0.2)
  assert not found["dr_grpo"].credit.normalise
  assert found["dr_grpo"].loss.aggregation == "constant_length"
  dapo = found["dapo"]
  assert (dapo.loss.clip_high, dapo.loss.kl_weight) == (0.28, 0)
  assert dapo.loss.aggregation == "token_mean"
  assert (dapo.select.with_spread, dapo.reward.overlong_tokens) == (True, 80)
  assert found["gspo"].loss.ratio == "sequence"
  assert found["gfpo"].select.shortest == 6
  s = found["s_grpo"].select
  assert (s.first_tokens, s.short_tokens, s.later_share) == (150, 341, 0.5)
  assert found["to_go"].credit.info_weight == 2
  with pytest.raises(ConfigError, match="method 'iapo': must be one of paper"):
    methods.choose(ml_collections.ConfigDict(), "iapo")


def of_method(name):
  """Fields of a method for `make_setup`, with its sizes."""
  before = config_lib.flatten(config_lib.parse(config_lib.default()))
  after = config_lib.flatten(chosen(name))
  own = {k: v for k, v in after.items() if v != before[k]}
  own.pop("rollout.max_tokens", None)
  # Completions of at most 20 tokens, groups of four.
  sizes = {
      "reward.overlong_tokens": 4, "select.shortest": 3,
      "select.first_tokens": 4, "select.short_tokens": 12,
  }  # fmt: skip
  own |= {k: sizes[k] for k in own if k in sizes}
  return {k.replace(".", "__"): v for k, v in own.items()}


def expected(name, samples):
  """Advantages [32, 20] by the functions that tests above check by hand."""
  rewards, lengths = samples.rewards, jnp.asarray(samples.lengths)
  live = jnp.arange(20) < lengths[:, None]
  reasoning = jnp.arange(20) < samples.reasoning_lengths[:, None]
  group = functools.partial(advantages.group_advantages, group_size=4)
  plain = group(rewards)
  if name == "dr_grpo":
    plain = group(rewards, normalise=False)
  elif name == "dapo":
    plain = group(advantages.overlong_penalised_rewards(
        rewards, lengths, max_length=20, buffer=4
    ))
  elif name == "gfpo":
    kept = selection.shortest(lengths, group_size=4, keep=3)
    plain = group(rewards, kept=kept)
  elif name == "group_length_penalty":
    plain = advantages.length_penalised_advantages(
        plain, samples.correct, lengths, group_size=4, weight=1.0
    )
  elif name == "gtpo":
    return advantages.entropy_weighted_advantages(
        plain, rewards, samples.entropies, live, group_size=4, weight=0.1
    )
  per_token = jnp.where(live, plain[:, None], 0.0)
  if name == "chance":
    # By the sum of what tokens add: that of the end less that before a token.
    per_token += 2.0 * advantages.information_to_go(
        samples.information, jnp.full(live.shape[:1], True), reasoning,
        discount=1.0, cost=0.01,
    )  # fmt: skip
  if name == "cost_only":
    per_token += 2.0 * advantages.information_to_go(
        jnp.zeros(live.shape), samples.correct, reasoning,
        discount=0.9, cost=0.03,
    )  # fmt: skip
  return per_token


NAMES = (
    "chance", "dr_grpo", "dapo", "gspo", "gfpo", "gtpo", "s_grpo",
    "group_length_penalty", "cost_only",
)  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_what_each_method_credits_and_selects(name):
  """The methods that no other test trains, on completions of all kinds."""
  setup = make_setup(loss__num_updates=2, **of_method(name))
  params = make_params(setup)
  recorded = record(setup, params)
  moved, samples, metrics = learn(setup, recorded, params)
  chex.assert_tree_all_finite((moved, samples, metrics))
  np.testing.assert_allclose(
      samples.advantages, expected(name, samples), atol=1e-5
  )
  live = np.arange(20) < samples.lengths[:, None]
  learned = np.asarray(samples.learned)
  rows = learned.any(axis=1).reshape(-1, 4)
  everyone = np.array_equal(learned, live)
  assert everyone == (name not in ("dapo", "gfpo", "s_grpo"))
  if name == "dapo":
    # Where rewards differ a group learns; the flat first one does not.
    spread = np.ptp(samples.rewards.reshape(-1, 4), axis=1) > 0
    np.testing.assert_array_equal(rows, np.repeat(spread[:, None], 4, 1))
    assert not rows[0].any()
  if name == "gfpo":
    assert (rows.sum(axis=1) == 3).all()
  if name == "s_grpo":
    np.testing.assert_array_equal(learned[:, :4], live[:, :4])
    assert not learned[samples.lengths >= 12, 4:].any()
  if name == "gspo":
    # The clip range is 3e-4 wide: the second update finds most outside.
    assert metrics["update/clipped"] > 0
  # The reference is the policy itself: what moved it is the method.
  distance = jax.tree.map(lambda a, b: np.abs(a - b).max(), moved, params)
  assert max(jax.tree.leaves(distance)) > 1e-4


# Those that probe whole answers, leave out groups, or have parts of their own
# for ratio, credit and selection.
@pytest.mark.full
@pytest.mark.parametrize("name", ["chance", "dapo", "gspo", "gtpo", "s_grpo"])
def test_two_steps_of_a_method(name):
  """Sampled by the policy itself, in the compiled step of training."""
  setup = make_setup(**of_method(name))
  step, params = setup.step(), make_params(setup)
  reference = setup.state(params).params
  reference = reference if setup.cfg.loss.kl_weight else None
  state = setup.state(params)
  for epoch in range(2):
    state, output = step(state, reference, setup.prompts(epoch))
    chex.assert_tree_all_finite((output, state))
    assert int(state.step) == epoch + 1
    live = np.arange(20) < output.samples.lengths[:, None]
    assert not np.any(output.samples.learned & ~live)
    assert output.metrics["update/logprob_gap"] < 1e-4


def test_groups_have_the_spread_of_those_that_are_compared():
  """Only the longest of each has a reward, and three others are compared."""
  setup = make_setup(**of_method("gfpo"))
  rolled = record(setup, make_params(setup))
  longest = ~selection.shortest(rolled.lengths, group_size=4, keep=3)
  credited, metrics = credit.assign(
      rolled,
      setup.parts.grader(rolled, setup.prompts()),
      None,
      setup.state().weights,
      jax.random.key(0),
      setup.cfg,
      reward=longest.astype(jnp.float32),
  )
  assert credited.evidence.rewards.sum() == 8
  assert not credited.advantages.any()
  assert metrics["reward/zero_spread_groups"] == 1

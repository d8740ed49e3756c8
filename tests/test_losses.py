"""The loss: token weights, the clipped surrogate and the KL estimator."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from iapo_jax.config.schema import AGGREGATIONS
from iapo_jax.rl import losses

CLIP = {"clip_low": 0.2, "clip_high": 0.28}
# Rows of 3, 1 and 0 tokens.
MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)


def make_batch(seed=0, rows=8, width=11):
  """Ragged random log-probabilities and advantages, one row empty."""
  rng = np.random.default_rng(seed)
  lengths = np.array([width, 1, 0, 4, 7, 2, width, 5])[:rows]
  mask = np.arange(width) < lengths[:, None]
  old = -rng.exponential(size=mask.shape)
  new = old + rng.normal(0, 0.3, mask.shape)
  return {
      "logprobs": new.astype(np.float32),
      "old": old.astype(np.float32),
      "advantages": rng.normal(size=mask.shape).astype(np.float32),
      "mask": mask,
  }


def weights_fn(aggregation, constant_length=1):
  return functools.partial(
      losses.token_weights,
      aggregation=aggregation,
      constant_length=constant_length,
  )


class TokenWeightsTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_token_mean_by_hand(self):
    # Four tokens in the batch.
    np.testing.assert_array_equal(
        self.variant(weights_fn("token_mean"))(MASK), MASK / 4
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_sequence_mean_by_hand(self):
    # 1 / 2 for each of the two sequences that have tokens.
    expected = MASK * [[1 / 6], [1 / 2], [0]]
    np.testing.assert_allclose(
        self.variant(weights_fn("sequence_mean"))(MASK), expected, 1e-6
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_constant_length_by_hand(self):
    # 1 / (3 sequences of 8).
    np.testing.assert_allclose(
        self.variant(weights_fn("constant_length", 8))(MASK), MASK / 24, 1e-6
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_sums(self):
    mask = make_batch()["mask"]

    def total(aggregation, mask, constant_length=1):
      weights = self.variant(weights_fn(aggregation, constant_length))(mask)
      return float(jnp.sum(weights))

    self.assertAlmostEqual(total("token_mean", mask), 1.0, delta=1e-6)
    self.assertAlmostEqual(total("sequence_mean", mask), 1.0, delta=1e-6)
    # 11 + 1 + 4 + 7 + 2 + 11 + 5 = 41 tokens in eight sequences of 11.
    self.assertAlmostEqual(
        total("constant_length", mask, 11), 41 / 88, delta=1e-6
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_an_empty_batch_weighs_nothing(self):
    empty = np.zeros((2, 3), bool)
    for aggregation in AGGREGATIONS:
      np.testing.assert_array_equal(
          self.variant(weights_fn(aggregation))(empty), np.zeros((2, 3))
      )

  @chex.variants(with_jit=True, without_jit=True)
  def test_padding_changes_nothing(self):
    mask = make_batch()["mask"]
    wide = np.pad(mask, ((0, 0), (0, 5)))
    for aggregation in AGGREGATIONS:
      weights = self.variant(weights_fn(aggregation, 11))
      np.testing.assert_array_equal(
          weights(wide), np.pad(weights(mask), ((0, 0), (0, 5)))
      )

  def test_unknown_aggregation(self):
    with self.assertRaisesRegex(ValueError, "aggregation = 'mean': must be"):
      losses.token_weights(MASK, aggregation="mean")


def surrogate_of_tokens(logprobs, old, advantages, **clips):
  ratio = losses.importance_ratio(logprobs, old)
  return losses.clipped_surrogate(ratio, advantages, **(clips or CLIP))


def batch_loss(logprobs, old, advantages, weights):
  surrogate = surrogate_of_tokens(logprobs, old, advantages)
  return jnp.sum(weights * surrogate)


class MicroBatchTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_parts_sum_to_the_whole(self):
    batch = make_batch()
    mask = batch.pop("mask")
    # Every term positive: no cancellation blurs the comparison.
    batch["advantages"] = -np.abs(batch["advantages"])
    grad = self.variant(jax.value_and_grad(batch_loss))
    for aggregation in AGGREGATIONS:
      weights = weights_fn(aggregation, 11)(mask)
      arrays = [*batch.values(), weights]
      whole, gradient = grad(*arrays)
      parts = [
          grad(*(x[i : i + 2] for x in arrays)) for i in range(0, 8, 2)
      ]
      np.testing.assert_allclose(sum(part for part, _ in parts), whole, 1e-6)
      # Each token's gradient is computed in one part only.
      np.testing.assert_allclose(
          np.concatenate([part for _, part in parts]), gradient, 1e-6
      )

  @parameterized.parameters("token_mean", "sequence_mean")
  def test_weights_of_the_parts_would_not_do(self, aggregation):
    # Why weights are of the whole batch: a mean of means is another number.
    mask = make_batch()["mask"]
    whole = weights_fn(aggregation)(mask)
    parts = [weights_fn(aggregation)(mask[i : i + 3]) / 3 for i in (0, 3, 6)]
    self.assertGreater(np.abs(np.concatenate(parts) - whole).max(), 1e-3)


class ImportanceRatioTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    new = jnp.log(jnp.array([[0.5, 0.25, 0.3]]))
    old = jnp.log(jnp.array([[0.25, 0.5, 0.3]]))
    np.testing.assert_allclose(
        self.variant(losses.importance_ratio)(new, old), [[2, 0.5, 1]], 1e-6
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_exponent_stays_within_twenty(self):
    ratio = self.variant(losses.importance_ratio)
    new = jnp.array([[1000.0, -1000.0]])
    np.testing.assert_allclose(
        ratio(new, jnp.zeros((1, 2))), [[math.exp(20), math.exp(-20)]], 1e-6
    )


class SequenceRatioTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_log_ratios_by_hand(self):
    new = jnp.log(jnp.array([[0.5, 0.25, 0.9], [0.3, 0.9, 0.9], [0.1] * 3]))
    old = jnp.log(jnp.array([[0.25, 0.5, 0.1], [0.1, 0.1, 0.1], [0.9] * 3]))
    mask = jnp.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    # (log 2 - log 2) / 2; log 3; nothing learns.
    np.testing.assert_allclose(
        self.variant(losses.sequence_log_ratios)(new, old, mask),
        [0.0, math.log(3), 0.0], atol=1e-6,
    )  # fmt: skip

  @chex.variants(with_jit=True, without_jit=True)
  def test_value_and_gradient_by_hand(self):
    logs = jnp.log(jnp.array([[0.5, 0.2]]))
    of_sequence = jnp.log(jnp.array([[1.5, 1.5]]))
    ratio = self.variant(losses.sequence_ratio)
    np.testing.assert_allclose(ratio(logs, of_sequence), [[1.5, 1.5]], 1e-6)
    weights = jnp.array([[2.0, -1.0]])
    gradients = jax.grad(
        lambda p, s: jnp.sum(weights * ratio(p, s)), argnums=(0, 1)
    )(logs, of_sequence)
    # s · weight for each token; s itself is a constant.
    np.testing.assert_allclose(gradients[0], [[3.0, -1.5]], 1e-6)
    np.testing.assert_array_equal(gradients[1], np.zeros((1, 2)))

  @chex.variants(with_jit=True, without_jit=True)
  def test_gradient_is_that_of_the_sequence_loss(self):
    """Of mean_i min(s_i A_i, clip(s_i) A_i), differentiated as it stands."""
    batch = make_batch(seed=4)
    mask, old, new = batch["mask"], batch["old"], batch["logprobs"]
    advantages = jnp.linspace(-2.0, 2.0, 8)
    count = jnp.maximum(mask.sum(1), 1)

    def as_written(logprobs):
      s = jnp.exp(jnp.sum(mask * (logprobs - old), axis=1) / count)
      clipped = jnp.clip(s, 0.9, 1.05)
      each = -jnp.minimum(s * advantages, clipped * advantages)
      return jnp.sum(each * mask.any(1)) / mask.any(1).sum()

    @self.variant
    def ours(logprobs):
      log_ratios = losses.sequence_log_ratios(logprobs, old, mask)
      ratio = losses.sequence_ratio(
          logprobs, jnp.broadcast_to(log_ratios[:, None], mask.shape)
      )
      surrogate = losses.clipped_surrogate(
          ratio,
          jnp.broadcast_to(advantages[:, None], mask.shape),
          clip_low=0.1,
          clip_high=0.05,
      )
      weights = losses.token_weights(mask, aggregation="sequence_mean")
      return jnp.sum(weights * surrogate)

    value, expected = jax.value_and_grad(as_written)(new)
    got_value, got = jax.value_and_grad(ours)(new)
    np.testing.assert_allclose(got_value, value, 1e-5)
    np.testing.assert_allclose(got, expected, 1e-5, 1e-7)
    # Some sequences are clipped, others are not.
    flat = np.all(np.asarray(got) == 0, axis=1)[mask.any(1)]
    self.assertTrue(flat.any() and not flat.all())


# ratio, advantage, loss, d loss / d logprob. With A = ±2 and the clips 0.8
# and 1.28; d ratio / d logprob is the ratio itself.
SURROGATE_CASES = (
    # Inside the range: -A ratio.
    (1.1, 2.0, -2.2, -2.2),
    (1.1, -2.0, 2.2, 2.2),
    (1.0, 2.0, -2.0, -2.0),
    (0.9, -2.0, 1.8, 1.8),
    # 1.25 lies under the upper clip 1.28 but over 1 + ε_low.
    (1.25, 2.0, -2.5, -2.5),
    # Above, A > 0: min(3, 2.56) is the clipped one, and flat.
    (1.5, 2.0, -2.56, 0.0),
    # Above, A < 0: min(-3, -2.56) is the ratio's own.
    (1.5, -2.0, 3.0, 3.0),
    # Below, A > 0: min(1, 1.6) is the ratio's own.
    (0.5, 2.0, -1.0, -1.0),
    # Below, A < 0: min(-1, -1.6) is the clipped one, and flat.
    (0.5, -2.0, 1.6, 0.0),
    # 0.75 lies under the lower clip 0.8 but over 1 - ε_high.
    (0.75, -2.0, 1.6, 0.0),
    (1.5, 0.0, 0.0, 0.0),
)


class ClippedSurrogateTest(chex.TestCase):

  def arrays(self):
    ratio, advantage, loss, gradient = np.array(SURROGATE_CASES, np.float32).T
    old = np.full_like(ratio, -1.5)
    return np.log(ratio) + old, old, advantage, loss, gradient

  def surrogate(self, **clips):
    return self.variant(
        functools.partial(surrogate_of_tokens, **clips)
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    new, old, advantage, loss, _ = self.arrays()
    np.testing.assert_allclose(
        self.surrogate()(new, old, advantage), loss, 1e-6
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_gradient_by_hand(self):
    new, old, advantage, _, expected = self.arrays()
    surrogate = self.surrogate()
    got = jax.grad(lambda x: jnp.sum(surrogate(x, old, advantage)))(new)
    np.testing.assert_allclose(got, expected, 1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_clips_are_separate(self):
    up, down = jnp.log(jnp.array([3.0])), jnp.log(jnp.array([0.1]))
    zero, one = jnp.zeros(1), jnp.ones(1)
    surrogate = self.surrogate(clip_low=0.5, clip_high=1.0)
    # Up: min(3, 1 + 1). Down with A = -1: min(-0.1, -(1 - 0.5)).
    np.testing.assert_allclose(surrogate(up, zero, one), [-2.0], 1e-6)
    np.testing.assert_allclose(surrogate(down, zero, -one), [0.5], 1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_on_policy_it_is_the_policy_gradient(self):
    batch = make_batch()
    surrogate, x = self.surrogate(), batch["old"]
    got = jax.grad(lambda p: jnp.sum(surrogate(p, x, batch["advantages"])))(x)
    # Ratio 1: -A whatever the clips.
    np.testing.assert_array_equal(got, -batch["advantages"])

  @chex.variants(with_jit=True, without_jit=True)
  def test_sampler_and_advantages_are_constants(self):
    new, old, advantage, _, _ = self.arrays()
    surrogate = self.surrogate()
    gradients = jax.grad(
        lambda o, a: jnp.sum(surrogate(new, o, a)), argnums=(0, 1)
    )(old, advantage)
    for gradient in gradients:
      np.testing.assert_array_equal(gradient, 0.0)

  @chex.variants(with_jit=True, without_jit=True)
  def test_extremes_are_finite(self):
    new = jnp.array([1000.0, 1000.0, -1000.0, -1000.0])
    advantage = jnp.array([2.0, -2.0, 2.0, -2.0])
    surrogate = self.surrogate()
    # Clipped at 1.28; e^20 itself; e^-20 itself; clipped at 0.8.
    expected = [-2.56, 2 * math.exp(20), -2 * math.exp(-20), 1.6]
    np.testing.assert_allclose(
        surrogate(new, jnp.zeros(4), advantage), expected, 1e-6
    )
    gradient = jax.grad(
        lambda x: jnp.sum(surrogate(x, jnp.zeros(4), advantage))
    )(new)
    # The exponent is held at ±20 there, so nothing flows.
    np.testing.assert_array_equal(gradient, np.zeros(4))


class K3Test(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # Δ = log π_ref - log π = log 2, -log 2, 0.
    policy = jnp.log(jnp.array([0.25, 0.5, 0.3]))
    reference = jnp.log(jnp.array([0.5, 0.25, 0.3]))
    # 2 - log 2 - 1; 1/2 + log 2 - 1; 1 - 0 - 1.
    expected = [1 - math.log(2), math.log(2) - 0.5, 0.0]
    np.testing.assert_allclose(
        self.variant(losses.k3_divergence)(policy, reference), expected, 1e-6
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_gradient_by_hand(self):
    policy = jnp.log(jnp.array([0.25, 0.5, 0.3]))
    reference = jnp.log(jnp.array([0.5, 0.25, 0.3]))
    k3 = self.variant(losses.k3_divergence)
    by_policy, by_reference = jax.grad(
        lambda p, r: jnp.sum(k3(p, r)), argnums=(0, 1)
    )(policy, reference)
    # d / d log π = 1 - exp(Δ): 1 - 2, 1 - 1/2, 0.
    np.testing.assert_allclose(by_policy, [-1.0, 0.5, 0.0], 1e-6)
    np.testing.assert_array_equal(by_reference, np.zeros(3))

  @chex.variants(with_jit=True, without_jit=True)
  def test_not_negative(self):
    size = np.logspace(-3, 2, 2001)
    delta = np.concatenate([size, -size]).astype(np.float32)
    got = self.variant(losses.k3_divergence)(-delta, np.zeros_like(delta))
    self.assertTrue((got > 0).all())

  @chex.variants(with_jit=True, without_jit=True)
  def test_not_negative_near_zero(self):
    size = np.logspace(-8, -3, 2001)
    delta = np.concatenate([size, -size]).astype(np.float32)
    got = self.variant(losses.k3_divergence)(-delta, np.zeros_like(delta))
    self.assertGreaterEqual(float(got.min()), 0.0)

  @chex.variants(with_jit=True, without_jit=True)
  def test_its_mean_is_the_divergence(self):
    # Under tokens of π the estimator is unbiased: Σ π k3 = Σ π log(π / π_ref).
    policy = np.array([0.7, 0.2, 0.1], np.float32)
    reference = np.array([0.3, 0.3, 0.4], np.float32)
    k3 = self.variant(losses.k3_divergence)(np.log(policy), np.log(reference))
    divergence = (policy * np.log(policy / reference)).sum()
    np.testing.assert_allclose((policy * k3).sum(), divergence, 1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_extremes_are_finite(self):
    k3 = self.variant(losses.k3_divergence)
    policy = jnp.array([-1000.0, 1000.0])
    # Δ is held at 20 and -20: e^20 - 21 and e^-20 + 19.
    expected = [math.exp(20) - 21, math.exp(-20) + 19]
    np.testing.assert_allclose(k3(policy, jnp.zeros(2)), expected, 1e-6)
    gradient = jax.grad(lambda p: jnp.sum(k3(p, jnp.zeros(2))))(policy)
    chex.assert_tree_all_finite(gradient)

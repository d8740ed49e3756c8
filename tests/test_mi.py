"""Information from answer entropies."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from iapo_jax.rl import mi


def make_entropies(lengths, width, seed=0):
  """Random H_0 .. H_width and the mask of the first `lengths` tokens."""
  shape = (len(lengths), width + 1)
  entropies = np.random.default_rng(seed).uniform(0.0, 3.0, shape)
  mask = np.arange(width) < np.asarray(lengths)[:, None]
  return jnp.asarray(entropies, jnp.float32), jnp.asarray(mask)


def pad_columns(x, count, value=0):
  return jnp.pad(x, ((0, 0), (0, count)), constant_values=value)


class RealisedInformationTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    entropies = jnp.array([[2.0, 1.5, 1.75, 0.25, 9.0], [1.0, 3.0, 7.0, 5, 5]])
    mask = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
    # 2 - 1.5, 1.5 - 1.75, 1.75 - 0.25, then 0; 1 - 3, then 0.
    expected = [[0.5, -0.25, 1.5, 0.0], [-2.0, 0.0, 0.0, 0.0]]
    got = self.variant(mi.realised_information)(entropies, mask)
    np.testing.assert_array_equal(got, expected)

  @chex.variants(with_jit=True, without_jit=True)
  def test_telescopes_and_is_zero_elsewhere(self):
    lengths = (0, 1, 5, 12)
    entropies, mask = make_entropies(lengths, 12)
    got = self.variant(mi.realised_information)(entropies, mask)
    h = np.asarray(entropies, np.float64)
    np.testing.assert_allclose(
        np.asarray(got, np.float64).sum(1),
        [h[i, 0] - h[i, r] for i, r in enumerate(lengths)],
        rtol=1e-6,
        # Twelve differences of numbers below 4, each exact to 2^-23.
        atol=12 * 2.0**-23,
    )
    np.testing.assert_array_equal(got[~mask], 0.0)

  @chex.variants(with_jit=True, without_jit=True)
  def test_is_a_constant_for_the_gradient(self):
    entropies, mask = make_entropies((3, 6), 6)
    information = self.variant(mi.realised_information)
    gradient = jax.grad(lambda h: jnp.sum(information(h, mask) ** 2))
    np.testing.assert_array_equal(gradient(entropies), 0.0)

  @chex.variants(with_jit=True, without_jit=True)
  def test_padding_changes_nothing(self):
    entropies, mask = make_entropies((3, 6), 6)
    information = self.variant(mi.realised_information)
    # What the padding holds must not matter either.
    wide = information(pad_columns(entropies, 4, 7.0), pad_columns(mask, 4))
    np.testing.assert_array_equal(
        wide, pad_columns(information(entropies, mask), 4)
    )

  def test_one_entropy_more_than_tokens(self):
    with self.assertRaises(AssertionError):
      mi.realised_information(jnp.ones((2, 4)), jnp.ones((2, 4), bool))


class ShuffledInformationTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_keeps_each_rows_values(self):
    lengths = (0, 1, 9, 30)
    entropies, mask = make_entropies(lengths, 30)
    information = mi.realised_information(entropies, mask)
    shuffled = self.variant(mi.shuffled_information)(
        information, mask, jax.random.key(0)
    )
    np.testing.assert_array_equal(shuffled[~mask], 0.0)
    for before, after, n in zip(information, shuffled, lengths, strict=True):
      np.testing.assert_array_equal(np.sort(before[:n]), np.sort(after[:n]))

  @chex.variants(with_jit=True, without_jit=True)
  def test_masked_values_never_come_in(self):
    mask = jnp.arange(20) < jnp.array([[7], [19]])
    information = jnp.where(mask, 1.0, jnp.nan)
    shuffled = self.variant(mi.shuffled_information)(
        information, mask, jax.random.key(1)
    )
    np.testing.assert_array_equal(shuffled, mask.astype(jnp.float32))

  @chex.variants(with_jit=True, without_jit=True)
  def test_orders_differ_between_rows_and_keys(self):
    information = jnp.broadcast_to(jnp.arange(40.0), (2, 40))
    mask = jnp.ones((2, 40), bool)
    shuffle = self.variant(mi.shuffled_information)
    first = shuffle(information, mask, jax.random.key(0))
    second = shuffle(information, mask, jax.random.key(1))
    # Two orders of 40 values agree with probability 1 / 40!.
    self.assertTrue((first != information).any(1).all())
    self.assertTrue((first[0] != first[1]).any())
    self.assertTrue((first != second).any(1).all())

  @chex.variants(with_jit=True, without_jit=True)
  def test_every_position_takes_every_value(self):
    information = jnp.broadcast_to(jnp.arange(1.0, 4.0), (3000, 3))
    mask = jnp.ones((3000, 3), bool)
    shuffled = np.asarray(
        self.variant(mi.shuffled_information)(
            information, mask, jax.random.key(2)
        )
    )
    # 1000 of 3000 expected; the standard deviation is sqrt(3000 2/9) = 26.
    for column in shuffled.T:
      counts = [(column == value).sum() for value in (1, 2, 3)]
      np.testing.assert_allclose(counts, 1000, atol=5 * 26)


def surprise_by_loop(entropies, length, width):
  """METHOD section 2, literally: surprise_i belongs to token i + 1."""
  e = {i: float(entropies[i]) for i in range(length)}
  e[-1] = e[length] = 0.0
  surprise = [(e[i] + e[i - 1]) / 2 - e[i + 1] for i in range(length)]
  return np.array(surprise + [0.0] * (width - length))


class ReferenceSurpriseTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # The last column is H_T of the full row, which is never read.
    entropies = jnp.array([[2.0, 1.5, 1.0, 99.0], [3.0, 0.5, 8.0, 8.0]])
    mask = jnp.array([[1, 1, 1], [1, 1, 0]], bool)
    expected = [
        # (2 + 0) / 2 - 1.5, (1.5 + 2) / 2 - 1, (1 + 1.5) / 2 - 0
        [-0.5, 0.75, 1.25],
        # (3 + 0) / 2 - 0.5, (0.5 + 3) / 2 - 0
        [1.0, 1.75, 0.0],
    ]
    got = self.variant(mi.reference_surprise)(entropies, mask)
    np.testing.assert_array_equal(got, expected)

  @chex.variants(with_jit=True, without_jit=True)
  def test_boundaries_are_entropies_not_differences(self):
    # METHOD defect 3: under constant H a difference would vanish.
    entropies = jnp.full((1, 6), 4.0)
    got = self.variant(mi.reference_surprise)(entropies, jnp.ones((1, 5), bool))
    # First 4 / 2 - 4 = -H / 2, last (4 + 4) / 2 - 0 = H, between them 0.
    np.testing.assert_array_equal(got, [[-2.0, 0.0, 0.0, 0.0, 4.0]])

  @chex.variants(with_jit=True, without_jit=True)
  def test_against_the_formula(self):
    lengths = (0, 1, 2, 7, 11)
    entropies, mask = make_entropies(lengths, 11, seed=4)
    got = self.variant(mi.reference_surprise)(entropies, mask)
    expected = [
        surprise_by_loop(row, n, 11)
        for row, n in zip(entropies, lengths, strict=True)
    ]
    np.testing.assert_allclose(got, np.stack(expected), 1e-6, 1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_is_a_constant_for_the_gradient(self):
    entropies, mask = make_entropies((3, 6), 6)
    surprise = self.variant(mi.reference_surprise)
    gradient = jax.grad(lambda h: jnp.sum(surprise(h, mask) ** 2))
    np.testing.assert_array_equal(gradient(entropies), 0.0)

  @chex.variants(with_jit=True, without_jit=True)
  def test_padding_changes_nothing(self):
    entropies, mask = make_entropies((3, 6), 6)
    surprise = self.variant(mi.reference_surprise)
    wide = surprise(pad_columns(entropies, 4, 7.0), pad_columns(mask, 4))
    np.testing.assert_array_equal(
        wide, pad_columns(surprise(entropies, mask), 4)
    )



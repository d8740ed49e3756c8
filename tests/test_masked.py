"""Masked statistics, by hand and by their properties."""

import chex
import jax.numpy as jnp
import numpy as np

from iapo_jax.core import masked

JUNK = (np.nan, np.inf, -np.inf, 1e30)


def ragged_rows(seed=0, lengths=(1, 2, 3, 17, 40), width=40):
  """Random rows of these lengths and their mask."""
  x = np.random.default_rng(seed).normal(3.0, 2.0, (len(lengths), width))
  mask = np.arange(width) < np.asarray(lengths)[:, None]
  return x.astype(np.float32), mask


class MeanTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand_over_each_axis(self):
    x = jnp.array([[1.0, 2.0, 6.0, 100.0], [4.0, 8.0, 7.0, 7.0]])
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
    # Rows: (1 + 2 + 6) / 3 and (4 + 8) / 2.
    np.testing.assert_array_equal(self.variant(masked.mean)(x, mask), [3, 6])

  @chex.variants(with_jit=True, without_jit=True)
  def test_over_the_first_axis(self):
    x = jnp.array([[1.0, 2.0, 6.0], [4.0, 8.0, 7.0]])
    mask = jnp.array([[1, 1, 0], [1, 0, 0]], bool)

    def over_rows(x, mask):
      return masked.mean(x, mask, axis=0)

    # Columns: (1 + 4) / 2, 2 / 1 and nothing.
    np.testing.assert_array_equal(
        self.variant(over_rows)(x, mask), [2.5, 2.0, 0.0]
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_over_everything(self):
    x = jnp.array([[1.0, 2.0, 6.0], [4.0, 8.0, 7.0]])
    mask = jnp.array([[1, 0, 1], [1, 1, 0]], bool)

    def over_all(x, mask):
      return masked.mean(x, mask, axis=None)

    # (1 + 6 + 4 + 8) / 4, not the mean of the rows' means 3.5 and 6.
    self.assertEqual(float(self.variant(over_all)(x, mask)), 4.75)

  @chex.variants(with_jit=True, without_jit=True)
  def test_no_valid_entry_gives_zero(self):
    x = jnp.array([[5.0, np.nan], [5.0, 1.0]])
    mask = jnp.array([[0, 0], [1, 0]], bool)
    np.testing.assert_array_equal(self.variant(masked.mean)(x, mask), [0, 5])

  @chex.variants(with_jit=True, without_jit=True)
  def test_masked_values_do_not_matter(self):
    x, mask = ragged_rows()
    mean = self.variant(masked.mean)
    expected = mean(x, mask)
    for junk in JUNK:
      np.testing.assert_array_equal(
          mean(np.where(mask, x, np.float32(junk)), mask), expected
      )


class StdTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # Mean 40 / 8 = 5; squares 9+1+1+1+0+0+4+16 = 32; sqrt(32 / 8) = 2.
    x = jnp.array([[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0, 99.0]])
    mask = jnp.arange(9)[None] < 8
    np.testing.assert_allclose(self.variant(masked.std)(x, mask), [2], 1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_ddof_one_by_hand(self):
    x = jnp.array([[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0, 99.0]])
    mask = jnp.arange(9)[None] < 8

    def unbiased(x, mask):
      return masked.std(x, mask, ddof=1)

    # The same 32 over 7 instead of 8.
    np.testing.assert_allclose(
        self.variant(unbiased)(x, mask), [np.sqrt(32 / 7)], 1e-6
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_over_the_first_axis(self):
    x = jnp.array([[1.0, 9.0], [3.0, 9.0], [50.0, 2.0]])
    mask = jnp.array([[1, 1], [1, 0], [0, 1]], bool)

    def over_rows(x, mask):
      return masked.std(x, mask, axis=0)

    # Columns 1, 3: mean 2, sqrt(2 / 2) = 1; 9, 2: mean 5.5, deviations 3.5.
    np.testing.assert_allclose(self.variant(over_rows)(x, mask), [1, 3.5], 1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_too_few_entries_give_zero(self):
    x = jnp.array([[3.0, 8.0, np.nan], [3.0, 5.0, 1.0], [3.0, 8.0, 7.0]])
    mask = jnp.array([[0, 0, 0], [1, 0, 0], [1, 1, 0]], bool)

    def unbiased(x, mask):
      return masked.std(x, mask, ddof=1)

    # 3, 8: deviations 2.5, so sqrt(2 * 6.25 / 1).
    np.testing.assert_allclose(
        self.variant(unbiased)(x, mask), [0, 0, np.sqrt(12.5)], 1e-6
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_as_many_entries_as_ddof_give_zero(self):
    x = jnp.array([[3.0, 8.0, 7.0], [3.0, 8.0, 7.0]])
    mask = jnp.array([[1, 1, 0], [1, 1, 1]], bool)

    def by_two_less(x, mask):
      return masked.std(x, mask, ddof=2)

    # 3, 8, 7: mean 6, squares 9 + 4 + 1 over 3 - 2.
    np.testing.assert_allclose(
        self.variant(by_two_less)(x, mask), [0, np.sqrt(14)], 1e-6
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_masked_values_do_not_matter(self):
    x, mask = ragged_rows()
    std = self.variant(masked.std)
    expected = std(x, mask)
    for junk in JUNK:
      np.testing.assert_array_equal(
          std(np.where(mask, x, np.float32(junk)), mask), expected
      )


class UnitZscoreTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    x = jnp.array([[1.0, 2.0, 3.0, 9.0], [1.0, 1.0, 3.0, 3.0]])
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    # 1, 2, 3: centred -1, 0, 1; σ √n = sqrt(2 / 3) sqrt(3) = sqrt(2).
    # 1, 1, 3, 3: centred -1, -1, 1, 1; σ √n = 1 * 2.
    s = 1 / np.sqrt(2)
    expected = [[-s, 0, s, 0], [-0.5, -0.5, 0.5, 0.5]]
    np.testing.assert_allclose(
        self.variant(masked.unit_zscore)(x, mask), expected, 1e-6
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_mean_zero_and_norm_one_at_every_length(self):
    lengths = (2, 3, 17, 500, 2048)
    x, mask = ragged_rows(lengths=lengths, width=2048)
    z = np.asarray(self.variant(masked.unit_zscore)(x, mask), np.float64)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1.0, 1e-6)
    np.testing.assert_allclose(z.sum(1) / lengths, 0.0, atol=1e-7)
    np.testing.assert_array_equal(z[~mask], 0.0)

  @chex.variants(with_jit=True, without_jit=True)
  def test_is_sigma_root_n(self):
    x, mask = ragged_rows(lengths=(5, 23))
    z = self.variant(masked.unit_zscore)(x, mask)
    for row, valid, got in zip(x, mask, z, strict=True):
      values = row[valid].astype(np.float64)
      scale = values.std() * np.sqrt(len(values))
      np.testing.assert_allclose(
          got[valid], (values - values.mean()) / scale, 1e-6, 1e-6
      )

  @chex.variants(with_jit=True, without_jit=True)
  def test_scale_does_not_matter(self):
    x, mask = ragged_rows()
    zscore = self.variant(masked.unit_zscore)
    # Powers of two are exact: nothing but the scale changes.
    np.testing.assert_array_equal(
        zscore(x, mask), zscore(np.float32(2.0**-12) * x, mask)
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_constant_rows_become_zero(self):
    # The fp32 mean of many 0.1 is not 0.1: the residue must not become 1.
    zscore = self.variant(masked.unit_zscore)
    for count in (72, 2048):
      for value in (0.1, 0.7, 2.3, -1.1):
        x = jnp.full((2, count), value)
        mask = jnp.arange(count) < jnp.array([[count], [count - 5]])
        np.testing.assert_array_equal(zscore(x, mask), np.zeros((2, count)))

  @chex.variants(with_jit=True, without_jit=True)
  def test_small_real_spread_is_kept(self):
    # 1 and 1 + 2^-10 are exact in fp32: centred ∓2^-11, norm 2^-11 sqrt(2).
    x = jnp.array([[1.0, 1.0 + 2.0**-10]])
    s = 1 / np.sqrt(2)
    np.testing.assert_allclose(
        self.variant(masked.unit_zscore)(x, jnp.ones((1, 2), bool)),
        [[-s, s]],
        1e-6,
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_rows_of_no_and_one_entry_become_zero(self):
    x = jnp.array([[5.0, 2.0, np.nan], [5.0, 2.0, 1.0]])
    mask = jnp.array([[0, 0, 0], [1, 0, 0]], bool)
    np.testing.assert_array_equal(
        self.variant(masked.unit_zscore)(x, mask), np.zeros((2, 3))
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_masked_values_do_not_matter(self):
    x, mask = ragged_rows()
    zscore = self.variant(masked.unit_zscore)
    expected = zscore(x, mask)
    for junk in JUNK:
      np.testing.assert_array_equal(
          zscore(np.where(mask, x, np.float32(junk)), mask), expected
      )

  def test_shapes_must_agree(self):
    with self.assertRaises(AssertionError):
      masked.unit_zscore(jnp.ones((2, 3)), jnp.ones((2, 1), bool))

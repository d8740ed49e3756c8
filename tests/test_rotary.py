"""Frequencies by hand; live parity with transformers is elsewhere."""

import dataclasses

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from iapo_jax.config.model import ModelConfig, RopeConfig
from iapo_jax.models import rotary


def test_default_frequencies():
  # w = 4, theta 100: 100^0 = 1 and 100^(-1/2) = 0.1.
  turning, amplitude = rotary.frequencies(RopeConfig(theta=100.0), 4)
  np.testing.assert_allclose(turning, [1.0, 0.1])
  assert amplitude == 1.0


def test_a_part_of_the_head():
  # w = 0.5 · 8 = 4: as above.
  rope = RopeConfig(theta=100.0, fraction=0.5)
  np.testing.assert_allclose(rotary.frequencies(rope, 8)[0], [1.0, 0.1])


def test_linear():
  rope = RopeConfig(kind="linear", theta=100.0, factor=4.0)
  np.testing.assert_allclose(rotary.frequencies(rope, 4)[0], [0.25, 0.025])


def test_llama3():
  # Frequencies 1, 0.1, 0.01, 0.001 turn 100/2π · f = 15.9, 1.59, 0.159, ...
  # times in the 100 positions trained: the first above high_freq = 4 is kept,
  # the last two below low_freq = 1 are over 8. The second is in between:
  # (1.5915 − 1) / (4 − 1) = 0.19718 of itself and the rest over 8,
  # 0.1 · (0.19718 + 0.80282 / 8) = 0.029753.
  rope = RopeConfig(
      kind="llama3", theta=10_000.0, factor=8.0, original_positions=100
  )
  turning, amplitude = rotary.frequencies(rope, 8)
  np.testing.assert_allclose(
      turning, [1.0, 0.029753, 0.01 / 8, 0.001 / 8], rtol=1e-4
  )
  assert amplitude == 1.0


def test_yarn():
  # Pair of r turns: 8 · ln(100 / (2π r)) / (2 ln 10000); r = 32: −0.303,
  # rounded outwards and at least 0 is 0; r = 1: 1.202, rounded up 2. The ramp
  # falls from pair 0 to pair 2: kept 1, 1/2, 0, 0.
  # 0.1 · (1/2 + 1/2 / 4) = 0.0625. Amplitude 0.1 · ln 4 + 1 = 1.13863.
  rope = RopeConfig(
      kind="yarn", theta=10_000.0, factor=4.0, original_positions=100
  )
  turning, amplitude = rotary.frequencies(rope, 8)
  np.testing.assert_allclose(turning, [1.0, 0.0625, 0.0025, 0.00025])
  np.testing.assert_allclose(amplitude, 1.13863, rtol=1e-5)


def test_longrope():
  # Frequencies 1 and 0.1 over the factors. Amplitude of both:
  # sqrt(1 + ln 16 / ln 4) = sqrt(3).
  rope = RopeConfig(
      kind="longrope", theta=100.0, factor=16.0, original_positions=4,
      short_factors=(1.0, 2.0), long_factors=(4.0, 8.0),
  )  # fmt: skip
  for factors, expected in (("short", [1, 0.05]), ("long", [0.25, 0.0125])):
    turning, amplitude = rotary.frequencies(rope, 4, factors)
    np.testing.assert_allclose(turning, expected)
    np.testing.assert_allclose(amplitude, 3**0.5)
  given = dataclasses.replace(rope, amplitude=1.25)
  assert rotary.frequencies(given, 4, "long")[1] == 1.25
  with pytest.raises(ValueError, match="rope_factors = 'auto'"):
    rotary.frequencies(rope, 4)


def test_longrope_in_the_tables():
  rope = RopeConfig(
      kind="longrope", theta=100.0, original_positions=4,
      short_factors=(1.0, 2.0), long_factors=(4.0, 8.0),
  )  # fmt: skip
  cfg = ModelConfig(head_dim=4, rope=rope, rope_factors="long")
  cosines, _ = rotary.tables(jnp.array([[2]]), cfg)
  # Angles 2 / 4 and 0.2 / 8; factor 1 leaves the amplitude at 1.
  np.testing.assert_allclose(
      cosines[0, 0, 0], np.cos([0.5, 0.025]), rtol=1e-6
  )


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_scores_depend_on_distance_alone(fraction):
  """Queries and keys turned by their positions: a property of the method."""
  cfg = ModelConfig(head_dim=8, rope=RopeConfig(theta=50.0, fraction=fraction))
  rng = np.random.default_rng(0)
  query, key = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

  def score(at, other):
    turned = [
        rotary.apply(
            jnp.asarray(x),
            [t[0] for t in rotary.tables(jnp.array([[p]]), cfg)],
        )
        for x, p in ((query, at), (key, other))
    ]
    return float(jnp.sum(turned[0] * turned[1]))

  assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-5)
  assert abs(score(9, 4) - score(9, 6)) > 1e-3


class TablesTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_layers_without_positions_turn_nothing(self):
    cfg = ModelConfig(
        head_dim=4, num_layers=3, rotary=("global", "none", "local"),
        rope=RopeConfig(theta=100.0), local_rope=RopeConfig(theta=4.0),
    )  # fmt: skip
    positions = jnp.array([[0, 3]])
    cosines, sines = self.variant(lambda p: rotary.tables(p, cfg))(positions)
    assert cosines.shape == (3, 1, 2, 2)
    # At 3: angles 3 and 0.3 of theta 100; 3 and 1.5 of theta 4.
    np.testing.assert_allclose(
        cosines[:, 0, 1], np.cos([[3, 0.3], [0, 0], [3, 1.5]]), rtol=1e-5
    )
    np.testing.assert_allclose(
        sines[:, 0, 1], np.sin([[3, 0.3], [0, 0], [3, 1.5]]), rtol=1e-5
    )
    x = jnp.arange(8.0).reshape(1, 2, 1, 4)
    untouched = rotary.apply(x, (cosines[1], sines[1]))
    np.testing.assert_array_equal(untouched, x)

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iapo_jax.config.schema import OptimizerConfig
from iapo_jax.rl.optimizer import learning_rate, make_optimizer


def rates(num_steps, count, **settings):
  schedule = learning_rate(
      OptimizerConfig(learning_rate=2.0, **settings), num_steps
  )
  return [float(schedule(i)) for i in range(count)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Update i of 4 has (i + 1) / 4 of the peak of 2.
        ({"warmup_steps": 4}, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]),
        ({"warmup_steps": 1}, [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
        ({"warmup_steps": 0}, [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
        # A cosine over 4 updates: 2 · (1 + cos(π i / 4)) / 2 for i = 0..4 is
        # 2, 1 + √2/2, 1, 1 − √2/2, 0.
        (
            {"warmup_steps": 0, "decay": True},
            [2.0, 1.70710678, 1.0, 0.29289322, 0.0, 0.0],
        ),
        # Two of six updates warm up, four decay.
        (
            {"warmup_steps": 2, "decay": True},
            [1.0, 2.0, 2.0, 1.70710678, 1.0, 0.29289322],
        ),
    ],
)
def test_learning_rate_by_hand(settings, expected):
  steps = 6 if settings["warmup_steps"] == 2 else 4
  np.testing.assert_allclose(
      rates(steps, 6, **settings), expected, rtol=1e-6, atol=1e-7
  )


def test_the_first_update_by_hand():
  # The gradient (3, 4) has norm 5 and is clipped to (0.6, 0.8). Adam's first
  # step is its sign: lr · g / (|g| + 1e-8). Weight decay adds lr · 0.5 · w.
  optimizer = make_optimizer(
      OptimizerConfig(learning_rate=0.1, weight_decay=0.5, clip_norm=1.0), 10
  )
  weights = jnp.array([2.0, -1.0])
  steps, _ = optimizer.update(
      jnp.array([3.0, 4.0]), optimizer.init(weights), weights
  )
  moved = optax.apply_updates(weights, steps)
  np.testing.assert_allclose(
      moved, [2.0 - 0.1 - 0.1 * 0.5 * 2.0, -1.0 - 0.1 + 0.1 * 0.5], rtol=1e-5
  )

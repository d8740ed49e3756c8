import json
import math

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized

from iapo_jax.rl import finite

NAN, INF = math.nan, math.inf


class EverywhereTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_trees(self):
    everywhere = self.variant(finite.everywhere)
    whole = {"a": jnp.ones((2, 3)), "n": jnp.int32(7), "b": jnp.bool_(True)}
    assert everywhere(whole)
    assert everywhere({})
    for number in (NAN, INF, -INF):
      assert not everywhere(whole | {"x": jnp.array([0.0, number])})


class ApplyUpdateTest(chex.TestCase):

  def setUp(self):
    super().setUp()
    # Momentum 0.5, rate 0.1: a state that a lost update must not touch either.
    self.optimizer = optax.sgd(0.1, momentum=0.5)
    self.params = {"w": jnp.array([1.0, 2.0]), "b": jnp.float32(3.0)}
    first = {"w": jnp.array([3.0, 4.0]), "b": jnp.float32(0.0)}
    state = self.optimizer.init(self.params)
    _, self.state = self.optimizer.update(first, state, self.params)

  def apply(self, grads, metrics):
    function = self.variant(
        lambda *args: finite.apply_update(self.optimizer, *args)
    )
    return function(grads, self.params, self.state, metrics)

  @chex.variants(with_jit=True, without_jit=True)
  def test_a_sound_update(self):
    grads = {"w": jnp.array([0.0, 3.0]), "b": jnp.float32(4.0)}
    params, state, told = self.apply(grads, {"loss": jnp.float32(1.0)})
    # Trace 0.5 (3, 4) + (0, 3) = (1.5, 5), 0.5 · 0 + 4 = 4; less a tenth.
    np.testing.assert_allclose(params["w"], [0.85, 1.5], rtol=1e-6)
    np.testing.assert_allclose(params["b"], 2.6, rtol=1e-6)
    np.testing.assert_allclose(state[0].trace["w"], [1.5, 5.0], rtol=1e-6)
    # √(3² + 4²)
    assert told["grad_norm"] == 5
    assert told["skipped"] == 0

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
      (NAN, 1.0), (INF, 1.0), (-INF, 1.0), (1.0, NAN), (1.0, INF),
      (1e30, 1.0),  # its square is beyond fp32
  )  # fmt: skip
  def test_one_that_is_left_out(self, gradient, metric):
    grads = {"w": jnp.array([0.0, gradient]), "b": jnp.float32(1.0)}
    params, state, told = self.apply(grads, {"loss": jnp.float32(metric)})
    chex.assert_trees_all_equal((params, state), (self.params, self.state))
    assert told["skipped"] == 1


def test_names_of_those_that_are_not():
  metrics = {"a": 1.0, "b": NAN, "c": -INF, "d": 0.0, "stage": "rl", "n": 3}
  assert finite.offenders(metrics) == ["b", "c"]
  assert finite.offenders({}) == []


def test_json_and_back():
  content = {"x": [1.5, NAN, {"y": INF}], "text": "nan", "n": 3, "no": False}
  written = json.dumps(finite.as_json(content), allow_nan=False)
  assert json.loads(written) == {
      "x": [1.5, None, {"y": None}], "text": "nan", "n": 3, "no": False
  }  # fmt: skip
  back = finite.from_json(json.loads(written))
  assert math.isnan(back["x"][1])
  assert math.isnan(back["x"][2]["y"])
  assert back["text"] == "nan"


@pytest.mark.parametrize("new", [jnp.zeros(3), jnp.zeros(2, jnp.int32)])
def test_a_state_takes_the_place_of_one_like_it(new):
  changing = optax.GradientTransformation(
      lambda params: (), lambda grads, state, params: (grads, new)
  )
  with pytest.raises(AssertionError):
    finite.apply_update(changing, jnp.ones(2), jnp.ones(2), jnp.zeros(2), {})

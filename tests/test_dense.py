import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iapo_jax.models import dense


class DenseTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_hand_example(self):
    # x = (1, 2), (3, 4) and W = (1, 0, 2), (0, 1, 1): rows of x W are
    # (1, 2, 4) and (3, 4, 10). The gradient of the sum of all entries is
    # W's row sums, (3, 2), for each x, and the column sums of x, 4 and 6, for
    # each entry of W's rows.
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    kernel = jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
    y = self.variant(dense.product)(x, kernel)
    np.testing.assert_array_equal(y, [[1, 2, 4], [3, 4, 10]])
    total = jax.grad(lambda *pair: jnp.sum(dense.product(*pair)), (0, 1))
    to_x, to_kernel = self.variant(total)(x, kernel)
    np.testing.assert_array_equal(to_x, [[3, 2], [3, 2]])
    np.testing.assert_array_equal(to_kernel, [[4, 4, 4], [6, 6, 6]])

  @chex.variants(with_jit=True, without_jit=True)
  def test_rows_and_biases_by_hand(self):
    # Rows 2, 0, 2 of the table; each gets the gradients of its readers: 1 + 5
    # and 3; row 1 has none.
    table = jnp.array([[1.0], [2.0], [4.0]])
    ids, gradient = jnp.array([2, 0, 2]), jnp.array([[1.0], [3.0], [5.0]])
    read = self.variant(lambda table: dense.look_up(table, ids, "float32"))
    y, pull = jax.vjp(read, table)
    np.testing.assert_array_equal(y, [[4], [1], [4]])
    np.testing.assert_array_equal(pull(gradient)[0], [[3], [0], [6]])
    # A bias [2] of x [2, 1, 2] gets what all tokens get.
    x, bias = jnp.array([[[1.0, 2.0]], [[3.0, 4.0]]]), jnp.array([10.0, 20.0])
    y, pull = jax.vjp(self.variant(dense.biased), x, bias)
    np.testing.assert_array_equal(y, [[[11, 22]], [[13, 24]]])
    to_x, to_bias = pull(x)
    np.testing.assert_array_equal(to_x, x)
    np.testing.assert_array_equal(to_bias, [4, 6])


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("outputs", [(6, 7), (2,)])  # wider, and narrower
def test_gradients_are_those_of_the_plain_product(axes, outputs):
  inputs = (4, 5)[-axes:]
  x = jax.random.normal(jax.random.key(0), (2, 3, *inputs))
  kernel = jax.random.normal(jax.random.key(1), (*inputs, *outputs))

  def loss(product):
    return lambda x, kernel: jnp.sum(jnp.sin(product(x, kernel, axes)))

  ours = jax.grad(loss(dense.product), (0, 1))(x, kernel)
  expected = jax.grad(loss(jnp.tensordot), (0, 1))(x, kernel)
  chex.assert_trees_all_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("what", ["product", "look_up", "biased"])
def test_a_weights_gradient_is_summed_in_its_own_dtype(what):
  # 1 + 2^-8 + ... + 2^-8 (256 times) is 2: in bfloat16 each sum rounds to 1.
  x = jnp.ones((257, 1), jnp.bfloat16)
  gradient = jnp.full((257, 1), 2.0**-8, jnp.bfloat16).at[0].set(1.0)
  ones = jnp.ones((1, 1))
  run, *inputs = {
      "product": (dense.product, x, ones),
      "look_up": (
          lambda w: dense.look_up(w, jnp.zeros(257, int), "bfloat16"), ones
      ),
      "biased": (dense.biased, x, ones[0]),
  }[what]  # fmt: skip
  y, pull = jax.vjp(run, *inputs)
  *to_x, to_weight = pull(gradient)
  assert all(z.dtype == jnp.bfloat16 for z in (y, *to_x))
  assert to_weight.dtype == jnp.float32
  assert to_weight.item() == 2.0


@pytest.mark.parametrize("outputs", [32, 8])  # wider, and narrower
def test_bfloat16_products_have_gradients_in_a_program(outputs):
  x = jax.random.normal(jax.random.key(0), (4, 3, 16), jnp.bfloat16)
  kernel = jax.random.normal(jax.random.key(1), (16, outputs))

  def loss(product):
    def of(x, kernel):
      return jnp.sum(product(x, kernel).astype(jnp.float32) ** 2)

    return jax.jit(jax.grad(of, (0, 1)))

  ours = loss(dense.product)(x, kernel)
  exact = loss(lambda x, k: jnp.tensordot(x.astype(jnp.float32), k, 1))
  expected = exact(x, kernel)
  assert ours[1].dtype == jnp.float32
  for found, wanted in zip(ours, expected, strict=True):
    scale = float(jnp.max(jnp.abs(wanted)))
    gap = jnp.max(jnp.abs(found.astype(jnp.float32) - wanted))
    # bfloat16 keeps 8 bits, of the product and of its gradient.
    assert float(gap) < 2**-5 * scale

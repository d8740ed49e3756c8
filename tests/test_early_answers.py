"""Early answers that are learned beside the policy gradient."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from recorded import learn, make_params, make_setup, record

from iapo_jax.config.schema import Config, LossConfig
from iapo_jax.core import sharding
from iapo_jax.core.types import Grades
from iapo_jax.rl import early_answers, update


class CutTest(chex.TestCase):

  def cut(self, tokens, lengths, answers, counts, key=0):
    grades = Grades(
        correct=None,
        well_formed=None,
        reasoning_lengths=jnp.asarray(lengths),
        timed_out=None,
        answers=jnp.asarray(answers),
        answer_lengths=jnp.asarray(counts),
    )
    return self.variant(early_answers.cut)(
        jnp.asarray(tokens), grades, (50, 51), jax.random.key(key)
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # R = 0: the cut can only be at the beginning.
    tokens = [[1, 2, 3, 4, 5, 6]] * 4
    found = self.cut(
        tokens, [0] * 4, [[7, 8], [7, 0], [0, 0], [9, 9]], [2, 1, 0, 2]
    )
    np.testing.assert_array_equal(found.tokens[0, :4], [50, 51, 7, 8])
    np.testing.assert_array_equal(found.tokens[1, :3], [50, 51, 7])
    np.testing.assert_array_equal(found.lengths, [4, 3, 1, 4])
    np.testing.assert_array_equal(
        found.learned,
        np.array([[0, 0, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0], [0] * 6,
                  [0, 0, 1, 1, 0, 0]], bool),
    )  # fmt: skip

  @chex.variants(with_jit=True, without_jit=True)
  def test_every_cut_is_as_likely(self):
    rows = 4000
    tokens = np.tile(np.arange(10, 18), (rows, 1))
    found = self.cut(
        tokens, np.full(rows, 3), np.full((rows, 1), 9), np.ones(rows, int)
    )
    at = np.asarray(found.lengths) - 3
    # Of 0, 1, 2 and 3 a quarter each: a standard deviation of 0.007.
    np.testing.assert_allclose(np.bincount(at) / rows, 0.25, atol=0.03)
    for row in range(20):
      expected = [*range(10, 10 + at[row]), 50, 51, 9]
      np.testing.assert_array_equal(
          found.tokens[row, : at[row] + 3], expected
      )
      np.testing.assert_array_equal(
          np.flatnonzero(found.learned[row]), [at[row] + 2]
      )

  @chex.variants(with_jit=True, without_jit=True)
  def test_what_does_not_fit_is_not_learned(self):
    rows = 200
    found = self.cut(
        np.zeros((rows, 6), int), np.full(rows, 6), np.full((rows, 1), 9),
        np.ones(rows, int),
    )  # fmt: skip
    at = np.asarray(found.lengths) - 3
    learned = np.asarray(found.learned).any(axis=1)
    # Cuts after more than three tokens leave no room for three more.
    assert at[learned].max() == 3
    np.testing.assert_array_equal(found.lengths[~learned], 1)
    assert 0.3 < learned.mean() < 0.8  # 4 of 7

  @chex.variants(with_jit=True, without_jit=True)
  def test_neighbours_do_not_matter(self):
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 40, (6, 9))
    inputs = tokens, [5, 2, 0, 4, 3, 1], rng.integers(3, 40, (6, 2)), [1] * 6
    whole = self.cut(*inputs)
    part = self.cut(*(x[:2] for x in inputs))
    chex.assert_trees_all_equal(part, jax.tree.map(lambda x: x[:2], whole))


def test_the_metric_is_a_mean_over_completions():
  # −log π of 1, and of 3 + 5: (1 + 8) / 2, whatever the weight of the loss.
  cfg = dataclasses.replace(Config(), loss=LossConfig(early_weight=0.5))
  logprobs = jnp.array([[-1.0, -7.0], [-3.0, -5.0], [-9.0, -9.0]])
  zeros = jnp.zeros((3, 2))
  known = update.Tokens(
      ids=zeros.astype(int), old_logprobs=logprobs, reference_logprobs=zeros,
      advantages=zeros, weights=zeros,
      early=0.5 / 2 * jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]),
  )  # fmt: skip
  metrics = update._metrics(logprobs, known, cfg)
  assert metrics["early_nll"] == 4.5


@pytest.mark.full
@pytest.mark.parametrize(("devices", "micro_batches"), [(1, 1), (1, 4), (8, 2)])
def test_the_gradient_is_that_of_both_losses(devices, micro_batches):
  """Beside the plain gradient plus that of −log π, written down."""
  fields = {"credit__mode": "grpo", "probe__stride": 0, "loss__kl_weight": 0.0}
  setup = make_setup(
      devices, loss__micro_batches=micro_batches, loss__early_weight=0.5,
      **fields,
  )  # fmt: skip
  params = make_params(setup)
  recorded = record(setup, params)
  moved, _, metrics = learn(setup, recorded, params, params)
  plain = make_setup(**fields)
  without, _, _ = learn(plain, recorded, params, params)
  early = early_rows(setup, recorded)
  prompts = jax.device_get(setup.prompts())

  def loss(params):
    stats = tiny.score(
        params, prompts, early.tokens, cfg=setup.cfg.model, group_size=4,
        temperature=1.0, chunk=64,
    )  # fmt: skip
    learned = np.asarray(early.learned)
    rows = learned.any(axis=1).sum()
    assert 0 < rows < 32  # some completions have no answer
    return -jnp.sum(jnp.where(learned, stats.logprob, 0.0)) / rows

  value, gradient = jax.value_and_grad(loss)(params)
  # SGD of rate 1: the weights moved by the gradient.
  expected = jax.tree.map(lambda x, g: x - 0.5 * g, without, gradient)
  chex.assert_trees_all_close(moved, expected, atol=1e-5, rtol=1e-4)
  np.testing.assert_allclose(metrics["update/early_nll"], value, rtol=1e-5)
  np.testing.assert_allclose(metrics["update/ratio"], 1.0, atol=1e-5)


def early_rows(setup, recorded):
  """The rows that `learn` cuts, computed once more."""

  @jax.jit
  def run(rolled, prompts):
    with sharding.scope(setup.parts.mesh):
      grades = setup.parts.grader(rolled, prompts)
      return early_answers.cut(
          rolled.tokens,
          grades,
          setup.parts.task.vocabulary.elicitation,
          jax.random.key(4),
      )

  rolled = sharding.put_batch(
      recorded.replace(context=()), setup.parts.mesh
  )
  return jax.device_get(run(rolled, setup.prompts()))


def test_where_nothing_learns_the_policy_is_as_it_was():
  cfg = make_setup(loss__kl_weight=0.0).cfg
  known = update.Tokens(*(jnp.zeros((2, 3)) for _ in range(5)))
  logprobs = jnp.full((2, 3), 0.1)
  for weights, expected in ((0.0, 1.0), (0.5, np.exp(0.1))):
    found = update._metrics(
        logprobs, known.replace(weights=jnp.full((2, 3), weights)), cfg
    )
    np.testing.assert_allclose(found["ratio"], expected, rtol=1e-6)


def test_rows_of_a_prompt_stay_together():
  experience = update.Experience(
      prompts=make_setup().prompts(),
      lengths=jnp.arange(32),
      tokens=update.Tokens(*(jnp.zeros((32, 5)) for _ in range(5))),
  )
  early = early_answers.EarlyAnswers(
      tokens=jnp.zeros((32, 5)),
      lengths=100 + jnp.arange(32),
      learned=jnp.zeros((32, 5), bool).at[3, 1:3].set(True),
  )
  both = update.with_early_answers(experience, early, weight=2.0)
  assert both.group_size == 8
  np.testing.assert_array_equal(
      both.lengths[:16],
      [0, 1, 2, 3, 100, 101, 102, 103, 4, 5, 6, 7, 104, 105, 106, 107],
  )
  # One row with an answer: each of its tokens has the whole weight.
  np.testing.assert_array_equal(both.tokens.early[7], [0, 2, 2, 0, 0])
  assert float(jnp.sum(both.tokens.early)) == 4

"""What the environment writes in the policy's place, and what is learned."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from recorded import make_config, make_params, make_setup, record

from iapo_jax.core.types import Rollout
from iapo_jax.data import steps
from iapo_jax.rl import credit, planting, update
from iapo_jax.rl.planting import Planting

GROUP, WIDTH = 3, 12
# After any of 3 .. 15, one of 10 .. 28 is replaced.
AFTER, VALUES = tuple(range(3, 16)), tuple(range(10, 29))


def sample(params, prompts, key, rule=None, temperature=1.0, width=WIDTH):
  return tiny.sample(
      params, prompts, key, group_size=GROUP, max_tokens=width,
      temperature=temperature, planting=rule,
  )  # fmt: skip


@pytest.fixture(scope="module")
def params():
  return tiny.make_params(sharpness=2.0)


def rule(rate, *after):
  return Planting(rate, after or (AFTER,), VALUES)


def test_rate_zero_changes_nothing(params):
  prompts, key = tiny.make_prompts(), jax.random.key(0)
  plain = sample(params, prompts, key)
  none = sample(params, prompts, key, rule(0.0))
  assert plain.planted is None
  np.testing.assert_array_equal(plain.chosen, plain.mask)
  assert not np.any(none.planted)
  np.testing.assert_array_equal(none.chosen, plain.mask)
  np.testing.assert_array_equal(none.tokens, plain.tokens)
  np.testing.assert_allclose(none.logprobs, plain.logprobs, atol=1e-5)
  np.testing.assert_allclose(none.entropies, plain.entropies, atol=1e-5)


def test_rate_one_plants_wherever_the_pattern_holds_and_nowhere_else(params):
  prompts, key = tiny.make_prompts(), jax.random.key(0)
  plain = jax.device_get(sample(params, prompts, key))
  rolled = jax.device_get(sample(params, prompts, key, rule(1.0)))
  seen = 0
  for row in range(rolled.tokens.shape[0]):
    tokens, length = rolled.tokens[row], rolled.lengths[row]
    for i in range(WIDTH):
      could = 0 < i < length and tokens[i - 1] in AFTER and tokens[i] in VALUES
      # A value that the policy wrote itself would have been replaced.
      assert rolled.planted[row, i] == could
    if not rolled.planted[row].any():
      np.testing.assert_array_equal(tokens, plain.tokens[row])
      continue
    # Up to the first planted token nothing differs: draws are independent.
    first = int(np.argmax(rolled.planted[row]))
    np.testing.assert_array_equal(tokens[:first], plain.tokens[row, :first])
    assert plain.tokens[row, first] in VALUES
    assert plain.tokens[row, first] != tokens[first]
    seen += 1
  assert seen >= 4


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_statistics_are_the_policys_of_what_is_written(params, temperature):
  prompts = tiny.make_prompts()
  rolled = sample(
      params, prompts, jax.random.key(1), rule(0.5), temperature=temperature
  )
  assert np.any(rolled.planted)
  stats = tiny.score(
      params,
      prompts,
      rolled.tokens,
      cfg=tiny.MODEL,
      group_size=GROUP,
      temperature=temperature or 1.0,
      chunk=4,
  )
  for ours, theirs in (
      (rolled.logprobs, stats.logprob),
      (rolled.entropies, stats.entropy),
  ):
    np.testing.assert_allclose(
        ours, jnp.where(rolled.mask, theirs, 0.0), atol=1e-5
    )


def test_slips_of_a_row_do_not_depend_on_its_neighbours(params):
  key, prompts = jax.random.key(5), tiny.make_prompts()
  together = sample(params, prompts, key, rule(0.5))
  first = jax.tree.map(lambda x: x[:1], prompts)
  alone = sample(params, first, key, rule(0.5))
  np.testing.assert_array_equal(alone.planted, together.planted[:GROUP])
  np.testing.assert_array_equal(alone.tokens, together.tokens[:GROUP])
  assert np.any(alone.planted)
  longer = sample(params, first, key, rule(0.5), width=16)
  np.testing.assert_array_equal(longer.planted[:, :WIDTH], alone.planted)


def row_keys(rows, seed=0):
  return jax.vmap(jax.random.fold_in, (None, 0))(
      jax.random.key(seed), jnp.arange(rows)
  )


def test_slips_do_not_depend_on_where_rows_lie():
  rows = jnp.tile(jnp.array([[3, 4, 5, 0]], jnp.int32), (64, 1))
  sampled = jnp.arange(64, dtype=jnp.int32) % 29
  arguments = rows, jnp.int32(3), sampled, row_keys(64)
  run = jax.jit(functools.partial(planting.plant, rule=rule(0.5)))
  expected = jax.device_get(run(*arguments))
  assert 5 < expected[1].sum() < 45
  mesh = Mesh(np.array(jax.local_devices()), ("rows",))
  spread = NamedSharding(mesh, PartitionSpec("rows"))
  placed = [
      x if x.ndim == 0 else jax.device_put(x, spread) for x in arguments
  ]
  chex.assert_trees_all_equal(jax.device_get(run(*placed)), expected)


def test_how_often_and_by_what():
  """20,000 tokens 12, at a rate of 0.15: standard deviation 0.0025."""
  count = 20000
  rows = jnp.full((count, 1), 3, jnp.int32)
  token, planted = planting.plant(
      rows,
      jnp.int32(1),
      jnp.full(count, 12, jnp.int32),
      row_keys(count),
      rule(0.15),
  )
  token, planted = np.asarray(token), np.asarray(planted)
  assert abs(planted.mean() - 0.15) < 0.01
  np.testing.assert_array_equal(token[~planted], 12)
  counts = np.bincount(token[planted], minlength=29)[10:]
  assert counts[2] == 0
  # 18 others, about 167 times each: chi-square of 17 degrees of freedom, whose
  # 99.9 % quantile is 41.
  others = np.delete(counts, 2)
  mean = planted.sum() / 18
  assert np.sum((others - mean) ** 2 / mean) < 41


@pytest.fixture(scope="module")
def setup():
  return make_setup(
      data__arithmetic__slip_rate=1.0,
      data__arithmetic__check_rate=0.5,
      data__arithmetic__slip_check_rate=0.5,
      data__arithmetic__train_problems=32,
  )


def encode(setup, texts, width=24):
  encoded = [setup.parts.task.tokenizer.encode(text) for text in texts]
  tokens = np.zeros((len(texts), width), np.int32)
  for row, ids in enumerate(encoded):
    tokens[row, : len(ids)] = ids
  return jnp.asarray(tokens), [len(ids) for ids in encoded]


@pytest.mark.parametrize(
    ("before", "sampled", "planted"),
    [
        ("b 5 + 1 =", "6", True),
        ("b 5 + 1 = 6 c 6 - 5 =", "3", True),
        # Inside a check, of a name too many, and of no clause at all.
        ("b 5 + 1 = 6 check 5 + 1 =", "6", False),
        ("b 5 + 1 = 6 check 5 + 1 = 6 no so total", "6", False),
        ("b b 5 + 1", "6", False),
        ("5 + 1 =", "6", False),
        ("b 5 5 1 =", "6", False),
        ("b 5 + 1 =", "=", False),
        ("b 5 + 1 =", "<eos>", False),
        ("b 5 + 1", "=", False),
    ],
)
def test_the_results_of_steps_slip_and_nothing_else(
    setup, before, sampled, planted
):
  tokens, (count,) = encode(setup, [before])
  (token,) = setup.parts.task.tokenizer.encode(sampled)
  task = setup.parts.task
  written, found = planting.plant(
      tokens,
      jnp.int32(count),
      jnp.array([token], jnp.int32),
      row_keys(1),
      task.planting,
  )
  assert bool(found[0]) == planted
  assert (int(written[0]) != token) == planted
  assert not planted or int(written[0]) in task.steps.numbers


def hand_made(planted):
  """Two completions of 3 and 2 tokens, of which two in all are planted."""
  lengths = jnp.array([3, 2], jnp.int32)
  zeros = jnp.zeros((2, 4))
  return Rollout(
      tokens=jnp.zeros((2, 4), jnp.int32),
      lengths=lengths,
      ended=jnp.ones(2, bool),
      logprobs=zeros - 1.0,
      entropies=zeros,
      context=(),
      planted=planted,
  )


PLANTED = jnp.array([[0, 1, 0, 0], [1, 0, 0, 0]], bool)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        # Three tokens are the policy's: two of the first, one of the second.
        ("token_mean", [[1 / 3, 0, 1 / 3, 0], [0, 1 / 3, 0, 0]]),
        # Half a batch each: 1/2 · 1/2 and 1/2 · 1.
        ("sequence_mean", [[1 / 4, 0, 1 / 4, 0], [0, 1 / 2, 0, 0]]),
        # 1 / (2 sequences · 20 tokens).
        ("constant_length", [[1 / 40, 0, 1 / 40, 0], [0, 1 / 40, 0, 0]]),
    ],
)
def test_weights_of_planted_tokens_are_zero(aggregation, expected):
  cfg = make_config(loss__aggregation=aggregation)
  rolled = hand_made(PLANTED)
  experience = update.gather_experience(
      None, None, rolled, jnp.ones((2, 4)), rolled.chosen, cfg
  )
  np.testing.assert_allclose(experience.tokens.weights, expected, rtol=1e-6)


def test_nothing_planted_is_the_usual_mean():
  rolled = hand_made(None)
  experience = update.gather_experience(
      None, None, rolled, jnp.ones((2, 4)), rolled.chosen, make_config()
  )
  np.testing.assert_allclose(
      experience.tokens.weights, [[0.2, 0.2, 0.2, 0], [0.2, 0.2, 0, 0]]
  )


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_planted_tokens_teach_nothing(micro_batches):
  """Whatever their advantages are, the weights move alike."""
  setup = make_setup(
      loss__micro_batches=micro_batches,
      loss__kl_weight=0.5,
      credit__mode="grpo",
      probe__stride=0,
  )
  params = make_params(setup)
  recorded = record(setup, params)
  rng = np.random.default_rng(0)
  planted = (rng.random(recorded.tokens.shape) < 0.3) & recorded.mask
  advantages = rng.normal(size=planted.shape).astype(np.float32)
  reference = jax.tree.map(lambda x: jnp.asarray(x) * 0.9, params)

  @jax.jit
  def learn(advantages, old, planted):
    rolled = recorded.replace(planted=planted, logprobs=old)
    credited, _ = credit.assign(
        rolled,
        setup.parts.grader(rolled, setup.prompts()),
        None,
        setup.state().weights,
        jax.random.key(0),
        setup.cfg,
    )
    experience = update.gather_experience(
        reference,
        setup.prompts(),
        rolled,
        advantages,
        credited.learned,
        setup.cfg,
    )
    state, metrics = update.update(
        setup.state(params), experience, setup.cfg, setup.stage.optimizer
    )
    return state.params, metrics

  old = recorded.logprobs
  first = learn(advantages, old, planted)
  # Of planted tokens, another advantage and another ratio, clipped or not.
  other = learn(
      jnp.where(planted, 1e3, advantages), old - 2.0 * planted, planted
  )
  chex.assert_trees_all_equal(first, other)
  # As tokens of the policy's own they would have moved the weights.
  own = learn(advantages, old, jnp.zeros_like(planted))
  moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), first[0], own[0])
  assert max(jax.tree.leaves(moved)) > 1e-3


@chex.all_variants(with_pmap=False, with_device=False)
class CheckCountsTest(chex.TestCase):
  """Completions whose steps are counted by hand."""

  texts = (
      # 6 is right and checked at once; 3 is wrong (6 - 5 = 1), its check comes
      # late; 6 = 3 + 3 is right.
      "b 5 + 1 = 6 check 5 + 1 = 6 yes c 6 - 5 = 3 so total 3 . d 3 + 3 = 6",
      # 9 is wrong and checked; results in checks are not counted.
      "b 5 + 1 = 9 check 5 + 1 = 9 no so total 6 . c 6 - 5 = 1 </think>",
      # 15 + 7 is kept at 15, 2 - 7 at 0: both right. 7 is wrong.
      "b 15 + 7 = 15 check c 2 - 7 = 0 check d 2 - 7 = 7 check",
      # No results of steps.
      "5 + 1 = 6 check 5 + 1 = 6 b b 5 + 1 = b 5 + 1",
      "hmm wait .",
  )

  def test_by_hand(self):
    setup = make_setup(data__arithmetic__slip_rate=1.0)
    tokens, lengths = encode(setup, self.texts, width=32)
    count = self.variant(
        functools.partial(
            steps.count_checks, steps=setup.parts.task.steps
        )
    )
    found = count(tokens, jnp.array(lengths))
    np.testing.assert_array_equal(found.wrong, [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(found.wrong_checked, [0, 1, 1, 0, 0])
    np.testing.assert_array_equal(found.right, [2, 1, 2, 0, 0])
    np.testing.assert_array_equal(found.right_checked, [1, 0, 2, 0, 0])
    # Cut after the first result: what comes later does not count.
    cut = count(tokens, jnp.array([6, 6, 6, 6, 3]))
    np.testing.assert_array_equal(cut.wrong, [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(cut.right, [1, 0, 1, 0, 0])
    np.testing.assert_array_equal(cut.wrong_checked, 0)
    np.testing.assert_array_equal(cut.right_checked, 0)

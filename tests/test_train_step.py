import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded import learn, make_params, make_setup, record

from iapo_jax.config.schema import AGGREGATIONS
from iapo_jax.core import sharding
from iapo_jax.core.types import Prompts
from iapo_jax.data import pipeline
from iapo_jax.rewards import host
from iapo_jax.rl import state, train_step
from iapo_jax.run import assembly

REQUIRED_METRICS = {
    "reward/total", "reward/correctness", "reward/format", "reward/accuracy",
    "length/completion", "length/reasoning", "probe/entropy_first",
    "probe/entropy_last", "probe/accuracy", "probe/calibration_gap",
    "credit/rms_over_group", "policy/entropy", "update/kl", "update/ratio",
    "update/logprob_gap", "update/grad_norm",
}  # fmt: skip


def check_variety(samples):
  """The planted rollout exercises what the tests are about."""
  correct = np.asarray(samples.correct)
  formed = np.asarray(samples.well_formed)
  for right in (False, True):
    for good in (False, True):
      assert np.any((correct == right) & (formed == good))
  spread = np.ptp(np.asarray(samples.rewards).reshape(-1, 4), axis=1)
  assert spread[0] == 0
  assert np.all(spread[1:] > 0)
  assert len(set(np.asarray(samples.reasoning_lengths).tolist())) > 5


def test_one_trace_over_a_run_and_the_state_is_donated():
  setup = make_setup()
  traces = []

  def counting_grader(rolled, prompts):
    traces.append(1)
    return setup.parts.grader(rolled, prompts)

  parts = dataclasses.replace(setup.parts, grader=counting_grader)
  step = assembly.train_step_of(parts, setup.stage)
  state, reference = setup.state(), setup.state().params
  seen = []
  for epoch in range(4):
    before = state
    if epoch == 2:  # other weights are other values, not another program
      weights = dataclasses.replace(
          state.weights, info=jnp.float32(3), explore=jnp.float32(0)
      )
      before = state.replace(
          weights=jax.device_put(weights, setup.stage.spec.shardings.weights)
      )
    state, output = step(before, reference, setup.prompts(epoch))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    assert int(state.step) == epoch + 1
    seen.append(np.asarray(output.samples.tokens))
    assert set(output.metrics) >= REQUIRED_METRICS
    chex.assert_tree_all_finite((output, state))
  assert len(traces) == 1
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(reference))
  assert not np.array_equal(seen[0], seen[1])


def test_one_program_serves_all_credit_weights():
  """With both weights 0 the token advantages are the group's."""
  setup = make_setup(credit__mode="paper")
  step = setup.step()
  state = setup.state()
  zero = jax.tree.map(jnp.zeros_like, state.weights)
  zero = jax.device_put(zero, setup.stage.spec.shardings.weights)
  reference = setup.state().params
  _, output = step(state.replace(weights=zero), reference, setup.prompts())
  assert float(output.metrics["credit/rms"]) == 0.0
  _, output = step(setup.state(), reference, setup.prompts())
  assert float(output.metrics["credit/rms"]) > 0.0


@pytest.mark.full
@pytest.mark.parametrize(
    "overrides",
    [
        {"credit__mode": "grpo"},
        {"credit__mode": "paper"},
        {"credit__mode": "to_go"},
        {"credit__mode": "to_go", "credit__information": "shuffled"},
        {"credit__mode": "faithful", "credit__horizon": 3},
        {"credit__mode": "to_go", "probe__stride": 4},
        {"credit__mode": "to_go", "probe__estimator": "gold"},
        {"credit__mode": "to_go", "probe__estimator": "own"},
        {
            "credit__mode": "to_go",
            "probe__estimator": "answer_entropy",
            "probe__answer_tokens": 2,
            "data__max_gold_tokens": 2,
            "probe__layers": 1,
        },
        {"credit__mode": "length_penalty", "credit__normalise": False},
    ],
    ids=lambda o: "-".join(str(v) for v in o.values()),
)
def test_every_mode_credits_and_reports(overrides):
  setup = make_setup(**overrides)
  params = make_params(setup)
  reference = jax.tree.map(lambda x: x * 0.9, params)
  moved, samples, metrics = learn(setup, record(setup, params), reference)
  check_variety(samples)
  assert set(metrics) >= REQUIRED_METRICS
  chex.assert_tree_all_finite((moved, samples, metrics))
  live = np.arange(20) < samples.lengths[:, None]
  assert np.all(samples.advantages[~live] == 0)
  by_hand = group_advantages_by_hand(samples, setup)
  np.testing.assert_allclose(samples.group_advantages, by_hand[:, 0], atol=1e-5)
  # In such a group there is nothing to learn, with the length penalty too.
  without = np.ptp(by_hand.reshape(-1, 4), axis=1) < 1e-6
  np.testing.assert_allclose(
      metrics["reward/zero_spread_groups"], without.mean(), rtol=1e-6
  )
  expected = np.where(live, by_hand, 0)
  credited = not np.allclose(samples.advantages, expected, atol=1e-5)
  per_token = overrides["credit__mode"] not in ("grpo", "length_penalty")
  assert credited == per_token
  # Rollout and training pass are one policy: the ratio is 1.
  assert metrics["update/logprob_gap"] < 1e-4
  np.testing.assert_allclose(metrics["update/ratio"], 1.0, atol=1e-5)
  chex.assert_shape(samples.answer_entropies, (32, 21))


def test_without_probes_nothing_else_changes():
  """GRPO learns the same; what only probes can tell is left out."""
  results = []
  for stride in (1, 0):
    setup = make_setup(credit__mode="grpo", probe__stride=stride)
    params = make_params(setup)
    results.append(learn(setup, record(setup, params), params))
  (moved, samples, metrics), (other, bare, fewer) = results
  # All that an update reads is the same; two programs may round it otherwise.
  np.testing.assert_array_equal(samples.advantages, bare.advantages)
  np.testing.assert_array_equal(samples.learned, bare.learned)
  chex.assert_trees_all_close(moved, other, rtol=0, atol=1e-6)
  np.testing.assert_array_equal(bare.answer_entropies, 0)
  lost = {name for name in metrics if name not in fewer}
  assert lost == {name for name in metrics if name.startswith("probe/")}
  theirs = {k: metrics[k] for k in fewer}
  chex.assert_trees_all_close(fewer, theirs, rtol=1e-6, atol=1e-7)


def group_advantages_by_hand(samples, setup):
  """[b, 1] in NumPy; of the length penalty where that is the mode."""
  rewards = np.asarray(samples.rewards, np.float64)
  penalised = setup.cfg.credit.mode == "length_penalty"
  if penalised:
    rewards = rewards - samples.correct * samples.lengths / 20
  grouped = rewards.reshape(-1, 4)
  centred = grouped - grouped.mean(axis=1, keepdims=True)
  if not penalised:
    centred /= grouped.std(axis=1, keepdims=True, ddof=1) + 1e-4
  return centred.reshape(-1, 1)


def test_a_new_key_every_step():
  setup = make_setup()
  step, reference = setup.step(), setup.state().params
  state, first = step(setup.state(), reference, setup.prompts())
  same = setup.state()  # the same weights, one step on
  _, second = step(same.replace(step=state.step), reference, setup.prompts())
  assert not np.array_equal(first.samples.tokens, second.samples.tokens)
  _, again = step(setup.state(), setup.state().params, setup.prompts())
  np.testing.assert_array_equal(first.samples.tokens, again.samples.tokens)


@pytest.mark.parametrize(
    "aggregation",
    [
        pytest.param(x, marks=() if x == "token_mean" else pytest.mark.full)
        for x in AGGREGATIONS
    ],
)
def test_micro_batches_do_not_change_the_update(aggregation):
  results = []
  for parts in (1, 4):
    setup = make_setup(
        loss__micro_batches=parts,
        loss__aggregation=aggregation,
        loss__kl_weight=0.5,
    )
    params = make_params(setup)
    reference = jax.tree.map(lambda x: x * 0.9, params)
    moved, samples, metrics = learn(setup, record(setup, params), reference)
    check_variety(samples)
    results.append((moved, metrics))
    # A mean over tokens, whatever the tokens weigh in the loss.
    np.testing.assert_allclose(metrics["update/ratio"], 1.0, atol=1e-5)
    assert metrics["update/kl"] > 1e-3
  chex.assert_trees_all_close(*results, atol=1e-5, rtol=1e-5)


@pytest.mark.full
def test_several_updates_leave_the_first_policy():
  setup = make_setup(loss__num_updates=3, loss__kl_weight=0.0)
  params = make_params(setup)
  state, output = setup.step()(setup.state(params), None, setup.prompts())
  assert "update/kl" not in output.metrics
  assert float(output.metrics["update/logprob_gap"]) < 1e-4
  assert abs(float(output.metrics["update/ratio"]) - 1) > 1e-6
  once = make_setup(loss__num_updates=1, loss__kl_weight=0.0)
  single, _ = once.step()(once.state(params), None, once.prompts())
  difference = jax.tree.map(
      lambda a, b: jnp.max(jnp.abs(a - b)), state.params, single.params
  )
  assert max(jax.tree.leaves(difference)) > 1e-4


def test_both_graders_agree_on_a_sharded_rollout(monkeypatch):
  results, asked = [], []
  grade_tokens = host.grade_tokens

  def counting(tokenizer, tokens, *rest, **more):
    asked.append(len(tokens))
    return grade_tokens(tokenizer, tokens, *rest, **more)

  monkeypatch.setattr(host, "grade_tokens", counting)
  for kind in ("token_match", "host"):
    setup = make_setup(
        devices=8,
        mesh__data=2,
        mesh__fsdp=2,
        mesh__tensor=2,
        reward__grader=kind,
        probe__estimator="own",
    )
    rolled = record(setup, make_params(setup)).replace(context=())
    grade = jax.jit(setup.parts.grader)
    placed = sharding.put_batch(rolled, setup.parts.mesh)
    results.append(jax.device_get(grade(placed, setup.prompts())))
  assert 0 < results[0].correct.mean() < 1
  ours, theirs = results
  there = np.arange(1) < ours.answer_lengths[:, None]
  assert 0 < there.mean() < 1
  ours, theirs = (
      x.replace(answers=np.where(there, x.answers, 0)) for x in results
  )
  chex.assert_trees_all_equal(ours, theirs)
  # 32 completions on 4 data shards; of 2 devices that share them, one asks.
  assert asked == [8] * 4


@pytest.mark.full
@pytest.mark.parametrize("mode", ["paper", "to_go"])
def test_one_device_equals_eight_on_a_recorded_rollout(mode):
  settings = {"credit__mode": mode, "loss__kl_weight": 0.5}
  single = make_setup(**settings)
  params = make_params(single)
  reference = jax.tree.map(lambda x: x * 0.9, params)
  recorded = record(single, params)
  expected = learn(single, recorded, reference, params)
  # The difference of equal log-probabilities is rounding, not a result.
  assert expected[2].pop("update/logprob_gap") < 1e-4
  check_variety(expected[1])
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected[0], params)
  assert max(jax.tree.leaves(moved)) > 1e-2, "the update should do something"
  meshes = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
  for data, fsdp, tensor in meshes if mode == "paper" else meshes[-1:]:
    setup = make_setup(
        devices=8,
        mesh__data=data,
        mesh__fsdp=fsdp,
        mesh__tensor=tensor,
        **settings,
    )
    ours = learn(setup, recorded, reference, params)
    assert ours[2].pop("update/logprob_gap") < 1e-4
    chex.assert_trees_all_close(
        ours, expected, atol=1e-5, rtol=1e-5,
        custom_message=f"mesh {(data, fsdp, tensor)}",
    )  # fmt: skip


@pytest.mark.full
def test_a_reference_in_the_compute_dtype_scores_the_same():
  """Bit by bit, and it takes half of what fp32 weights do."""
  setup = make_setup(
      devices=8,
      mesh__data=2,
      mesh__fsdp=2,
      mesh__tensor=2,
      model__dtype="bfloat16",
      loss__kl_weight=0.5,
  )
  params, spec = setup.state().params, setup.stage.spec
  reference = assembly.reference_of(setup.parts, setup.stage, params)
  step = setup.step()
  outputs = [
      step(setup.state(), ours, setup.prompts())[1]
      for ours in (params, reference)
  ]
  chex.assert_trees_all_equal(*outputs)
  shapes = state.reference_shapes(spec, "bfloat16")
  chex.assert_trees_all_equal_shapes_and_dtypes(reference, shapes)
  sizes = [
      sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
      for tree in (params, reference)
  ]
  assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.05)


def test_the_state_is_created_and_stays_sharded():
  setup = make_setup(devices=8, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
  fresh = assembly.create_state(setup.parts, setup.stage)
  # As on one device, from the same seed.
  chex.assert_trees_all_close(fresh.params, setup.state().params, rtol=1e-6)
  state, output = setup.step()(fresh, setup.state().params, setup.prompts())
  kernel = state.params["layers"]["mlp"]["up_kernel"]  # [l, d, f]
  assert kernel.sharding.shard_shape(kernel.shape) == (2, 16, 32)
  tokens = output.samples.tokens
  assert tokens.sharding.shard_shape(tokens.shape) == (8, 20)


@pytest.mark.full
def test_weights_are_not_gathered_inside_the_decode_loop():
  """FSDP shards are gathered once a step, before the loop over tokens."""
  setup = make_setup(devices=8, mesh__data=1, mesh__fsdp=8, mesh__tensor=1)
  lowered = setup.step().lower(
      setup.state(), setup.state().params, setup.prompts()
  )
  text = lowered.compile().as_text()
  bodies = [
      part for part in text.split("\n\n") if "rollout/while/body" in part
  ]
  assert bodies, "the decode loop should be found by its scope"
  gathers = [
      line
      for part in bodies
      for line in part.splitlines()
      if "all-gather" in line and "rollout/while/body" in line
  ]
  assert not gathers, gathers[:3]


def test_prompts_are_a_pytree_of_rows():
  """Batches are placed by rows, whatever their fields."""
  setup = make_setup(devices=8)
  prompts = setup.prompts()
  assert isinstance(prompts, Prompts)
  assert pipeline.as_prompts(vars(prompts)) == prompts
  for leaf in jax.tree.leaves(prompts):
    assert leaf.sharding.shard_shape(leaf.shape)[0] == 1


def test_probes_where_sentences_end():
  """Exact there, at 0 and at the end of the reasoning."""
  setup = make_setup()
  prompts, params = setup.prompts(), make_params(setup)
  ends = tuple(range(0, 40, 3))
  vocabulary = dataclasses.replace(
      setup.parts.task.vocabulary, sentence_ends=ends
  )
  probed = dataclasses.replace(setup.cfg.probe, at="sentences")
  configs = setup.cfg, dataclasses.replace(setup.cfg, probe=probed)

  def run(params, prompts):
    with sharding.scope(setup.parts.mesh):
      rolled = train_step.sample(
          params, prompts, jax.random.key(0), setup.cfg, vocabulary
      )
      grades = setup.parts.grader(rolled, prompts)
      found = [
          train_step.run_probes(
              params, rolled, grades, prompts, cfg, vocabulary
          )
          for cfg in configs
      ]
    return rolled, grades, found

  rolled, grades, (every, some) = jax.jit(run)(params, prompts)
  differ = 0
  for row, length in enumerate(np.asarray(grades.reasoning_lengths)):
    tokens = np.asarray(rolled.tokens[row, :length])
    at = sorted({0, *(np.flatnonzero(np.isin(tokens, ends)) + 1), int(length)})
    np.testing.assert_allclose(
        some.entropy[row, at], every.entropy[row, at], atol=1e-5
    )
    differ += int(np.max(np.abs(some.entropy - every.entropy)[row]) > 1e-3)
  assert differ > 0, "between them entropies should be interpolated"

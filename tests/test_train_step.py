import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iapo_jax import assembly, credit, losses, sharding, train_step, update
from iapo_jax import config as config_lib
from iapo_jax import state as state_lib
from iapo_jax.data import pipeline
from iapo_jax.types import Prompts

REQUIRED_METRICS = {
    "reward/total", "reward/correctness", "reward/format", "reward/accuracy",
    "length/completion", "length/reasoning", "probe/entropy_first",
    "probe/entropy_last", "probe/accuracy", "probe/calibration_gap",
    "credit/rms_over_group", "policy/entropy", "update/kl", "update/ratio",
    "update/logprob_gap", "update/grad_norm",
}  # fmt: skip


def make_config(**overrides):
  """The arithmetic task with a small decoder that splits eight ways."""
  base = config_lib.default()
  base.update({"prompts_per_step": 8, "group_size": 4})
  base.model.update({
      "vocab_size": 40,
      "d_model": 32,
      "num_heads": 8,
      "num_kv_heads": 8,
      "head_dim": 4,
      "mlp_dim": 64,
  })
  base.rollout.max_tokens = 20
  base.probe.chunk = 8
  base.data.update({
      "train_problems": 32,
      "validation_problems": 8,
      "test_problems": 8,
  })
  for name, value in overrides.items():
    base.update_from_flattened_dict({name.replace("__", "."): value})
  return config_lib.parse(base)


@dataclasses.dataclass
class Setup:
  """The parts of a run and its stage, with shorthands."""

  parts: assembly.Assembly
  stage: assembly.Stage

  @property
  def cfg(self):
    return self.parts.cfg

  def state(self, params=None):
    return assembly.create_state(self.parts, self.stage, params)

  def prompts(self, epoch=0):
    table = self.parts.task.tables["train"]
    q = self.cfg.prompts_per_step
    rows = np.arange(q * epoch, q * (epoch + 1)) % len(table.kept)
    return sharding.put_batch(
        jax.tree.map(lambda x: x[rows], table.prompts), self.parts.mesh
    )

  def step(self, grader=None):
    grader = grader or self.parts.grader
    parts = dataclasses.replace(self.parts, grader=grader)
    return assembly.train_step_of(parts, self.stage)


def make_setup(devices=1, **overrides):
  parts = assembly.assemble(make_config(**overrides), jax.devices()[:devices])
  # SGD with rate 1: the change of the weights is the gradient itself.
  optimizer = optax.sgd(1.0)
  spec = state_lib.state_spec(
      parts.mesh,
      model=parts.cfg.model,
      optimizer=optimizer,
      credit=parts.cfg.credit,
  )
  return Setup(parts, assembly.Stage(optimizer, spec))


def biased_params(setup):
  """Weights under which tags, digits and EOS all occur within 20 tokens."""
  params = jax.device_get(setup.state().params)
  return jax.tree.map(lambda x: x * 1.5, params)


def test_one_trace_over_a_run_and_the_state_is_donated():
  setup = make_setup()
  traces = []
  inner = setup.parts.grader

  def counting_grader(rolled, prompts):
    traces.append(1)
    return inner(rolled, prompts)

  step = setup.step(counting_grader)
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
  assert len(traces) == 1
  assert step._cache_size() == 1
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
  assert step._cache_size() == 1


@pytest.mark.parametrize(
    "overrides",
    [
        {"credit__mode": "grpo"},
        {"credit__mode": "paper"},
        {"credit__mode": "to_go"},
        {"credit__mode": "to_go", "credit__shuffle": True},
        {"credit__mode": "faithful", "credit__horizon": 3},
        {"credit__mode": "length_penalty"},
    ],
    ids=lambda o: "-".join(str(v) for v in o.values()),
)
def test_every_mode_runs_and_reports(overrides):
  setup = make_setup(**overrides)
  state, output = setup.step()(
      setup.state(), setup.state().params, setup.prompts()
  )
  assert set(output.metrics) >= REQUIRED_METRICS
  chex.assert_tree_all_finite((output, state))
  # Rollout and training pass are one policy: the ratio is 1.
  assert float(output.metrics["update/logprob_gap"]) < 1e-4
  np.testing.assert_allclose(output.metrics["update/ratio"], 1.0, atol=1e-5)
  chex.assert_shape(output.samples.answer_entropies, (32, 21))


def test_a_new_key_every_step():
  setup = make_setup()
  step, reference = setup.step(), setup.state().params
  state, first = step(setup.state(), reference, setup.prompts())
  same = setup.state()  # the same weights, one step on
  _, second = step(same.replace(step=state.step), reference, setup.prompts())
  assert not np.array_equal(first.samples.tokens, second.samples.tokens)
  _, again = step(setup.state(), setup.state().params, setup.prompts())
  np.testing.assert_array_equal(first.samples.tokens, again.samples.tokens)


@pytest.mark.parametrize("aggregation", losses.AGGREGATIONS)
def test_micro_batches_do_not_change_the_update(aggregation):
  results = []
  for parts in (1, 2, 8):
    setup = make_setup(
        loss__micro_batches=parts,
        loss__aggregation=aggregation,
        loss__kl_weight=0.5,
    )
    params = biased_params(setup)
    reference = jax.tree.map(lambda x: x * 0.9, params)
    state, output = setup.step()(
        setup.state(params), reference, setup.prompts()
    )
    update = {k: v for k, v in output.metrics.items() if "update/" in k}
    results.append(jax.device_get((state.params, update)))
  lengths = np.asarray(output.samples.lengths)
  assert len(set(lengths.tolist())) > 1, "lengths should be ragged"
  for other in results[1:]:
    chex.assert_trees_all_close(other, results[0], atol=1e-5, rtol=1e-5)


def test_several_updates_leave_the_first_policy():
  setup = make_setup(loss__num_updates=3, loss__kl_weight=0.0)
  params = biased_params(setup)
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


def test_host_grading_gives_the_same_step():
  results = []
  for kind in ("token_match", "host"):
    setup = make_setup(
        devices=8,
        mesh__data=2,
        mesh__fsdp=2,
        mesh__tensor=2,
        reward__grader=kind,
    )
    params = biased_params(setup)
    state, output = setup.step()(
        setup.state(params), setup.state().params, setup.prompts()
    )
    results.append(jax.device_get((state, output)))
  chex.assert_trees_all_equal(*results)


def learn(setup, recorded, params, reference, key):
  """All of a step that follows the rollout, on the setup's own mesh."""
  cfg, vocabulary = setup.cfg, setup.parts.task.vocabulary

  def run(state, reference, prompts, rolled):
    with sharding.scope(setup.parts.mesh):
      frozen = sharding.gather_for_decoding(
          state.params, setup.stage.spec.param_axes, cfg.model.dtype
      )
      grades = setup.parts.grader(rolled, prompts)
      probe = train_step.run_probes(
          frozen, rolled, grades, prompts, cfg, vocabulary
      )
      samples, metrics = credit.assign(
          rolled, grades, probe, state.weights, key, cfg
      )
      experience = update.gather_experience(
          reference, prompts, rolled, samples.advantages, cfg
      )
      state, more = update.update(
          state, experience, cfg, setup.stage.optimizer
      )
    return state.params, samples, metrics | more

  rows = functools.partial(sharding.put_batch, mesh=setup.parts.mesh)
  prompt, completion = recorded.context

  def cache(x):
    spec = jax.sharding.PartitionSpec(None, sharding.BATCH_AXES)
    return jax.device_put(x, jax.sharding.NamedSharding(setup.parts.mesh, spec))

  placed = rows(recorded.replace(context=())).replace(
      context=(
          prompt.replace(
              keys=cache(prompt.keys),
              values=cache(prompt.values),
              visible=rows(prompt.visible),
          ),
          completion.replace(
              keys=cache(completion.keys),
              values=cache(completion.values),
              visible=jax.device_put(
                  completion.visible, sharding.replicated(setup.parts.mesh)
              ),
          ),
      )
  )
  state = setup.state(params)
  reference = jax.device_put(reference, setup.stage.spec.shardings.params)
  return jax.device_get(
      jax.jit(run)(state, reference, setup.prompts(), placed)
  )


def test_one_device_equals_eight_on_a_recorded_rollout():
  single = make_setup(loss__kl_weight=0.5)
  params = biased_params(single)
  reference = jax.tree.map(lambda x: x * 0.9, params)
  key = jax.random.key(3)
  rolled = jax.jit(
      lambda params, prompts: train_step.sample(
          params,
          prompts,
          jax.random.key(0),
          single.cfg,
          single.parts.task.vocabulary,
      )
  )(params, single.prompts())
  recorded = jax.device_get(rolled)
  expected = learn(single, recorded, params, reference, key)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected[0], params)
  assert max(jax.tree.leaves(moved)) > 1e-3, "the update should do something"
  meshes = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
  for data, fsdp, tensor in meshes:
    setup = make_setup(
        devices=8,
        loss__kl_weight=0.5,
        mesh__data=data,
        mesh__fsdp=fsdp,
        mesh__tensor=tensor,
    )
    ours = learn(setup, recorded, params, reference, key)
    chex.assert_trees_all_close(
        ours, expected, atol=1e-5, rtol=1e-5,
        custom_message=f"mesh {(data, fsdp, tensor)}",
    )  # fmt: skip


def test_the_state_is_created_and_stays_sharded():
  setup = make_setup(devices=8, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
  state, output = setup.step()(
      setup.state(), setup.state().params, setup.prompts()
  )
  kernel = state.params["layers"]["mlp"]["up_kernel"]  # [l, d, f]
  assert kernel.sharding.shard_shape(kernel.shape) == (2, 16, 32)
  tokens = output.samples.tokens
  assert tokens.sharding.shard_shape(tokens.shape) == (8, 20)


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

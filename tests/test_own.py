"""A user's reward and credit in the step, and the programs that show how."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from jax.sharding import Mesh, PartitionSpec
from test_trainer import small

from iapo_jax.core import files
from iapo_jax.rl.own import Own
from iapo_jax.run import logs, trainer, workdir

ROOT = pathlib.Path(__file__).parent.parent


# Rewards need neither probes nor a reference: the step compiles faster.
ONLY_REWARDS = {
    "credit__mode": "grpo", "probe__stride": 0, "loss__kl_weight": 0.0,
}  # fmt: skip


def train(folder, own, **overrides):
  cfg = small(
      warm_start__num_steps=0, log__samples_every=1, log__samples=64,
      loss__early_weight=0.0, evaluation__every=0, model__d_model=32,
      model__mlp_dim=64, **overrides,
  )  # fmt: skip
  trainer.train(cfg, folder, own=own)
  return logs.read(folder, logs.SAMPLES)


def of_length(rollout, grades, prompts):
  return -rollout.lengths.astype(jnp.float32)


@pytest.mark.full
def test_a_reward_in_the_program(tmp_path, capsys):
  samples = train(tmp_path, Own(reward=of_length), **ONLY_REWARDS)
  assert len(samples) == 64
  for sample in samples:
    assert sample["reward"] == -len(sample["tokens"])
  assert "own        reward of_length" in capsys.readouterr().out
  (line, _) = logs.stage_metrics(tmp_path, "rl")
  assert line["reward/total"] == pytest.approx(-line["length/completion"])
  assert "reward/correctness" not in line  # there are no parts


@pytest.mark.mesh
def test_a_reward_of_texts(tmp_path):
  """Every completion is asked about once, with the answer of its problem."""
  asked = []

  def reward(completions, golds):
    asked.extend(zip(completions, golds, strict=True))
    return [len(text) for text in completions]

  samples = train(
      tmp_path, Own(text_reward=reward), model__vocab_size=40, mesh__data=4,
      mesh__tensor=2, **ONLY_REWARDS,
  )  # fmt: skip
  assert len(asked) == len(samples) == 64  # two steps
  expected = sorted((s["reward"], s["gold"].strip()) for s in samples)
  assert expected == sorted((float(len(x)), gold) for x, gold in asked)


def forget_failed_callbacks():
  """Calls the host from every device.

  Until then `jax.effects_barrier` would raise the error of each device's last
  call.
  """
  mesh = Mesh(np.array(jax.local_devices()), ("x",))

  def call(x):
    return jax.pure_callback(np.asarray, jax.typeof(x), x)

  spec = PartitionSpec("x")
  called = jax.shard_map(
      call, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
  )
  jax.block_until_ready(jax.jit(called)(jnp.zeros(mesh.size)))
  jax.effects_barrier()


@pytest.mark.full
@pytest.mark.mesh
def test_a_reward_that_fails(tmp_path):
  message = "must return 4 numbers, one per completion"
  with pytest.raises(Exception, match=message):
    train(
        tmp_path / "a", Own(text_reward=lambda x, y: [1.0]), **ONLY_REWARDS
    )
  forget_failed_callbacks()
  with pytest.raises(ValueError, match="reward or text_reward, not both"):
    Own(reward=of_length, text_reward=lambda x, y: x)


@pytest.mark.full
def test_a_credit(tmp_path):
  """It sees what the samples say, and is what is learned."""

  def credit(evidence):
    return evidence.information + 2.0 * evidence.group_advantages[:, None]

  samples = train(tmp_path, Own(credit=credit, reward=of_length))
  assert any(sample["group_advantage"] for sample in samples)
  for sample in samples:
    found = np.array(sample["advantages"])
    information = np.zeros(found.shape)
    information[: len(sample["information"])] = sample["information"]
    expected = information + 2 * sample["group_advantage"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_credit_of_another_shape(tmp_path):
  with pytest.raises(AssertionError):
    train(tmp_path, Own(credit=lambda evidence: evidence.rewards))


@pytest.mark.full
@pytest.mark.parametrize(
    ("program", "variant"), [("own_reward", "grpo"), ("own_credit", "to_go")]
)
def test_the_programs_of_the_docs(program, variant, tmp_path):
  settings = {
      "warm_start.num_steps": 0, "num_steps": 2, "prompts_per_step": 4,
      "group_size": 4, "evaluation.every": 0, "evaluation.batch_size": 16,
      **runs.SHORT,
      "data.arithmetic.train_problems": 32, "data.arithmetic.test_problems": 16,
  }  # fmt: skip
  done = runs.program(
      ROOT / "experiments" / f"{program}.py",
      f"--config=configs/arithmetic.py:{variant}",
      f"--workdir={tmp_path}",
      *(f"--config.{name}={value}" for name, value in settings.items()),
  )
  assert done.returncode == 0, done.stderr
  assert f"own        {program[4:].replace('reward', 'text reward')}" in (
      done.stdout
  )
  assert json.loads((tmp_path / workdir.SUMMARY).read_text())["problems"] == 16
  assert files.read_json(tmp_path / "config.json")["num_steps"] == 2

import json

import jax
import numpy as np
import pytest

from iapo_jax import assembly, checkpoint, logs, trainer
from iapo_jax import config as config_lib
from iapo_jax.errors import ConfigError


def small(**overrides):
  config = config_lib.default()
  config.num_steps = 2
  config.warm_start.num_steps = 12
  config.warm_start.optimizer.learning_rate = 1e-2
  config.evaluation.update({"every": 1, "problems": 16, "batch_size": 16})
  config.data.update({"train_problems": 64, "test_problems": 40})
  config.mesh.data = 8
  for name, value in overrides.items():
    config.update_from_flattened_dict({name.replace("__", "."): value})
  return config_lib.parse(config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A finished run: warm start, then two RL steps with host grading."""
  workdir = tmp_path_factory.mktemp("runs") / "first"
  trainer.train(small(reward__grader="host"), workdir)
  return workdir


def lines_of(workdir):
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_every_step_is_logged(finished):
  lines = lines_of(finished)
  steps = [(line["stage"], line["step"]) for line in lines]
  assert steps == [
      *(("warm_start", i) for i in range(1, 13)),
      ("validation", 0), ("rl", 1), ("validation", 1), ("rl", 2),
      ("validation", 2),
  ]  # fmt: skip
  learned = [line["sft/nll"] for line in lines[:12]]
  assert learned[-1] < learned[0] - 0.5
  for line in lines:
    assert all(np.isfinite(v) for k, v in line.items() if k != "stage")
  rl = [line for line in lines if line["stage"] == "rl"]
  assert {"probe/calibration_gap", "time/tokens_per_second"} <= set(rl[0])


def test_a_run_leaves_what_it_promises(finished):
  summary = json.loads((finished / "summary.json").read_text())
  assert summary["problems"] == 40
  rate = summary["accuracy"]
  expected = np.sqrt(rate * (1 - rate) / 40)
  assert summary["accuracy_se"] == pytest.approx(expected)
  config = json.loads((finished / "config.json").read_text())
  assert config["model.vocab_size"] == 37  # the tokenizer's, filled in
  assert (finished / "tokenizer" / "tokenizer.json").exists()


def test_a_finished_run_is_left_alone(finished, capsys):
  before = (finished / "metrics.jsonl").read_bytes()
  trainer.train(small(reward__grader="host"), finished)
  assert "finished: nothing to do" in capsys.readouterr().out
  assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_workdir_with_another_config_is_refused(finished):
  with pytest.raises(ConfigError) as error:
    trainer.train(small(reward__grader="host", seed=3), finished)
  assert str(error.value) == (
      f"config.seed = 3: workdir {str(finished)!r} holds a run with 0; use"
      " another --workdir"
  )


def test_another_run_starts_from_the_policy(finished, tmp_path):
  """The checkpoint restores bit by bit onto another mesh."""
  cfg = small(
      init_from=str(finished),
      mesh__data=2,
      mesh__fsdp=4,
      warm_start__num_steps=0,
      num_steps=0,
  )
  ours = trainer.load_policy(assembly.assemble(cfg), finished)
  theirs = trainer.load_policy(assembly.assemble(small()), finished)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_array_equal(jax.device_get(a), jax.device_get(b))
  kernel = ours["layers"]["mlp"]["up_kernel"]
  assert kernel.sharding.shard_shape(kernel.shape) == (2, 16, 256)
  # Not the weights a fresh start would give.
  trainer.train(cfg, tmp_path / "second")
  summary = json.loads((tmp_path / "second" / "summary.json").read_text())
  first = json.loads((finished / "summary.json").read_text())
  assert summary["mean_tokens"] == pytest.approx(first["mean_tokens"])


def test_another_model_is_refused(finished):
  cfg = small(init_from=str(finished), model__mlp_dim=64)
  with pytest.raises(ConfigError) as error:
    trainer.load_policy(assembly.assemble(cfg), finished)
  assert str(error.value) == (
      f"config.model.mlp_dim = 64: the run in {str(finished)!r} has 256"
  )


def test_no_checkpoint(tmp_path):
  with pytest.raises(ConfigError, match="holds no checkpoint"):
    checkpoint.load_params(tmp_path / "nothing", None, None)
  parts = assembly.assemble(small())
  assert not trainer.claim(tmp_path / "run", parts)
  with pytest.raises(ConfigError, match="holds no checkpoint"):
    trainer.load_policy(parts, tmp_path / "run")


def test_an_unfinished_run_starts_over_and_loses_nothing(tmp_path):
  parts = assembly.assemble(small())
  assert not trainer.claim(tmp_path, parts)
  for number in (1, 2):
    (tmp_path / "metrics.jsonl").write_text(f"run {number}\n")
    assert not trainer.claim(tmp_path, parts)
    assert not (tmp_path / "metrics.jsonl").exists()
    kept = (tmp_path / f"metrics.jsonl.{number}").read_text()
    assert kept == f"run {number}\n"


def test_a_vocabulary_smaller_than_the_tokenizer():
  with pytest.raises(ConfigError) as error:
    assembly.assemble(small(model__vocab_size=20))
  assert str(error.value) == (
      "config.model.vocab_size = 20: must be at least the tokenizer's 37, or 0"
      " to take it"
  )


def test_a_run_stops_where_numbers_are_no_longer_finite(tmp_path):
  """A learning rate of 1e30 gives NaN at the second step."""
  cfg = small(
      warm_start__num_steps=4,
      warm_start__optimizer__learning_rate=1e30,
      num_steps=0,
  )
  with pytest.raises(FloatingPointError, match=r"warm_start step \d: .* = nan"):
    trainer.train(cfg, tmp_path)
  assert all("NaN" not in str(line) for line in lines_of(tmp_path))
  assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("kind", ["file", "broken"])
def test_a_workdir_that_cannot_be_one(tmp_path, kind):
  workdir = tmp_path / "run"
  if kind == "file":
    workdir.write_text("")
    message = "must be a folder that can be written"
  else:
    workdir.mkdir()
    (workdir / "config.json").write_text("{")
    message = "config.json is not JSON"
  with pytest.raises(ConfigError, match=message):
    trainer.claim(workdir, assembly.assemble(small()))


class TestWarnings:
  healthy = {  # noqa: RUF012
      "probe/entropy": 1.0,
      "probe/entropy_first": 2.0,
      "probe/entropy_last": 0.1,
      "probe/calibration_gap": 0.1,
      "length/unfinished": 0.0,
  }

  @pytest.mark.parametrize(
      ("change", "text"),
      [
          ({}, None),
          ({"probe/entropy_last": 1.99}, "probes do not move"),
          ({"probe/calibration_gap": -0.9}, "probes are badly calibrated"),
          ({"length/unfinished": 1.0}, "reach rollout.max_tokens"),
      ],
  )
  def test_each_is_said_once(self, change, text, capsys):
    warner = logs.ProbeWarner()
    for _ in range(3):
      warner.check(self.healthy | change)
    out = capsys.readouterr().out
    assert out.count("warning:") == (text is not None)
    assert text is None or text in out

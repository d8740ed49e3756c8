"""What `iapo demo` announces: its runs, and the time that is left."""

import json
import pathlib

import pytest

from iapo_jax.cli import demo
from iapo_jax.config import demos, presets
from iapo_jax.core.errors import ConfigError
from iapo_jax.run import logs


def show_of(workdir, name="smollm2"):
  return demo._Show(name, demos.read("smollm2"), workdir, False)


def finish(show, one, seconds):
  show.folder(one).mkdir(parents=True)
  (show.folder(one) / "summary.json").write_text(
      json.dumps({"seconds": seconds})
  )


def step(show, one, stage, number):
  show.folder(one).mkdir(parents=True, exist_ok=True)
  with (show.folder(one) / logs.METRICS).open("a") as file:
    file.write(json.dumps({"stage": stage, "step": number}) + "\n")


def test_what_is_left_by_hand(tmp_path):
  show = show_of(tmp_path)
  start, method = show.demo.minutes
  planned = [demo._Run(name, 0) for name in ("sft", "to_go", "grpo")]
  assert demo._left(show, planned) == start + 2 * method
  # A half of the warm start's 60 steps is done.
  step(show, planned[0], "warm_start", 30)
  assert demo._left(show, planned) == pytest.approx(start / 2 + 2 * method)
  # It took twice the announced time, so the others will, too.
  (show.folder(planned[0]) / logs.METRICS).unlink()
  show.folder(planned[0]).rmdir()
  finish(show, planned[0], 2 * start * 60)
  assert demo._left(show, planned) == pytest.approx(2 * 2 * method)
  # A quarter of 24 steps; validations count for nothing.
  step(show, planned[1], "validation", 0)
  assert demo._left(show, planned) == pytest.approx(2 * 2 * method)
  step(show, planned[1], "rl", 6)
  assert demo._left(show, planned) == pytest.approx(2 * 1.75 * method)
  finish(show, planned[2], 2 * method * 60)
  assert demo._left(show, planned) == pytest.approx(2 * 0.75 * method)


def test_a_task_may_be_named(tmp_path):
  one = demo._Run("to_go", 3)
  named = demo._configure(show_of(tmp_path, "smollm2:sums"), one)
  assert json.loads(named.data.gym.arguments).keys() == {"chain_sum"}
  assert named.init_from == str(tmp_path / "seed-3" / "sft")
  assert (named.seed, named.warm_start.num_steps) == (3, 0)
  plain = demo._configure(show_of(tmp_path), one)
  assert json.loads(plain.data.gym.arguments).keys() == {"leg_counting"}


def test_small_runs_leave_out_what_they_left_out(tmp_path):
  for name in ("arithmetic", "smollm2"):
    config = presets.load(f"{name}:sft")
    demos.read(name).shrink(config)
    assert (config.num_steps, config.evaluation.problems < 65) == (0, True)
    assert 0 < config.warm_start.num_steps <= 4


def test_configurations_without_a_demo_are_refused():
  with pytest.raises(ConfigError, match="'qwen_math': must be one of arithm"):
    demos.read("qwen_math")


def test_folders_of_runs(tmp_path):
  show = show_of(tmp_path)
  assert show.folder(demo._Run("sft", 1)) == tmp_path / "seed-1" / "sft"
  tuned = demo._Run("grpo", 0, 1e-4)
  assert show.folder(tuned) == pathlib.Path(tmp_path, "seed-0/grpo-0.0001")

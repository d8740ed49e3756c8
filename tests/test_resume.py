"""A run that was killed ends as if it had never stopped, bit by bit."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from iapo_jax import assembly, checkpoint, logs, workdir

ROOT = pathlib.Path(__file__).parent.parent
SETTINGS = {
    "warm_start.num_steps": 12,
    "num_steps": 10,
    "prompts_per_step": 4,
    "group_size": 4,
    "evaluation.every": 4,
    "evaluation.problems": 32,
    "evaluation.batch_size": 32,
    "data.train_problems": 64,
    "data.test_problems": 64,
    "checkpoint.every": 3,
    "log.samples_every": 1,
    "log.samples": 16,
    # Learns fast enough for completions and rewards to differ.
    "warm_start.optimizer.learning_rate": 0.02,
}


def start(folder, cache, *more):
  command = [sys.executable, "experiments/run.py"]
  command += ["--config=configs/arithmetic.py:to_go", f"--workdir={folder}"]
  command += [f"--config.{name}={value}" for name, value in SETTINGS.items()]
  environment = {
      "XLA_FLAGS": "--xla_backend_optimization_level=0",
      # Only to be quicker: a restart would compile the same program again.
      "JAX_COMPILATION_CACHE_DIR": str(cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  return subprocess.Popen(
      [*command, *more],
      cwd=ROOT,
      env=os.environ | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
  )


def wait_for_lines(process, folder, count):
  """Until so many steps are logged."""
  path = folder / logs.METRICS
  deadline = time.monotonic() + 300
  while not path.exists() or path.read_bytes().count(b"\n") < count:
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline
    time.sleep(0.01)


def finish(process):
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 0, out
  return out


def untimed(line):
  return {k: v for k, v in line.items() if not k.startswith("time/")}


def final_state(folder):
  parts = assembly.assemble(workdir.load_config(folder), jax.devices()[:1])
  stage = assembly.reinforcement_stage(parts)
  where = checkpoint.stage_folder(folder, "rl")
  return checkpoint.restore(where, SETTINGS["num_steps"], stage.spec)


def assert_same_run(ours, theirs):
  for name in logs.FILES:
    a, b = logs.read(ours, name), logs.read(theirs, name)
    assert [untimed(x) for x in a] == [untimed(x) for x in b], name
    assert a or name == logs.WARNINGS
  (a, progress), (b, other) = final_state(ours), final_state(theirs)
  for x, y in zip(leaves(a), leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)
  assert progress.data == other.data
  a, b = (
      json.loads((folder / workdir.SUMMARY).read_text())
      for folder in (ours, theirs)
  )
  assert a | {"seconds": 0} == b | {"seconds": 0}


def leaves(state):
  return [np.asarray(x) for x in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, cache):
  folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
  finish(start(folder, cache))
  return folder


def test_five_kills_and_a_ctrl_c_change_nothing(
    uninterrupted, cache, tmp_path
):
  """SIGKILL at five random points, between saves and inside them."""
  rng = random.Random(0)
  total = len(logs.read(uninterrupted, logs.METRICS))
  folder = tmp_path / "killed"
  for point in sorted(rng.sample(range(1, total - 1), 5)):
    process = start(folder, cache)
    wait_for_lines(process, folder, point)
    time.sleep(rng.uniform(0, 0.3))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
  process = start(folder, cache)
  wait_for_lines(process, folder, total - 3)
  process.send_signal(signal.SIGINT)
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 128 + signal.SIGINT, out
  assert "resumes at" in out
  assert "SIGINT: finishing the step, then saving" in out
  assert "interrupted: saved rl step" in out
  assert "Traceback" not in out
  finish(start(folder, cache))
  assert_same_run(uninterrupted, folder)


def test_steps_in_two_processes(uninterrupted, cache, tmp_path):
  """k steps, SIGTERM, a new process, N - k steps."""
  folder = tmp_path / "two"
  process = start(folder, cache)
  wait_for_lines(process, folder, 16)
  # A second writer is refused, and does no harm.
  other = start(folder, cache)
  out, _ = other.communicate(timeout=300)
  assert other.returncode == 2
  assert f"process {process.pid} writes to it" in out
  process.terminate()
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 128 + signal.SIGTERM, out
  finish(start(folder, cache))
  assert_same_run(uninterrupted, folder)

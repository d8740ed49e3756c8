"""A run that was killed ends as if it had never stopped, bit by bit."""

import itertools
import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import chex
import jax
import pytest
import runs

from iapo_jax.run import assembly, checkpoint, logs, sources, workdir

pytestmark = pytest.mark.full

ROOT = pathlib.Path(__file__).parent.parent
SETTINGS = {
    "warm_start.num_steps": 12,
    "warm_start.batch_size": 16,
    "num_steps": 10,
    "prompts_per_step": 4,
    "group_size": 4,
    "evaluation.every": 4,
    "evaluation.problems": 32,
    "evaluation.batch_size": 32,
    "data.arithmetic.train_problems": 64,
    "data.arithmetic.validation_problems": 32,
    "data.arithmetic.test_problems": 64,
    "checkpoint.every": 3,
    "model.d_model": 32,
    "model.mlp_dim": 64,
    "log.samples_every": 1,
    "log.samples": 16,
    **runs.SHORT,
    # So little is learned that no answer is right: what differs is the length.
    "reward.overlong_tokens": 40,
    "credit.only_correct": False,
}


# Kills its own process where the n-th call of a function begins.
KILLER = """
import importlib, os, runpy, signal, sys
module, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
owner = importlib.import_module(module)
*path, name = name.split(".")
for part in path:
  owner = getattr(owner, part)
original, calls = getattr(owner, name), 0
def killer(*args, **kwargs):
  global calls
  calls += 1
  if calls == count:
    os.kill(os.getpid(), signal.SIGKILL)
  return original(*args, **kwargs)
setattr(owner, name, killer)
del sys.argv[1:4]
runpy.run_path("experiments/run.py", run_name="__main__")
"""


def start(folder, cache, kill=None):
  command = [sys.executable, "experiments/run.py"]
  if kill:
    command[1:] = ["-c", KILLER, *map(str, kill)]
  command += ["--config=configs/arithmetic.py:to_go", f"--workdir={folder}"]
  command += [f"--config.{name}={value}" for name, value in SETTINGS.items()]
  environment = {
      # Only to be quicker: a restart would compile the same program again.
      "JAX_COMPILATION_CACHE_DIR": str(cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  return subprocess.Popen(
      command,
      cwd=ROOT,
      env=runs.environment() | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
  )


def wait_for_step(process, folder, count):
  """Until the process trains, and so many lines are logged."""
  line = process.stdout.readline()
  while ": compiled in" not in line:
    assert line, "it ended before it trained"
    line = process.stdout.readline()
  path = folder / logs.METRICS
  deadline = time.monotonic() + 300
  while path.read_bytes().count(b"\n") < count:
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline
    time.sleep(0.01)


def finish(process):
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 0, out
  return out


def final_state(folder):
  cfg = workdir.load_config(folder)
  parts = assembly.assemble(cfg, jax.local_devices()[:1])
  stage = assembly.reinforcement_stage(parts)
  where = checkpoint.stage_folder(folder, "rl")
  return checkpoint.restore(where, SETTINGS["num_steps"], stage.spec)


def assert_same_run(ours, theirs):
  for name in logs.FILES:
    assert runs.lines(ours, name) == runs.lines(theirs, name), name
    assert runs.lines(ours, name) or name == logs.WARNINGS
  for stage in ("warm_start", "rl", "validation"):
    a, b = (
        runs.events(folder / "tensorboard" / stage)[0]
        for folder in (ours, theirs)
    )
    assert untimed_events(a) == untimed_events(b) != [], stage
  (a, progress), (b, other) = final_state(ours), final_state(theirs)
  chex.assert_trees_all_equal(a, b)
  assert progress.data == other.data
  a, b = (
      json.loads((folder / workdir.SUMMARY).read_text())
      for folder in (ours, theirs)
  )
  assert a | {"seconds": 0} == b | {"seconds": 0}


def untimed_events(events):
  return [event for event in events if not event[1].startswith("time/")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
  """A run that nothing interrupts, and its seconds."""
  folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
  begin = time.monotonic()
  finish(start(folder, cache))
  seconds = time.monotonic() - begin
  steps = logs.stage_metrics(folder, "rl")
  assert min(line["update/grad_norm"] for line in steps) > 0.01
  return folder, seconds


@pytest.fixture(scope="module")
def uninterrupted(whole):
  return whole[0]


def pytest_generate_tests(metafunc):
  if "moment" in metafunc.fixturenames:
    metafunc.parametrize("moment", range(metafunc.config.option.kills))


def test_killed_at_any_moment(whole, cache, tmp_path, moment):
  """Before it has a folder, while it saves, or just before it ends."""
  uninterrupted, seconds = whole
  seconds *= 0.7  # its programs are compiled now
  for attempt in itertools.count():
    folder = tmp_path / f"killed_{attempt}"
    process = start(folder, cache)
    time.sleep(random.Random(moment).uniform(0, 0.95 * seconds))
    process.kill()
    out, _ = process.communicate()
    if process.returncode:
      break
    seconds *= 0.8  # the machine was slower when that was measured
  assert process.returncode == -signal.SIGKILL, out
  finish(start(folder, cache))
  assert_same_run(uninterrupted, folder)


def test_a_kill_and_a_ctrl_c_change_nothing(
    uninterrupted, cache, tmp_path
):
  """SIGKILL at a random step, wherever between saves that is."""
  rng = random.Random(0)
  total = len(logs.read(uninterrupted, logs.METRICS))
  folder = tmp_path / "killed"
  process = start(folder, cache)
  wait_for_step(process, folder, rng.randrange(1, total - 5))
  time.sleep(rng.uniform(0, 0.3))
  process.kill()
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  # Ctrl-C ends the `tee` at the end of the pipe too: nobody reads on.
  process = start(folder, cache)
  wait_for_step(process, folder, total - 5)
  process.stdout.close()
  process.send_signal(signal.SIGINT)
  assert process.wait(timeout=300) == 128 + signal.SIGINT
  done = logs.stage_metrics(folder, "rl")[-1]["step"]
  assert sources.last(folder).name == f"rl/{done}"
  process = start(folder, cache)
  wait_for_step(process, folder, total - 3)
  # A second writer is refused, and does no harm. The first one waits for it.
  process.send_signal(signal.SIGSTOP)
  other = start(folder, cache)
  out, _ = other.communicate(timeout=300)
  assert other.returncode == 2
  assert f"process {process.pid} writes to it" in out
  process.send_signal(signal.SIGINT)
  process.send_signal(signal.SIGCONT)
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 128 + signal.SIGINT, out
  assert "SIGINT: finishing the step, then saving" in out
  assert "interrupted: saved rl step" in out
  assert "Traceback" not in out
  finish(start(folder, cache))
  assert_same_run(uninterrupted, folder)


# (module, function, call) at the beginning of which the process is killed.
WORST = (
    # Before the first checkpoint, and with one that is not sealed yet.
    ("iapo_jax.run.checkpoint", "Checkpoints.save", 1),
    ("iapo_jax.run.checkpoint", "seal", 2),
    # Between the stages; between a validation and its checkpoint.
    ("iapo_jax.run.trainer", "reinforce", 1),
    ("iapo_jax.run.logs", "RunLog.write_evaluation", 2),
    # With everything done but the evaluation.
    ("iapo_jax.run.judging", "_judged", 1),
)


def test_kills_at_the_worst_moments(uninterrupted, cache, tmp_path):
  folder = tmp_path / "killed"
  for kill in WORST:
    process = start(folder, cache, kill)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, out
    assert not (folder / workdir.SUMMARY).exists()
  finish(start(folder, cache))
  assert_same_run(uninterrupted, folder)

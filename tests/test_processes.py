"""Several processes do what one does, and none waits for one that is gone."""

import contextlib
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import runs
import train_across

from iapo_jax.core import files, processes
from iapo_jax.core.errors import ConfigError
from iapo_jax.run import checkpoint, logs, workdir
from iapo_jax.tools import comparison

pytestmark = pytest.mark.full

HERE = pathlib.Path(__file__).parent


def free_port():
  """In the range from which JAX chooses for SLURM's jobs, by their number."""
  for port in range(61_440, 65_536):
    with socket.socket() as probe, contextlib.suppress(OSError):
      probe.bind(("127.0.0.1", port))
      return port
  raise AssertionError("no port is free")


def start(count, devices, command, environment=lambda *_: {}):
  """One program in several processes; command or environment tell of others."""
  coordinator = f"127.0.0.1:{free_port()}"
  return [
      subprocess.Popen(
          [sys.executable, *command(coordinator, count, index)],
          cwd=HERE.parent,
          env=runs.environment(devices)
          | environment(coordinator, count, index),
          stdout=subprocess.PIPE,
          stderr=subprocess.STDOUT,
          text=True,
      )
      for index in range(count)
  ]


def joining(coordinator, count, index):
  """The flags that tell a command of the others."""
  return [
      f"--coordinator_address={coordinator}",
      f"--num_processes={count}",
      f"--process_id={index}",
  ]


def slurm(coordinator, count, index):
  """What `srun` tells a task; of the job's number JAX makes the port."""
  port = int(coordinator.partition(":")[2])
  return {
      "SLURM_JOB_ID": str(port % 4096),
      "SLURM_STEP_NODELIST": "127.0.0.1",
      "SLURM_STEP_NUM_TASKS": str(count),
      "SLURM_NTASKS": str(count),
      "SLURM_PROCID": str(index),
      "SLURM_LOCALID": str(index),
  }


def finish(programs, status=0):
  outs = [program.communicate(timeout=300)[0] for program in programs]
  assert [p.returncode for p in programs] == [status] * len(outs), outs
  return outs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Eight devices of this process: checkpoints, logits and what was learned."""
  folder = tmp_path_factory.mktemp("trained")
  params, rollouts = train_across.recordings()
  setup = train_across.setup_on(jax.devices())
  state = setup.state(params)
  logits = train_across.first_logits(setup, state, rollouts)
  with checkpoint.Checkpoints(folder, keep_last=9, keep_best=0) as kept:

    def save(done, state):
      kept.save(state, checkpoint.Progress(done, {}, {}))

    save(0, state)
    state = train_across.go_on(setup, state, 0, params, rollouts, save)
  return folder, params, rollouts, [logits, *jax.tree.leaves(state.params)]


def assert_same(ours, theirs):
  """Logits, and then parameters, that only rounding tells apart.

  Of logits relative to the largest, here 7.7: meshes add in other orders, and
  what that changes grows with what is added (3e-6 of it was seen).
  """
  rounding = 1e-5 * np.abs(theirs[0]).max()
  np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=rounding)
  assert len(ours) == len(theirs)
  for a, b in zip(ours[1:], theirs[1:], strict=True):
    assert np.all(np.isfinite(b))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step", [0, 2])
def test_one_device_equals_eight(trained, step):
  """From the start, and from a checkpoint that eight devices wrote."""
  folder, params, rollouts, expected = trained
  setup = train_across.setup_on(jax.devices()[:1])
  state, _ = checkpoint.restore(folder, step, setup.stage.spec)
  logits = train_across.first_logits(setup, state, rollouts)
  state = train_across.go_on(setup, state, step, params, rollouts)
  ours = [logits, *jax.tree.leaves(state.params)]
  if step:
    ours[0] = expected[0]  # of the start
  assert_same(ours, expected)
  for before, after in zip(jax.tree.leaves(params), ours[1:], strict=True):
    assert np.max(np.abs(before - after)) > 1e-3, "it should have learned"


@pytest.mark.parametrize(("devices", "step"), [(4, 0), (2, 2)])
def test_two_processes_equal_one(trained, tmp_path, devices, step):
  """2 x 4 devices from the start; 2 x 2 from a checkpoint of 1 x 8."""
  folder, _, _, expected = trained
  out = tmp_path / "learned.npz"
  finish(start(2, devices, lambda coordinator, count, index: [
      str(HERE / "train_across.py"), coordinator, str(count), str(index),
      str(folder), str(step), str(out),
  ]))  # fmt: skip
  ours = list(np.load(out).values())
  if step:
    ours[0] = expected[0]  # of the start
  assert_same(ours, expected)


def dry_run(seeds, **kwargs):
  """Two processes that join, compare, print the plan, and end."""

  def command(coordinator, count, index):
    return [
        "experiments/run.py",
        "--config=configs/arithmetic.py:to_go",
        "--dry_run",
        f"--config.seed={seeds[index]}",
        *([] if kwargs else joining(coordinator, count, index)),
    ]

  return start(2, 2, command, **kwargs)


def test_slurm_tells_who_they_are():
  first, _ = finish(dry_run((0, 0), environment=slurm))
  assert "mesh       data 4 x fsdp 1 x tensor 1" in first


def test_processes_that_were_started_with_something_else():
  first, second = finish(dry_run((0, 1)), status=2)
  assert (
      "error: process 1: config.seed = 1: the first process has 0; start all"
      " processes with the same value"
  ) in first
  assert "error" not in second


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("host:1", 2, None), "give all three or none"),
        ((None, None, 0), "give all three or none"),
        (("host", 2, 0), "--coordinator_address = 'host': must be HOST:PORT"),
        (("host:1", 2, 2), "--process_id = 2: must be in [0, 1]"),
        (("host:1", 0, 0), "--num_processes = 0: must be at least 1"),
    ],
)
def test_flags_that_cannot_be(given, told):
  with pytest.raises(ConfigError, match=re.escape(told)):
    processes.join(*given)


def test_others_that_cannot_be_joined(monkeypatch):
  """More than one task, and no word of where they are."""
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
  with pytest.raises(ConfigError, match="cannot connect"):
    processes.join()


def test_a_count_of_tasks_that_is_no_number(monkeypatch):
  monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "many")
  with pytest.raises(ConfigError, match="WORLD_SIZE = 'many': must be a"):
    processes.join()


def test_one_process_does_all_of_it():
  def fail():
    raise ConfigError("of the user's")

  assert processes.on_first(lambda: (1, "a")) == (1, "a")
  assert processes.everywhere(lambda: "here") == "here"
  assert processes.exchange("text") == ["text"]
  assert processes.highest(7) == 7
  with pytest.raises(ConfigError, match="of the user's"):
    processes.everywhere(fail)


def train(folder):
  """Arithmetic with two processes of two devices, five steps of learning."""
  settings = {
      "warm_start.num_steps": 2,
      "warm_start.batch_size": 16,
      "reward.overlong_tokens": 40,  # rewards differ by the length at least
      "num_steps": 5,
      "prompts_per_step": 4,
      "group_size": 4,
      "reward.grader": "host",
      "evaluation.every": 0,
      "evaluation.batch_size": 32,
      "data.arithmetic.train_problems": 64,
      "data.arithmetic.test_problems": 32,
      "checkpoint.every": 1,
      "log.samples_every": 1,
      "log.samples": 16,
      **runs.LEAN,
  }

  def command(coordinator, count, index):
    return [
        str(HERE / "train_together.py"),
        f"{folder}.graded.{index}",
        "--config=configs/arithmetic.py:to_go",
        f"--workdir={folder}",
        *joining(coordinator, count, index),
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]

  return start(2, 2, command)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  folder = tmp_path_factory.mktemp("together") / "run"
  outs = finish(train(folder))
  return folder, outs


def test_every_process_grades_its_own_rows(uninterrupted):
  folder, _ = uninterrupted
  first, second = (
      pathlib.Path(f"{folder}.graded.{index}").read_text().split()
      for index in range(2)
  )
  # 5 steps of 16 completions and a test split of 32, half of them each.
  assert len(first) == len(second) == 5 * 8 + 16
  # Completions that both graded would be the same rows. A few are alike: they
  # are short.
  assert len(set(first) & set(second)) < len(set(first)) / 2
  samples = runs.lines(folder, logs.SAMPLES)
  assert len(samples) == 5 * 16
  assert len({line["group_advantage"] for line in samples}) > 16
  steps = logs.stage_metrics(folder, "rl")
  assert min(line["update/grad_norm"] for line in steps) > 0.01


def test_the_first_process_speaks(uninterrupted):
  _, (first, second) = uninterrupted
  assert "accuracy" in first
  lines = second.splitlines()
  told = [line for line in lines if not line.startswith("[Gloo]")]
  # Gloo's threads write over each other: of a message in the middle of another
  # one's line, and of none else, the number that ends it stands by itself.
  torn = second.count("[Gloo]") - (len(lines) - len(told))
  ends = [line for line in told if line.isdecimal()]
  assert len(ends) <= torn
  assert len(told) == len(ends), told


def test_several_processes_judge_a_run(uninterrupted, tmp_path):
  """As the run itself did, with the same keys on the same mesh."""
  folder, _ = uninterrupted

  def command(coordinator, count, index):
    return [
        "experiments/evaluate.py",
        str(folder),
        f"--output={tmp_path / 'judged'}",
        *joining(coordinator, count, index),
    ]

  first, _ = finish(start(2, 2, command))
  assert "| accuracy |" in first
  (record,) = comparison.read(tmp_path / "judged.json")
  summary = files.read_json(folder / workdir.SUMMARY)
  for name in ("accuracy", "mean_tokens", "format_rate", "problems"):
    assert record["mean"][name] == summary[name]


def wait_for_step(process, folder, step):
  deadline = time.monotonic() + 300
  path = checkpoint.stage_folder(folder, "rl")
  while max(checkpoint.steps(path), default=-1) < step:
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline
    time.sleep(0.01)


def pytest_generate_tests(metafunc):
  if "moment" in metafunc.fixturenames:
    # A fourth of those of one process alone.
    metafunc.parametrize("moment", range(metafunc.config.option.kills // 4))


def test_one_is_killed_at_any_moment(uninterrupted, tmp_path, moment):
  seconds = files.read_json(uninterrupted[0] / workdir.SUMMARY)["seconds"]
  codes = [0, 0]
  while codes == [0, 0]:
    rng, folder = random.Random(moment), tmp_path / f"run_{seconds:.3f}"
    pair = train(folder)
    time.sleep(rng.uniform(0, seconds))
    pair[rng.randrange(2)].kill()
    codes = [program.communicate(timeout=120) and program.returncode
             for program in pair]  # fmt: skip
    seconds *= 0.8  # the machine was slower when that was measured
  assert -signal.SIGKILL in codes
  # The other fails, unless all but leaving was done.
  assert 0 not in codes or workdir.is_finished(folder)
  finish(train(folder))
  for name in (logs.METRICS, logs.SAMPLES):
    assert runs.lines(folder, name) == runs.lines(uninterrupted[0], name)


def test_one_that_dies_ends_the_other(uninterrupted, tmp_path):
  """In bounded time and with a message; together they go on exactly."""
  folder = tmp_path / "run"
  for victim, step in ((1, 1), (0, 2)):
    pair = train(folder)
    dying, other = pair[victim], pair[1 - victim]
    wait_for_step(other, folder, step)
    dying.kill()
    out, _ = other.communicate(timeout=60)
    assert other.returncode not in (0, None)
    lost = f"error: process {1 - victim} lost another process"
    ended = "This most likely indicates that another task died"  # JAX's own
    assert lost in out or ended in out
    dying.communicate()
  assert "resumes at rl step" in finish(train(folder))[0]
  for name in (logs.METRICS, logs.SAMPLES):
    ours, theirs = (
        runs.lines(run, name) for run in (folder, uninterrupted[0])
    )
    assert ours == theirs
    assert len(ours) > 5

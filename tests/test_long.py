"""Long runs of the demo's configuration; docs/reliability.md has the commands.

They take minutes, so that the suite leaves them out.
"""

import pathlib
import signal
import statistics
import subprocess
import sys
import time

import pytest
import runs
from test_debugging import tiny_config
from test_nonfinite import poisoned

from iapo_jax.core import files
from iapo_jax.rl.own import Own
from iapo_jax.run import logs, trainer, workdir

pytestmark = pytest.mark.full

ROOT = pathlib.Path(__file__).parent.parent
EVERY = 25  # steps between saves


def start(folder, steps, **settings):
  settings = {
      "num_steps": steps, "checkpoint.every": EVERY, "evaluation.every": 0,
      "optimizer.learning_rate": 1e-4, **settings,
  }  # fmt: skip
  command = [
      sys.executable, "experiments/run.py",
      "--config=configs/arithmetic.py:to_go", f"--workdir={folder}",
      *(f"--config.{name}={value}" for name, value in settings.items()),
  ]  # fmt: skip
  return subprocess.Popen(
      command,
      cwd=ROOT,
      env=runs.environment(),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
  )


def resident(process):
  """MiB of a process in memory."""
  status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
  (line,) = [x for x in status.splitlines() if x.startswith("VmRSS")]
  return int(line.split()[1]) / 1024


def steps_of(folder):
  path = folder / logs.METRICS
  return path.read_bytes().count(b'"rl"') if path.exists() else 0


def watch(process, folder, until):
  """(step, MiB) of every look, until there are so many steps or it ends."""
  looks = []
  while process.poll() is None:
    done = steps_of(folder)
    looks.append((done, resident(process)))
    if done >= until:
      break
    time.sleep(0.2)
  return looks


def growth(looks, window):
  """By how much medians and peaks of the last steps exceed the first ones'.

  A step takes and gives back a tenth of what a process holds, so that single
  looks say little.
  """
  (first, _), (last, _) = looks[0], looks[-1]
  early = [mib for step, mib in looks if step < first + window]
  late = [mib for step, mib in looks if step > last - window]
  return {
      f.__name__: f(late) / f(early) - 1 for f in (statistics.median, max)
  }


def test_a_soak(tmp_path, request):
  """Saves every 25 steps, two interruptions, and memory that does not grow."""
  steps = request.config.getoption("--soak")
  if not steps:
    pytest.skip("takes minutes: give --soak=1000")
  folder, grown = tmp_path / "run", []
  for until in (steps // 3, 2 * steps // 3, steps + 1):
    process = start(folder, steps)
    first = steps_of(folder)
    looks = watch(process, folder, until)
    if until <= steps:
      process.send_signal(signal.SIGTERM)
      assert process.wait(timeout=300) == 128 + signal.SIGTERM
    else:
      assert process.wait(timeout=300) == 0
    settled = [look for look in looks if look[0] >= first + steps // 10]
    grown.append(growth(settled, steps // 20))
    print(f"from step {first}: {settled[0][1]:.0f} MiB, then {grown[-1]}")
  lines = logs.stage_metrics(folder, "rl")
  assert [line["step"] for line in lines] == list(range(1, steps + 1))
  assert not any(line["update/skipped"] for line in lines)
  assert max(value for found in grown for value in found.values()) < 0.05


def test_bfloat16_learns_what_float32_learns(tmp_path, request):
  """From one warm start; sampling and training agree to a part of a nat."""
  steps = request.config.getoption("--precision")
  if not steps:
    pytest.skip("takes minutes: give --precision=200")
  assert start(tmp_path / "warm", 0).wait() == 0
  found = {}
  for dtype in ("float32", "bfloat16"):
    folder = tmp_path / dtype
    settings = {
        "model.dtype": dtype, "init_from": tmp_path / "warm",
        "warm_start.num_steps": 0,
    }  # fmt: skip
    assert start(folder, steps, **settings).wait() == 0
    lines = logs.stage_metrics(folder, "rl")
    assert not any(line["update/skipped"] for line in lines)
    summary = files.read_json(folder / workdir.SUMMARY)
    found[dtype] = {
        "gap": max(line["update/logprob_gap"] for line in lines),
        "norm": statistics.median(line["update/grad_norm"] for line in lines),
        **{k: summary[k] for k in ("accuracy", "accuracy_se", "mean_tokens")},
    }
    print(dtype, found[dtype])
  exact, rough = found["float32"], found["bfloat16"]
  assert exact["gap"] < 1e-3
  assert rough["gap"] < 0.5
  assert 0.5 < rough["norm"] / exact["norm"] < 2
  # Three standard errors of a difference of test accuracies; and tokens.
  error = (exact["accuracy_se"] ** 2 + rough["accuracy_se"] ** 2) ** 0.5
  assert abs(exact["accuracy"] - rough["accuracy"]) < 3 * error
  assert abs(exact["mean_tokens"] / rough["mean_tokens"] - 1) < 0.1


def test_nan_is_found_in_the_whole_step(tmp_path, request):
  """A look at every operation takes its compiler a minute or two."""
  if not request.config.getoption("--soak"):
    pytest.skip("takes minutes: give --soak=1000")
  cfg = tiny_config(debug=True)
  # The poison is of this test; the step is what called it.
  where = r"add, in step, iapo_jax/rl/train_step.py:\d+"
  with pytest.raises(FloatingPointError, match=where):
    trainer.train(cfg, tmp_path, own=Own(probing=poisoned(lambda _: True)))

import json
import pathlib
import subprocess
import sys

import pytest
import runs

pytestmark = pytest.mark.full

ROOT = pathlib.Path(__file__).parent.parent
PHASES = {
    "rollout", "grading", "probes", "reference", "credit", "update",
    "whole_step", "plain_forward",
}  # fmt: skip
RATIOS = {
    "probes_over_plain_forward",
    "probes_over_plain_forward_per_token",
    "whole_step_over_sum_of_phases",
}
TINY = (
    "--config.prompts_per_step=2",
    "--config.group_size=2",
    "--config.rollout.max_tokens=8",
    "--config.data.arithmetic.train_problems=16",
    "--config.data.arithmetic.validation_problems=8",
    "--config.data.arithmetic.test_problems=8",
    "--repeats=1",
)


def run(script, *arguments, timeout=300, **variables):
  return subprocess.run(
      [sys.executable, f"benchmarks/{script}.py", *arguments],
      cwd=ROOT,
      env=runs.environment() | variables,
      capture_output=True,
      text=True,
      timeout=timeout,
      check=False,
  )


def test_phases_reports_every_phase(tmp_path):
  path = tmp_path / "phases.json"
  done = runs.benchmark("phases", *TINY, f"--json={path}")
  assert done.returncode == 0, done.stderr
  summary = json.loads(path.read_text())
  assert set(summary) >= {
      "phases", "ratios", "config", "device", "mean_length"
  }  # fmt: skip
  assert set(summary["phases"]) == PHASES
  for name, entry in summary["phases"].items():
    assert 0 < entry["min_seconds"] <= entry["seconds"], name
    assert entry["seconds"] <= entry["max_seconds"], name
    rate = summary["mean_length"] * 4 / entry["seconds"]
    assert entry["tokens_per_second"] == pytest.approx(rate), name
    assert name.replace("_", " ") in done.stdout
  assert set(summary["ratios"]) == RATIOS
  assert all(ratio > 0 for ratio in summary["ratios"].values())
  assert 1 <= summary["mean_length"] <= 8
  assert summary["config"]["rollout.max_tokens"] == 8
  assert summary["config"]["credit.mode"] == "to_go"  # of the default file
  assert summary["config"]["model.vocab_size"] > 0
  assert "cpu" in summary["device"]


def test_phases_of_a_step_that_probes_nothing(tmp_path):
  path = tmp_path / "phases.json"
  grpo = ("--config=configs/arithmetic.py:grpo", "--config.probe.stride=0")
  done = runs.benchmark("phases", *grpo, *TINY, f"--json={path}")
  assert done.returncode == 0, done.stderr
  summary = json.loads(path.read_text())
  assert set(summary["phases"]) == PHASES - {"probes"}
  assert set(summary["ratios"]) == {"whole_step_over_sum_of_phases"}
  assert summary["probe_tokens"] == 0


def test_loading_tells_bytes():
  """One small layer; the ratio of a large checkpoint is in docs/models.md."""
  done = run("loading", "--gigabytes=0.05")
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  # A layer: 2 · 2048² + 2 · 2048 · 512 + 3 · 2048 · 8192 weights, biases of
  # 2048 + 2 · 512; the embedding 32768 · 2048: bfloat16. Norms: 3 · 2048 fp32.
  half = 2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192 + 3072 + 32768 * 2048
  assert found["weights_bytes"] == 2 * half + 4 * 3 * 2048
  assert found["peak_over_runtime_bytes"] > found["weights_bytes"]
  assert found["ratio"] == pytest.approx(
      found["peak_over_runtime_bytes"] / found["weights_bytes"]
  )


def test_step_checks_and_reports_ours(tmp_path):
  """The peers need environments of their own: they are run by hand."""
  path = tmp_path / "step.json"
  done = run(
      "step", "--case=tiny", "--contestants=ours", "--rounds=1",
      "--devices=2", f"--json={path}", timeout=600,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  case = json.loads(path.read_text())["cases"]["tiny"]
  (ours,) = case["contestants"].values()
  seconds = ours["seconds"]
  assert seconds["step"] > 0
  assert ours["devices"] == 2
  assert ours["share_of_peak"] == pytest.approx(
      case["flops"] / seconds["step"] / case["matmul_flops_per_second"]
  )
  assert "ours" in done.stdout


def rehearse(path, size, parts):
  """With memory for one of two sizes: what it prints, and the JSON."""
  done = run(
      "accelerator", "--rehearsal", "--contestants=ours", "--rounds=1",
      f"--sizes={size}", f"--parts={parts}", "--gigabytes=0.004",
      f"--json={path}", timeout=600,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("unmeasured: a rehearsal")
  return done.stdout, json.loads(path.read_text())


def test_accelerator_rehearses_ours(tmp_path):
  """On a CPU; the peer is run by hand."""
  parts = "sampling,update,probed_step"
  _, found = rehearse(tmp_path / "accelerator.json", "tiny", parts)
  assert "rehearsal" in found["unmeasured"]
  device = found["device"]
  parts = found["sizes"]["tiny"]["ours"]
  phases = {k: v for part in parts.values() for k, v in part["phases"].items()}
  assert set(phases) == {
      "decoding", "forward", "probes", "strided_probes", "update",
      "probed_step",
  }  # fmt: skip
  # 2 layers of 32 · (2 · 32 + 2 · 16) + 3 · 32 · 64 weights, a head of 64 · 32;
  # keys and values of 2 · 2 · 16 numbers a slot: 8 of 2 prompts, 1..16 of 8
  # sequences, at each of 16 tokens. bfloat16.
  read = 16 * (2 * 9216 + 2048) + 64 * (16 * 2 * 8 + 8 * 16 * 17 / 2)
  decoding = phases.pop("decoding")
  assert decoding["share_of_bandwidth"] == pytest.approx(
      2 * read / decoding["seconds"] / device["bytes_per_second"]
  )
  for name, entry in phases.items():
    assert entry["share_of_peak"] == pytest.approx(
        entry["flops"] / entry["seconds"] / device["matmul_flops_per_second"]
    ), name
  assert phases["probes"]["flops"] > phases["strided_probes"]["flops"]
  assert parts["update"]["found"]["moved"] > 0


def test_accelerator_tells_what_does_not_fit(tmp_path):
  """And goes on. Weights, gradients and moments alone take 10 MB."""
  path = tmp_path / "accelerator.json"
  said, found = rehearse(path, "wide,tiny", "update")
  assert found["sizes"]["tiny"]["ours"]["update"]["fits"]
  wide = found["sizes"]["wide"]
  update = wide["ours"]["update"]
  assert not update["fits"] and not update["phases"]
  assert update["needs_bytes"] > 16 * wide["weights"] > 4e6
  assert "does not fit: needs" in said


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("accelerator", ["--rehearsal", "--contestants=ours", "--sizes=9b"],
         "--sizes '9b': must be of tiny, wide"),
        ("accelerator",
         ["--rehearsal", "--contestants=ours", "--sequences=5"],
         "--sequences 5: must be a multiple of --group = 4"),
        ("probes", ["--model=tiny", "--sequences=4", "--group=2",
                    "--copy_rows=3"],
         "--sequences 4: --copy_rows = 3 must divide it"),
        ("probes", ["--sequences=5", "--group=2"],
         "--sequences 5: --group = 2 must divide it"),
        ("accelerator", ["--contestants=ours", "--sizes=0.5b"],
         "JAX finds no accelerator; --rehearsal"),
        ("attention", ["--run"],
         "config.model.attention = 'fused': needs GPUs or TPUs, not cpu"),
        ("phases", [*TINY, "--config.group_size=1"], "config.group_size = 1"),
        ("step", ["--contestants=x"],
         "--contestants 'x': must be of ours, trl, tunix"),
        ("step", ["--case=tiny", "--contestants=ours", "--ours=x"],
         "--ours 'x': must be FIELD=JSON"),
        ("scaling", ["--json=x.json", "--cells=x"],
         "--cells 'x': must be of 7b@v5e:4x4, "),
    ],
)  # fmt: skip
def test_flags_that_are_refused(script, arguments, message):
  done = runs.benchmark(script, *arguments)
  assert done.returncode == 2, done.stderr
  assert f"error: {message}" in done.stderr
  assert "Traceback" not in done.stderr


def test_a_peer_that_cannot_be_installed(tmp_path):
  done = run(
      "step", "--case=tiny", "--contestants=trl", f"--envs={tmp_path}",
      PIP_NO_INDEX="1",
  )  # fmt: skip
  assert done.returncode == 2
  assert "error: --contestants: trl cannot be installed" in done.stderr
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "trl" / "installed.txt").exists()  # tried again


def test_probes_beside_other_ways_to_have_them(tmp_path):
  """The benchmark itself raises where the entropies differ."""
  path = tmp_path / "probes.json"
  done = runs.benchmark(
      "probes", "--model=tiny", "--sequences=4", "--group=2", "--prompt=8",
      "--tokens=20", "--stride=4", "--rounds=1", f"--json={path}",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  summary = json.loads(path.read_text())
  assert set(summary["seconds"]) == {
      "ours", "floor", "kv copy", "in parts", "re-encoding", "stride",
      "ragged", "train step",
  }  # fmt: skip
  assert summary["flags"]["tokens"] == 20
  for name, value in summary["ratios"].items():
    assert value > 0 and name in done.stdout, name
  # Lengths 2, 8, 14, 20 of at most 20, each with the position before it.
  share = summary["ratios"]["ragged_share_of_positions"]
  assert share == pytest.approx((3 + 9 + 15 + 21) / (4 * 21))


def test_updates_from_completions_of_all_lengths(tmp_path):
  path = tmp_path / "updating.json"
  done = runs.benchmark(
      "updating", "--model=tiny", "--prompts=2", "--group=2", "--prompt=8",
      "--tokens=16", "--micro_batches=2", "--rounds=1", f"--json={path}",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  summary = json.loads(path.read_text())
  assert set(summary["seconds"]) == {"full", "ragged", "remat"}
  for name, value in summary["ratios"].items():
    assert value > 0 and name in done.stdout, name
  # Lengths 2, 6.67, 11.33 and 16 of 16, as whole numbers.
  share = summary["ratios"]["ragged_share_of_tokens"]
  assert share == pytest.approx((2 + 6 + 11 + 16) / (4 * 16))

"""The commands as a user runs them: bad input ends in one line, status 2."""

import json
import pathlib
import subprocess
import sys

import pytest
import runs

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = "--config=configs/arithmetic.py"


def run(script, *arguments):
  return subprocess.run(
      [sys.executable, str(ROOT / "experiments" / script), *arguments],
      cwd=ROOT,
      env=runs.environment(),
      capture_output=True,
      text=True,
      timeout=600,
  )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [CONFIG, "--config.credit.inf_weight=1"],
            "config.credit.inf_weight = '1': unknown field; did you mean"
            " config.credit.info_weight?",
        ),
        ([CONFIG, "--config.group_size=1"], "config.group_size = 1: must be"),
        ([CONFIG, "--config.group_size=x"], "flag --config.group_size=x: inv"),
        ([CONFIG + ":fast"], "variant 'fast': must be one of sft, paper"),
        (["--config=configs/none.py"], "--config = 'configs/none.py': no such"),
        ([], "flag --config=None: Flag --config must have a value"),
        (
            [CONFIG, "--config.data.max_prompt_tokens=4"],
            "config.data.max_prompt_tokens = 4: the prompt of row 0 has 12",
        ),
        (
            [CONFIG, "--config.data.arithmetic.train_problems=20000"],
            "config.data.arithmetic.train_problems = 20000: with validation",
        ),
        (
            [CONFIG, "--config.mesh.tensor=3", "--config.mesh.data=1"],
            "config.mesh = {'data': 1, 'fsdp': 1, 'tensor': 3}: must multiply",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value else "",
)
def test_bad_input_is_one_line_before_any_compilation(
    arguments, message, tmp_path
):
  workdir = tmp_path / "run"
  result = run("run.py", *arguments, f"--workdir={workdir}")
  assert result.returncode == 2
  lines = result.stderr.strip().splitlines()
  assert lines[-1].startswith(f"error: {message}"), result.stderr
  assert "Traceback" not in result.stderr
  assert "compiled" not in result.stdout
  assert not workdir.exists()


def test_a_standard_stream_may_be_closed(tmp_path):
  """As cron and daemons have it."""
  command = f"{sys.executable} experiments/run.py {CONFIG} --dry_run >&-"
  closed = subprocess.run(["sh", "-c", command], cwd=ROOT, timeout=600)
  assert closed.returncode == 0


def test_the_demo_end_to_end_at_small_size(tmp_path):
  workdir = tmp_path / "demo"
  result = run("demo.py", "--small", f"--workdir={workdir}")
  assert result.returncode == 0, result.stderr
  summary = json.loads((workdir / "summary.json").read_text())
  assert set(summary) == {
      "sft", "grpo", "iapo_paper", "iapo_to_go", "seconds",
  }  # fmt: skip
  assert summary["seconds"] > 0
  for name in set(summary) - {"seconds"}:
    assert set(summary[name]) >= {
        "accuracy", "accuracy_se", "mean_tokens", "mean_reasoning_tokens",
        "format_rate", "problems",
    }  # fmt: skip
    assert summary[name]["problems"] == 64
  assert "| IAPO to_go |" in result.stdout
  # It ends with the page, and says where that is.
  path = workdir / "report" / "index.html"
  assert result.stdout.strip().splitlines()[-1] == f"page     {path}"
  text = path.read_text(encoding="utf-8")
  for label in ("warm start", "GRPO", "IAPO paper", "IAPO to_go"):
    assert label in text
  assert (workdir / "report" / "validation_mean_tokens.png").exists()
  timed = json.loads((workdir / "evaluation.json").read_text())["runs"]
  assert [run["run"] for run in timed] == [
      "warm start", "GRPO", "IAPO paper", "IAPO to_go",
  ]  # fmt: skip
  assert all(run["mean"]["seconds_per_completion"] > 0 for run in timed)
  # A second call reports the finished runs without training again.
  again = run("demo.py", "--small", f"--workdir={workdir}")
  assert again.returncode == 0, again.stderr
  assert "compiled" not in again.stdout
  repeated = json.loads((workdir / "summary.json").read_text())
  assert repeated.pop("seconds") > 0
  assert repeated == {k: v for k, v in summary.items() if k != "seconds"}


def test_a_dry_run_prints_the_plan(tmp_path):
  workdir = tmp_path / "run"
  result = run("run.py", CONFIG, "--dry_run", f"--workdir={workdir}")
  assert result.returncode == 0, result.stderr
  for told in (
      "133,760 weights", "mesh       data 1 x fsdp 1 x tensor 1 on cpu",
      "warm start 900 steps of 64 chains", "rl         100 steps of 16 prompts",
      "of 1 micro-batch of 128 sequences", "memory     rl step about",
  ):  # fmt: skip
    assert told in result.stdout
  assert not workdir.exists()


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("evaluate.py", [], "no run: give the folder of one run or of sev"),
        ("evaluate.py", ["nowhere"], "workdir 'nowhere': holds no run"),
        ("evaluate.py", ["x", "--split=tset"], "flag --split=tset: value sh"),
        ("report.py", [], "no run: give the folder of one run or of several"),
        ("report.py", ["GRPO=nowhere"], "workdir 'nowhere': holds no run"),
        ("replay.py", [], "replay.py: needs one argument, RUN/replay/STAGE"),
        ("score.py", ["x", "--model=m", "--input=i", "--output=o"],
         "'x': give everything by --flags"),
        ("compare.py", ["--small"], "--small: needs --output, a file that"),
        ("compare.py", ["--methods=gpro"], "--methods 'gpro': must be among"),
        ("compare.py", ["--methods=to_go"],
         "--methods 'to_go': needs dapo, grpo: settings are chosen beside it"),
    ],
)  # fmt: skip
def test_commands_refuse_what_they_cannot_do(script, arguments, message):
  result = run(script, *arguments)
  assert result.returncode == 2
  assert result.stderr.strip().splitlines()[-1].startswith(f"error: {message}")
  assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--methods=gpro", "--methods 'gpro': must be among grpo, paper"),
        ("--seeds=0,x", "--seeds 'x': must be whole numbers below 2^32, apart"),
        ("--seeds=", "--seeds '': must be whole numbers below 2^32"),
    ],
)
def test_the_demo_refuses_what_it_does_not_know(argument, message, tmp_path):
  result = run("demo.py", argument, f"--workdir={tmp_path}")
  assert result.returncode == 2
  assert result.stderr.strip().startswith(f"error: {message}")

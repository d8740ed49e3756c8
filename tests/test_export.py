"""Runs from Hugging Face folders, and Hugging Face folders from runs."""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys

import pytest
import runs
import safetensors.numpy
import tiny
import yaml

from iapo_jax.config import parsing as config_lib
from iapo_jax.config.schema import Config
from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import folder, tokenizer, weights
from iapo_jax.run import assembly, checkpoint, logs, sources, trainer, workdir
from iapo_jax.tools import comparison, export

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def small(**overrides):
  config = config_lib.default()
  config.prompts_per_step = 8
  config.group_size = 2
  config.num_steps = 1
  config.update_from_flattened_dict(runs.LEAN)
  config.rollout.max_tokens = 8
  config.evaluation.update({"every": 0, "batch_size": 8})
  config.data.arithmetic.update(
      {"train_problems": 16, "validation_problems": 8, "test_problems": 8}
  )
  for name, value in overrides.items():
    config.update_from_flattened_dict({name.replace("__", "."): value})
  return config_lib.parse(config)


def digest(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A Gemma 3 checkpoint with the task's words, in two files of float32.

  It lies where a download from the hub lies.
  """
  place = tmp_path_factory.mktemp("model") / "snapshots" / COMMIT
  place.mkdir(parents=True)
  source = GOLDEN / "gemma3"
  cfg = folder.read_model(source)
  params = weights.load(source, cfg)
  weights.save(place, params, cfg, dtype="float32", max_shard_bytes=60_000)
  shutil.copyfile(source / "config.json", place / "config.json")
  (place / "generation_config.json").write_text(
      '{"eos_token_id": [5, 1], "pad_token_id": 3, "temperature": 0.6}'
  )
  tiny.load_task().tokenizer.save_pretrained(place)
  (place / "README.md").write_text("of the pretrained model")
  (place / "evil.py").write_text("raise SystemExit")
  return place


@pytest.fixture(scope="module")
def still(model, tmp_path_factory):
  """A sharded run that learns nothing from the checkpoint: its rate is 0."""
  place = tmp_path_factory.mktemp("runs") / "still"
  cfg = small(
      model__pretrained=str(model),
      optimizer__learning_rate=0.0,
      mesh__data=2,
      mesh__fsdp=4,
  )
  trainer.train(cfg, place)
  return place


@pytest.mark.mesh
def test_a_run_keeps_all_of_the_model_but_its_weights(model, still):
  kept = still / "pretrained"
  assert {path.name for path in kept.iterdir()} == {
      "config.json", "generation_config.json", "tokenizer.json",
      "tokenizer_config.json",
  }  # fmt: skip
  for path in kept.iterdir():
    assert path.read_bytes() == (model / path.name).read_bytes()
  assert not (still / "tokenizer").exists()
  cfg = workdir.load_config(still)
  assert cfg.model.family == "gemma3_text"
  assert cfg.model.windows == (5, 5, 0)
  assert cfg.model.pretrained == str(model)


@pytest.mark.mesh
def test_a_run_says_which_commit_of_a_model_it_began_with(still, tmp_path):
  found = json.loads((still / "environment.json").read_text())
  assert found["model_commit"] == COMMIT
  assert folder.commit(tmp_path) == ""


def test_ends_and_padding_are_those_of_the_generation_config(model):
  loaded = tiny.load_task(small(), model)
  # The tokenizer's own end comes first: it ends demonstrations.
  assert loaded.vocabulary.eos_ids == (1, 5)
  assert loaded.vocabulary.pad_id == 3
  table = loaded.tables["train"].prompts
  assert set(table.tokens[0, table.lengths[0] :]) <= {3}


@pytest.mark.mesh
def test_a_checkpoint_comes_back_bit_by_bit(model, still, tmp_path):
  """Hugging Face -> run -> Hugging Face: the very files again."""
  files = export.export(
      sources.last(still), tmp_path / "out", max_shard_bytes=60_000
  )
  shards = [path.name for path in model.glob("*.safetensors")]
  assert len(shards) > 1
  for name in (
      *shards, "model.safetensors.index.json", "generation_config.json",
      "tokenizer.json",
  ):  # fmt: skip
    assert digest(tmp_path / "out" / name) == digest(model / name), name
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  theirs = json.loads((model / "config.json").read_text())
  # Beside the dtype: names that transformers before version 5 reads.
  assert config == theirs | {
      "dtype": "float32", "rope_theta": 1000.0, "rope_local_base_freq": 100.0,
      "rope_scaling": {"rope_type": "linear", "factor": 2.0},
  }  # fmt: skip
  words = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
  theirs = json.loads((model / "tokenizer_config.json").read_text())
  assert words == theirs | {"tokenizer_class": "PreTrainedTokenizerFast"}
  assert "evil.py" not in files
  assert "of the pretrained model" not in (
      tmp_path / "out" / "README.md"
  ).read_text()


def test_a_tokenizer_in_place_of_the_models(model, tmp_path):
  """An export has all of it, its named chat templates too, and no other."""
  shutil.copytree(model, tmp_path / "pretrained")
  (tmp_path / "pretrained" / "chat_template.jinja").write_text("theirs")
  tok = tiny.words()
  tok.chat_template = {"default": "ours", "tool_use": "our tools"}
  tok.save_pretrained(tmp_path / "tokenizer")
  (tmp_path / "tokenizer" / "chat_template.jinja").unlink()
  (tmp_path / "out").mkdir()
  cfg = Config(model=folder.read_model(model))
  export.write_configs(tmp_path, tmp_path / "out", cfg, "float32")
  names = {path.name for path in (tmp_path / "out").iterdir()}
  assert names == {
      "additional_chat_templates", "config.json", "generation_config.json",
      "tokenizer.json", "tokenizer_config.json",
  }  # fmt: skip
  named = tmp_path / "out" / "additional_chat_templates" / "tool_use.jinja"
  assert named.read_text() == "our tools"


def test_a_model_type_whose_tokenizers_are_built_anew(tmp_path, capsys):
  """transformers 5 gives a folder of a Qwen2 model no word tokenizer."""
  source = tmp_path / "model"
  source.mkdir()
  cfg = folder.read_model(GOLDEN / "qwen2")
  shutil.copy(GOLDEN / "qwen2" / "config.json", source)
  tiny.words().save_pretrained(source)
  params = weights.load(GOLDEN / "qwen2", cfg)
  export.convert(source, tmp_path / "out", params, cfg, "float32")
  assert capsys.readouterr().out == (
      "warning: transformers.AutoTokenizer makes a Qwen2Tokenizer, which"
      " encodes text otherwise; load the tokenizer with"
      " transformers.PreTrainedTokenizerFast\n"
  )


@pytest.mark.parametrize("bits", [0o022, 0o027])
def test_others_can_read_what_the_umask_lets_them(model, tmp_path, bits):
  """The weights, too, in one file or several, and the folder itself."""
  cfg = folder.read_model(model)
  params = weights.load(model, cfg)
  with runs.umask(bits):
    export.convert(model, tmp_path / "out", params, cfg, "float32")
    (tmp_path / "parts").mkdir()
    weights.save(
        tmp_path / "parts", params, cfg, dtype="float32", max_shard_bytes=60_000
    )
    for name in ("out", "parts"):
      assert not runs.odd_modes(tmp_path / name)
  assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1


@pytest.mark.mesh
def test_others_can_read_a_run(still):
  """Checkpoints, logs and the kept model."""
  assert not runs.odd_modes(still)


@pytest.mark.mesh
def test_bfloat16_is_a_rounding_of_it(still, tmp_path):
  export.export(sources.last(still), tmp_path / "out", dtype="bfloat16")
  ours = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
  theirs = safetensors.numpy.load_file(GOLDEN / "gemma3" / "model.safetensors")
  assert ours.keys() == theirs.keys()
  for name, tensor in theirs.items():  # which was bfloat16 at first
    assert ours[name].tobytes() == tensor.tobytes()
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["dtype"] == "bfloat16"


@pytest.mark.full
def test_a_run_needs_its_model_no_more(model, tmp_path):
  """Resumed, judged and exported where the folder is gone."""
  gone = tmp_path / "gone"
  shutil.copytree(model, gone)
  cfg = small(model__pretrained=str(gone), evaluation__every=1)
  trainer.train(cfg, tmp_path / "run")
  shutil.rmtree(gone)
  (tmp_path / "run" / "summary.json").unlink()
  trainer.train(cfg, tmp_path / "run")
  assert workdir.is_finished(tmp_path / "run")
  (one,) = comparison.load([tmp_path / "run"], "last")
  assert one.parts.task.vocabulary.eos_ids == (1, 5)
  export.export(sources.last(tmp_path / "run"), tmp_path / "out")
  with pytest.raises(ConfigError, match=r"a GGUF file; there is no .gone."):
    trainer.train(cfg, tmp_path / "other")


@pytest.mark.full
@pytest.mark.mesh
def test_another_run_begins_where_one_ended(model, still, tmp_path, capsys):
  """`init_from` has the weights, `pretrained` the architecture."""
  cfg = small(
      model__pretrained=str(model), init_from=str(still), group_size=4
  )
  trainer.train(cfg, tmp_path / "run")
  lines = logs.stage_metrics(tmp_path / "run", "rl")
  assert [line["step"] for line in lines] == [1]
  capsys.readouterr()
  with pytest.raises(ConfigError, match=r"config\.model\.\w+ = "):
    trainer.train(small(init_from=str(still)), tmp_path / "other")


@pytest.mark.full
def test_a_damaged_start_is_read_from_the_model_again(
    model, tmp_path, capsys
):
  cfg = small(model__pretrained=str(model), num_steps=2)
  trainer.train(cfg, tmp_path / "run")
  (tmp_path / "run" / "summary.json").unlink()
  rl = checkpoint.stage_folder(tmp_path / "run", "rl")
  assert checkpoint.steps(rl) == [0, 2]
  shutil.rmtree(rl / "2")
  start = tmp_path / "run" / "checkpoints" / "rl" / "0" / "params"
  next(p for p in start.rglob("*") if p.is_file()).write_bytes(b"?")
  trainer.train(cfg, tmp_path / "run")
  assert "warning: checkpoint" in capsys.readouterr().out


def test_a_dry_run_reads_no_weights_but_checks_them(model, tmp_path, capsys):
  place = tmp_path / "model"
  shutil.copytree(model, place)
  cfg = small(model__pretrained=str(place))
  trainer.train(cfg, tmp_path / "run", dry_run=True)
  assert "3 layers of width 24, vocabulary 61" in capsys.readouterr().out
  shard = sorted(place.glob("*.safetensors"))[-1]
  found = safetensors.numpy.load_file(shard)
  name = next(iter(found))
  del found[name]
  safetensors.numpy.save_file(found, shard)
  with pytest.raises(ConfigError, match="has no tensor"):
    trainer.train(cfg, tmp_path / "run", dry_run=True)
  assert not (tmp_path / "run").exists()


def test_sequences_beyond_what_the_model_was_trained_for(model, tmp_path):
  cfg = small(model__pretrained=str(model), rollout__max_tokens=120)
  with pytest.raises(ConfigError) as error:
    trainer.train(cfg, tmp_path / "run")
  # 16 of the prompt, 120 and the two tokens of the elicitation.
  assert str(error.value) == (
      "config.model.max_positions = 128: must be at least"
      " data.max_prompt_tokens + rollout.max_tokens + the elicitation's tokens"
      " + probe.answer_tokens - 1 = 138; lower rollout.max_tokens"
  )


def test_tokens_that_the_model_does_not_have(model, tmp_path):
  place = tmp_path / "model"
  shutil.copytree(model, place)
  own = tiny.load_task().tokenizer
  words = [f"w{i}" for i in range(70)] + own.convert_ids_to_tokens(range(37))
  tokenizer.word_tokenizer(
      words, pad="<pad>", eos="<eos>", unknown="<unk>"
  ).save_pretrained(place)
  with pytest.raises(ConfigError, match=r"vocab_size = 61: must be above \d+,"):
    trainer.train(small(model__pretrained=str(place)), tmp_path / "run")


@pytest.mark.full
def test_a_tokenizer_of_its_own(model, tmp_path):
  """`data.tokenizer` for fresh weights and in place of the model's."""
  other = tmp_path / "tokenizer"
  words = tiny.load_task().tokenizer
  words.add_tokens(["extra"])
  words.save_pretrained(other)
  (other / "config.json").write_text('{"eos_token_id": 2}')
  fresh = small(data__tokenizer=str(other))
  trainer.train(fresh, tmp_path / "fresh")
  assert workdir.load_config(tmp_path / "fresh").model.vocab_size == 38
  cfg = small(data__tokenizer=str(other), model__pretrained=str(model))
  trainer.train(cfg, tmp_path / "run")
  shutil.rmtree(other)
  export.export(sources.last(tmp_path / "fresh"), tmp_path / "out1")
  export.export(sources.last(tmp_path / "run"), tmp_path / "out2")
  for name in ("out1", "out2"):
    assert len(tokenizer.load(tmp_path / name)) == 38
  # The tokenizer's own, and that of its folder's config.json.
  assert folder.read_tokens(tmp_path / "out1").eos_ids == (1, 2)
  # Of the model, which has the last word.
  assert folder.read_tokens(tmp_path / "out2").eos_ids == (5, 1)
  assert folder.read_model(tmp_path / "out2").family == "gemma3_text"


def test_a_folder_without_a_fast_tokenizer(model, tmp_path):
  place = tmp_path / "model"
  shutil.copytree(model, place)
  (place / "tokenizer.json").unlink()
  with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
    trainer.train(small(model__pretrained=str(place)), tmp_path / "run")
  (place / "tokenizer.json").write_text("{}")
  with pytest.raises(ConfigError, match=r"tokenizer\.json: cannot be read"):
    trainer.train(small(model__pretrained=str(place)), tmp_path / "run")


def run_export(*arguments):
  return subprocess.run(
      [sys.executable, "experiments/export.py", *map(str, arguments)],
      cwd=ROOT, env=runs.environment(), capture_output=True, text=True,
      timeout=300, check=False,
  )  # fmt: skip


@pytest.mark.full
def test_the_command_exports_a_run_that_began_from_nothing(tmp_path):
  """And a run can begin from what it wrote: the same weights again."""
  cfg = small(
      warm_start__num_steps=2, rollout__max_tokens=56, num_steps=0,
      model__qk_norm="head", model__family="qwen3", evaluation__top_p=0.95,
      evaluation__top_k=8,
  )  # fmt: skip
  trainer.train(cfg, tmp_path / "run")
  done = run_export(tmp_path / "run", f"--output={tmp_path / 'out'}")
  assert done.returncode == 0, done.stderr
  assert "exported" in done.stdout
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["architectures"] == ["Qwen3ForCausalLM"]
  assert (config["eos_token_id"], config["pad_token_id"]) == (1, 0)
  # 16 of the prompt, 56, and 2 of the elicitation.
  assert config["max_position_embeddings"] == 74
  card = (tmp_path / "out" / "README.md").read_text()
  _, header, body = card.split("---\n", 2)
  assert yaml.safe_load(header)["library_name"] == "transformers"
  assert "`warm_start/2`" in body
  assert "tokens a completion. Sampling: top-p 0.95, top-k 8.\n" in body
  assert str(tmp_path) not in card
  source = sources.last(tmp_path / "run")
  params = export.load(source, workdir.load_config(tmp_path / "run").model)
  theirs = folder.read_model(tmp_path / "out")
  again = weights.load(tmp_path / "out", theirs)
  assert theirs.qk_norm == "head"
  for name in ("embedding",):
    assert (again[name] == params[name]).all()
  for part in ("q_kernel", "o_kernel"):
    ours = again["layers"]["attention"][part]
    assert (ours == params["layers"]["attention"][part]).all()
  tok = tokenizer.load(tmp_path / "out")
  assert tok.decode(tok.encode("5 b + 1 =")) == "5 b + 1 ="
  done = runs.command(
      "export", tmp_path / "run", f"--output={tmp_path / 'out'}"
  )
  assert (done.returncode, done.stderr.strip()) == (
      2, f"error: --output = '{tmp_path / 'out'}': exists already;"
      " name a new folder",
  )  # fmt: skip


def test_a_size_beside_a_pretrained_model(model):
  rule = rf"model\.\w+ = .*: must be .*, as in '.*{COMMIT}', or left out"
  with pytest.raises(ConfigError, match=rule):
    assembly.assemble(
        small(model__pretrained=str(model), model__vocab_size=61)
    )


@pytest.mark.mesh
def test_a_family_beside_a_pretrained_models_own(still, tmp_path):
  rule = "--family = 'qwen3': leave it out; the run began from a pretrained"
  with pytest.raises(ConfigError, match=rule):
    export.export(sources.last(still), tmp_path / "out", family="qwen3")


@pytest.mark.full
def test_exports_that_cannot_be(tmp_path):
  cfg = small(
      warm_start__num_steps=1, rollout__max_tokens=56, num_steps=0,
      model__qk_norm="head",
  )  # fmt: skip
  trainer.train(cfg, tmp_path / "run")
  source = sources.last(tmp_path / "run")
  with pytest.raises(ConfigError, match="has no models with qk_norm = 'head'"):
    export.export(source, tmp_path / "out")
  assert not (tmp_path / "out").exists()
  assert [path.name for path in tmp_path.iterdir()] == ["run"]
  files = export.export(source, tmp_path / "out", family="qwen3")
  assert "model.safetensors" in files
  (tmp_path / "file").write_text("")
  with pytest.raises(ConfigError, match=r"out': cannot be written \(File ex"):
    export.export(source, tmp_path / "file" / "out")
  with pytest.raises(ConfigError, match="holds no checkpoint"):
    sources.chosen(tmp_path / "nothing", "last")
  done = runs.command("export", "--output=x")
  assert (done.returncode, done.stderr.strip()) == (
      2,
      "error: the following arguments are required: RUN; see iapo export"
      " --help",
  )

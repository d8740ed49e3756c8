"""A run from a GGUF file: planned, trained, resumed, judged and exported."""

import dataclasses
import json
import pathlib

import ggufs
import jax
import numpy as np
import pytest
import runs
import safetensors.numpy
import tokenizer_kinds
from test_export import small

import iapo_jax
from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import families, folder, tokenizer, weights
from iapo_jax.run import assembly, sources, trainer, workdir
from iapo_jax.tools import comparison, export
from iapo_jax.tools.report import page
from iapo_jax.tools.report.runs import Group, read

GOLDEN = pathlib.Path(__file__).parent / "golden"
SIZES = {
    "data__max_prompt_tokens": 40, "data__max_gold_tokens": 4,
    "rollout__max_tokens": 24, "reward__grader": "host",
    "optimizer__learning_rate": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A Llama in Q8_0 whose tokenizer knows every byte."""
  found = tmp_path_factory.mktemp("model")
  cfg = dataclasses.replace(
      folder.read_model(GOLDEN / "llama"), d_model=32, mlp_dim=32, head_dim=8,
      vocab_size=300, num_layers=1,
  )  # fmt: skip
  weights.save(found, ggufs.random_params(cfg), cfg, dtype="float32")
  families.config_of(cfg).save_pretrained(found)
  tok = tokenizer_kinds.of("byte_level")
  return ggufs.write(found / "m.gguf", found, kind="Q8_0", tok=tok)


def test_a_plan_says_that_weights_were_quantised(place, tmp_path, capsys):
  """A copy of everything else is the same model, without the file."""
  cfg = small(model__pretrained=str(place), **SIZES)
  trainer.train(cfg, tmp_path / "run", dry_run=True)
  shown = capsys.readouterr().out
  assert "weights    were quantised; tensors: 9 Q8_0, 3 F32\n" in shown
  folder.copy_all_but_weights(place, tmp_path / "kept")
  assert folder.read_model(tmp_path / "kept") == folder.read_model(place)
  assert folder.read_tokens(tmp_path / "kept") == folder.read_tokens(place)


def test_a_run_keeps_that_its_weights_were_quantised(
    place, tmp_path, capsys
):
  """A run that began tells what it kept, and so does one that begins there."""
  told = "were quantised; tensors: 7 Q8_0, 5 F32"
  cfg = small(model__pretrained=str(place), **SIZES)
  begun = tmp_path / "begun"
  with workdir.locked(begun):
    workdir.claim(begun, assembly.assemble(cfg))
  kept = begun / "environment.json"
  assert json.loads(kept.read_text())["quantised"] == {"Q8_0": 9, "F32": 3}
  runs.edit(kept, quantised={"Q8_0": 7, "F32": 5})
  capsys.readouterr()
  trainer.train(cfg, begun, dry_run=True)
  assert capsys.readouterr().out.startswith(f"weights    {told}\n")
  step = begun / "checkpoints" / "rl" / "0"
  (step / "state").mkdir(parents=True)
  for start in (begun, step):
    cfg = small(init_from=str(start))
    assert workdir.quantised_start(cfg) == {"Q8_0": 7, "F32": 5}
  # The page, and the card of an export.
  group = Group("sums", (dataclasses.replace(read(begun), summary={}),))
  html = page.render([group], (), title="One run")
  assert f"Note: sums: the weights that it began with {told}." in html
  card = export.model_card(
      sources.Source(begun, "rl", 0), workdir.load_config(begun), "m", "float32"
  )
  assert f"It began from a pretrained model (weights {told})." in card


@pytest.mark.parametrize("random", [True, False])
def test_a_tokenizer_needs_no_model_that_is_supported(random, place, tmp_path):
  """A run keeps the tokenizer of such a file; resumed it has the same tokens.

  Only a run from random weights reads the ends there, too.
  """
  bad = ggufs.write(
      tmp_path / "bad.gguf", place.parent, tok=tokenizer_kinds.of("byte_level"),
      more={
          "llama.rope.scaling.type": "dynamic",
          "tokenizer.ggml.eot_token_id": 4,
          "tokenizer.ggml.padding_token_id": 5,
      },
  )  # fmt: skip
  with pytest.raises(ConfigError, match=r"rope\.scaling\.type = 'dynamic'"):
    folder.read_model(bad)
  pretrained = "" if random else str(place)
  cfg = small(
      model__pretrained=pretrained, data__tokenizer=str(bad), **SIZES
  )
  run = tmp_path / "run"
  parts = assembly.assemble(cfg)
  with workdir.locked(run):
    workdir.claim(run, parts)
  assert {path.name for path in (run / "tokenizer").iterdir()} == {
      "tokenizer.json", "tokenizer_config.json", "generation_config.json",
  }  # fmt: skip
  bad.unlink()
  again = assembly.assemble(cfg, home=run)
  assert again.task.vocabulary == parts.task.vocabulary
  assert (4 in parts.task.vocabulary.eos_ids) == random
  assert parts.task.vocabulary.pad_id == 5


@pytest.mark.full
def test_a_run_needs_the_file_no_more(place, tmp_path, capsys):
  gone = tmp_path / "gone.gguf"
  gone.write_bytes(place.read_bytes())
  cfg = small(model__pretrained=str(gone), **SIZES)
  trainer.train(cfg, tmp_path / "run")
  gone.unlink()
  assert {path.name for path in (tmp_path / "run/pretrained").iterdir()} == {
      "config.json", "generation_config.json", "tokenizer.json",
      "tokenizer_config.json",
  }  # fmt: skip
  (tmp_path / "run" / "summary.json").unlink()
  capsys.readouterr()
  trainer.train(cfg, tmp_path / "run")
  told = "were quantised; tensors: 9 Q8_0, 3 F32\n"
  assert f"weights    {told}" in capsys.readouterr().out
  assert workdir.is_finished(tmp_path / "run")
  (one,) = comparison.load([tmp_path / "run"], "last")
  assert f"weights    of {tmp_path / 'run'}: {told}" in capsys.readouterr().out
  assert one.parts.cfg.model.family == "llama"
  with pytest.raises(ConfigError, match=r"there is no 'gone\.gguf'"):
    trainer.train(cfg, tmp_path / "other")
  # The learning rate was 0: full weights of what the file stands for.
  export.export(sources.last(tmp_path / "run"), tmp_path / "out")
  ours = folder.read_model(tmp_path / "out")
  assert ours == folder.read_model(place)
  loaded = [weights.load(x, ours) for x in (tmp_path / "out", place)]
  jax.tree.map(np.testing.assert_array_equal, *loaded)
  found = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
  assert {str(x.dtype) for x in found.values()} == {"float32"}
  # Another run begins there; it reads the tokenizer of the file.
  other = small(
      model__pretrained=str(tmp_path / "out"), data__tokenizer=str(place),
      init_from=str(tmp_path / "run"), **SIZES,
  )  # fmt: skip
  trainer.train(other, tmp_path / "next", dry_run=True)
  assert capsys.readouterr().out.startswith(f"weights    {told}")


def test_scores_of_a_file_and_of_its_export_are_the_same(place, tmp_path):
  line = {"prompt": "six 1 + 2 =", "completion": "so 3.</think> 3"}
  (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
  iapo_jax.load(place).export(tmp_path / "out")
  assert not runs.odd_modes(tmp_path / "out")
  scores = []
  for name in (place, tmp_path / "out"):
    output = tmp_path / f"{len(scores)}.jsonl"
    done = runs.command(
        "score", f"--model={name}", f"--input={tmp_path / 'in.jsonl'}",
        f"--output={output}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = "weights  were quantised; tensors: 9 Q8_0, 3 F32\n"
    assert (told in done.stdout) == (name == place)
    scores.append(json.loads(output.read_text()))
  assert scores[0] == scores[1]
  assert len(scores[0]["mi"]) == len(scores[0]["tokens"])
  assert tokenizer.load(tmp_path / "out").get_vocab() == (
      tokenizer.load(place).get_vocab()
  )

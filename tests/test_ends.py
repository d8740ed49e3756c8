"""Tokens that end or pad completions, where files disagree or go too far."""

import dataclasses
import functools
import json
import pathlib
import shutil

import pytest
import texts
import tiny

from iapo_jax.config import parsing as config_lib
from iapo_jax.core.errors import ConfigError
from iapo_jax.data import examples, task
from iapo_jax.hf import ends, folder, tokenizer
from iapo_jax.run import assembly, trainer
from iapo_jax.tools import export

GOLDEN = pathlib.Path(__file__).parent / "golden"
QWEN = tiny.SHARED / "qwen2_tokenizer"


def config(place, **values):
  found = config_lib.default()
  found.update_from_flattened_dict({
      "model.pretrained": str(place), "reward.grader": "host", "num_steps": 1,
      "prompts_per_step": 8, "group_size": 2, "rollout.max_tokens": 8,
      "evaluation.every": 0, "evaluation.batch_size": 8,
      "data.arithmetic.operands": 3, "data.arithmetic.train_problems": 16,
      "data.arithmetic.validation_problems": 8,
      "data.arithmetic.test_problems": 8,
  })  # fmt: skip
  found.update_from_flattened_dict(
      {name.replace("__", "."): value for name, value in values.items()}
  )
  return config_lib.parse(found)


@pytest.fixture
def model(tmp_path):
  """A Gemma 3 folder with the task's words: 61 rows, 37 words."""
  place = tmp_path / "model"
  shutil.copytree(GOLDEN / "gemma3", place)
  (place / "expected.safetensors").unlink()
  tiny.words().save_pretrained(place)
  return place


def names(place, file="generation_config.json", **values):
  path = place / file
  raw = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps(raw | values))


def test_a_padding_token_beyond_the_rows(model, tmp_path):
  """It pads nothing: an end of the model does. The tokenizer keeps it."""
  tok = tokenizer.load(model)
  tok.add_tokens([f"x{i}" for i in range(61 - len(tok))])
  tok.add_special_tokens({"pad_token": "[PAD]"})
  tok.save_pretrained(model)
  assert tok.pad_token_id == 61
  names(model, eos_token_id=1, pad_token_id=61)
  names(model, "config.json", eos_token_id=1, pad_token_id=61)
  parts = assembly.assemble(config(model))
  assert parts.cfg.model.vocab_size == 61
  assert parts.task.vocabulary.pad_id == 1
  for table in parts.task.tables.values():
    assert table.prompts.tokens.max() < 61
    assert (table.prompts.tokens[0, table.prompts.lengths[0] :] == 1).all()
  run, out = tmp_path / "run", tmp_path / "out"
  out.mkdir()
  folder.copy_all_but_weights(model, run / folder.KEPT)
  export.write_configs(run, out, parts.cfg, "float32")
  for name in ("tokenizer.json", "tokenizer_config.json"):
    assert (out / name).read_bytes() == (model / name).read_bytes()
  # transformers loads no model whose own padding has no row.
  assert json.loads((out / "config.json").read_text())["pad_token_id"] is None


def test_other_tokens_beyond_the_rows_are_refused_by_name(model):
  tok = tokenizer.load(model)
  config_of = functools.partial(config, model)
  tok.add_tokens([f"x{i}" for i in range(61 - len(tok))] + ["[MORE]"])
  tok.save_pretrained(model)
  with pytest.raises(ConfigError) as error:
    assembly.assemble(config_of(probe__elicitation="</think> [MORE]"))
  assert str(error.value) == (
      "config.model.vocab_size = 61: must be above 61, the token '[MORE]' of"
      " config.probe.elicitation; leave config.data.tokenizer out to use the"
      " model's tokenizer"
  )
  # Ends: one beyond the rows is never sampled, another must be there.
  names(model, eos_token_id=61)
  assert assembly.assemble(config_of()).task.vocabulary.eos_ids == (1,)
  tok.eos_token = "[MORE]"
  tok.save_pretrained(model)
  with pytest.raises(ConfigError, match="an EOS token below 61, the rows of"):
    assembly.assemble(config_of())


def test_solutions_beyond_the_rows_are_refused(tmp_path):
  """The words of solutions come last, so that prompts have none of them."""
  texts.write_gsm8k(tmp_path / "data")
  cfg = config_lib.parse({
      "data": {
          "task": "gsm8k", "source_dir": str(tmp_path / "data"),
          "prepared_dir": str(tmp_path / "prepared"), "prompt": "plain",
          "validation_problems": 4, "chat_template": False,
      },
      "rollout": {"max_tokens": 200}, "warm_start": {"num_steps": 1},
      "reward": {"grader": "host"},
  })  # fmt: skip
  problems = task.read(cfg.data)
  words = ["<eos>", "<unk>", "<pad>", "<think>", "</think>", "<answer>"]
  for split in problems.values():
    for problem in split:
      words += [*problem.question.split(), problem.answer]
  asked = list(dict.fromkeys(words))
  for problem in problems["train"]:
    pieces = examples.written_out(
        problem.solution, problem.answer, cfg.format, cfg.probe.elicitation
    )
    words += "".join(piece.text for piece in pieces).split()
  place = tmp_path / "tokenizer"
  tokenizer.word_tokenizer(
      list(dict.fromkeys(words)), pad="<pad>", eos="<eos>", unknown="<unk>"
  ).save_pretrained(place)
  model = dataclasses.replace(
      cfg.model, pretrained="model", vocab_size=len(asked)
  )
  cfg = dataclasses.replace(cfg, model=model)
  with pytest.raises(ConfigError, match=r"of the worked solutions; leave"):
    task.load(cfg, problems, None, place)


def test_every_end_that_is_named_is_used(model, tmp_path, capsys):
  """generation_config.json says 5, the tokenizer 1: both, and the plan says."""
  names(model, eos_token_id=5)
  cfg = config(model)
  assert assembly.assemble(cfg).task.vocabulary.eos_ids == (1, 5)
  trainer.train(cfg, tmp_path / "run", dry_run=True)
  assert (
      "\nends       1 '<eos>', 5 '<answer>'\n"
      "warning: these ends are used, but files differ: generation_config.json"
      " names 5 '<answer>'; config.json names 2 '<unk>'; the tokenizer names 1"
      " '<eos>'\n"
  ) in capsys.readouterr().out
  # An export names both where transformers looks.
  out = tmp_path / "out"
  out.mkdir()
  folder.copy_all_but_weights(model, tmp_path / "run" / folder.KEPT)
  cfg = dataclasses.replace(cfg, model=folder.read_model(model))
  export.write_configs(tmp_path / "run", out, cfg, "float32")
  assert folder.named_ends(out) == {
      "generation_config.json": (5, 1), "config.json": (2,),
  }  # fmt: skip


def test_files_that_agree_give_no_warning(model):
  tok = tokenizer.load(model)
  names(model, eos_token_id=[5, 1, 2])
  found = ends.find(tok, folder.read_tokens(model).eos_ids)
  assert found == (1, 5, 2)
  assert ends.describe(tok, found, model, chat=False) == [
      "ends       1 '<eos>', 5 '<answer>', 2 '<unk>'"
  ]
  assert ends.describe(tok, (1,), None, chat=False) == ["ends       1 '<eos>'"]


def test_a_turn_of_the_chat_template_ends_a_completion(tmp_path):
  """As in Gemma 2, whose tokenizer and files name <eos> alone."""
  tok = tokenizer.load(texts.write_tokenizer(tmp_path))
  turn, other = tok.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
  tok.eos_token = "<|endoftext|>"
  assert ends.find(tok, (other,)) == (other,)
  # The end of a turn comes first: it ends demonstrations.
  assert ends.find(tok, (other,), chat=True) == (turn, other)
  names(tmp_path, eos_token_id=other)
  warning = ends.describe(tok, (turn, other), tmp_path, chat=True)[1]
  assert "generation_config.json names 0 '<|endoftext|>'; the" in warning
  assert warning.endswith("the chat template names 2 '<|im_end|>'")


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for m in messages %}{{ m.content }} . {% endfor %}",  # no token
        "{% for m in messages %}{{ m.content[:3] }}<|im_end|>{% endfor %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_templates_whose_turns_have_no_end(tmp_path, template):
  tok = tokenizer.load(texts.write_tokenizer(tmp_path))
  tok.chat_template = template
  assert tokenizer.turn_end(tok) is None


@pytest.mark.skipif(
    not QWEN.is_dir(),
    reason="the Qwen2 tokenizer is not part of the repository",
)
def test_the_end_of_a_turn_in_a_real_template():
  assert tokenizer.turn_end(tokenizer.load(QWEN)) == 151_645

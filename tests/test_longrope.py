"""Longrope: which factors a run uses, who says so, and what an export has.

Parity with transformers is in `test_torch_parity`, frequencies by hand in
`test_rotary`.
"""

import dataclasses
import json
import pathlib
import shutil

import checkpoints
import pytest
import runs
import tiny

from iapo_jax.config import model as model_config
from iapo_jax.config import parsing as config_lib
from iapo_jax.config.formats import FormatConfig
from iapo_jax.config.model import ModelConfig
from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import families, folder, positions, spellings
from iapo_jax.run import assembly, trainer
from iapo_jax.tools import export, loaded, scoring

GOLDEN = pathlib.Path(__file__).parent / "golden" / "phi3_longrope"
# The golden model's original length is 48. Prompts of the run below have up to
# 16 tokens, and the elicitation has 2: 30 of a completion fill it.
FULL = 30


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A folder with the golden model and the words of the synthetic task."""
  place = tmp_path_factory.mktemp("longrope") / "model"
  shutil.copytree(GOLDEN, place)
  tiny.load_task().tokenizer.save_pretrained(place)
  return place


def config(place, max_tokens, **fields):
  found = config_lib.default()
  found.update_from_flattened_dict(runs.LEAN)
  found.prompts_per_step, found.group_size = 8, 2
  found.model.update({"pretrained": str(place)} | fields)
  found.rollout.max_tokens = max_tokens
  found.evaluation.update({"every": 0, "batch_size": 8})
  found.data.arithmetic.update(
      {"train_problems": 16, "validation_problems": 8, "test_problems": 8}
  )
  return config_lib.parse(found)


@pytest.mark.parametrize(
    ("tokens", "asked", "chosen"),
    [
        (FULL, "auto", "short"), (FULL + 1, "auto", "long"),
        (FULL, "long", "long"), (FULL, "short", "short"),
    ],
)  # fmt: skip
def test_a_runs_longest_sequence_chooses(model, tokens, asked, chosen):
  cfg = config(model, tokens, rope_factors=asked)
  made = assembly.assemble(cfg).cfg
  assert made.model.rope_factors == chosen
  # A run that has begun has the choice in its configuration, and keeps it.
  again = config_lib.parse(json_nested(made))
  assert again == made
  assert assembly.assemble(again).cfg == made


def json_nested(cfg):
  """A configuration that went through the run's config.json."""
  nested = {}
  for name, value in json.loads(json.dumps(config_lib.flatten(cfg))).items():
    *groups, field = name.split(".")
    node = nested
    for group in groups:
      node = node.setdefault(group, {})
    node[field] = value
  return nested


def test_short_factors_hold_no_long_sequences(model):
  cfg = config(model, FULL + 1, rope_factors="short")
  with pytest.raises(ConfigError) as error:
    assembly.assemble(cfg)
  assert str(error.value) == (
      "config.model.rope_factors = 'short': must be long or auto if"
      " data.max_prompt_tokens + rollout.max_tokens + the elicitation's tokens"
      " + probe.answer_tokens - 1 = 49 exceeds model.rope.original_positions ="
      " 48"
  )


def test_a_model_without_factors_has_none_to_choose():
  fields = {"model": {"rope_factors": "long"}}
  with pytest.raises(ConfigError) as error:
    assembly.assemble(config_lib.parse(fields))
  assert str(error.value) == (
      "config.model.rope_factors = 'long': must be auto with a model of"
      " model.rope.kind default"
  )


def test_the_plan_names_the_factors(model, tmp_path, capsys):
  trainer.train(config(model, FULL + 1), tmp_path / "run", dry_run=True)
  assert (
      "rotary     long factors of longrope in every sequence; short ones hold"
      " up to 48 tokens\n"
  ) in capsys.readouterr().out


def test_lengths_of_a_decoder():
  long = folder.read_model(GOLDEN)
  assert long.rope_factors == "auto"
  assert long.rope.factor == 128 / 48
  for tokens, chosen in ((1, "short"), (48, "short"), (49, "long")):
    found = model_config.for_length(long, tokens)
    assert found == dataclasses.replace(long, rope_factors=chosen)
    # What was chosen once stays, whatever comes.
    assert model_config.for_length(found, 50 - tokens) == found
  short = dataclasses.replace(long, rope_factors="short")
  assert model_config.longest(short) == 48
  assert model_config.longest(long) == 128
  other = ModelConfig(max_positions=7)
  assert model_config.for_length(other, 99) is other
  assert model_config.longest(other) == 7


def test_scores_have_the_factors_of_each_items_length():
  """And those of its own length alone: not those of its neighbours."""
  cfg = folder.read_model(GOLDEN)
  items = [
      scoring.Item((3,) * prompt, (4,) * 20, (5, 6), 20)
      for prompt in (26, 27, 1)  # 48, 49 and 23 tokens
  ]
  found = list(scoring._batches(items, cfg, 8))
  assert [(decoder.rope_factors, alike) for decoder, alike in found] == [
      ("long", [1]), ("short", [2, 0]),
  ]  # fmt: skip
  fixed = dataclasses.replace(cfg, rope_factors="long")
  assert list(scoring._batches(items, fixed, 8)) == [(fixed, [2, 0, 1])]


def test_a_policy_with_short_factors_takes_no_longer_text(model):
  cfg = folder.read_model(model)
  for factors, most in (("short", 48), ("long", 128), ("auto", 128)):
    decoder = dataclasses.replace(cfg, rope_factors=factors)
    form, asked = FormatConfig(), "</think>\n<answer>"
    rules = loaded._rules(model, model, decoder, form, asked)
    assert rules.max_positions == most


OLDER = {"type", "short_factor", "long_factor"}  # all that version 4 allows


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, OLDER),
        ({"amplitude": 1.2}, OLDER | {"attention_factor"}),
        ({"factor": 2.0}, OLDER | {"factor"}),
    ],
)
def test_an_export_in_older_fields(changes, fields, tmp_path):
  """Version 4 reads the factor from lengths, and refuses further fields."""
  cfg = folder.read_model(GOLDEN)
  cfg = dataclasses.replace(cfg, rope=dataclasses.replace(cfg.rope, **changes))
  cfg = checkpoints.rebased(cfg)
  found = positions.older(cfg)
  assert found["rope_scaling"].keys() == fields
  assert found["original_max_position_embeddings"] == 48
  assert (found["rope_theta"], found["partial_rotary_factor"]) == (300.0, 0.75)
  # Version 5 reads the same from old and new fields, and from the old alone.
  raw = families.config_of(cfg).to_dict()
  spellings.write_config(tmp_path, raw, cfg, "float32")
  assert folder.read_model(tmp_path) == cfg
  raw = json.loads((tmp_path / "config.json").read_text())
  del raw["rope_parameters"]
  (tmp_path / "config.json").write_text(json.dumps(raw))
  assert folder.read_model(tmp_path) == cfg


def test_a_model_card_says_where_others_compute_otherwise():
  cfg = folder.read_model(GOLDEN)
  assert export.rotary_note(ModelConfig()) is None
  short = export.rotary_note(dataclasses.replace(cfg, rope_factors="short"))
  assert short.startswith("trained with the short factors of longrope, which")
  assert short.endswith("at most 48 tokens; in vLLM, set max_model_len to 48")
  long = export.rotary_note(dataclasses.replace(cfg, rope_factors="long"))
  assert "transformers has short ones for sequences of at most 48" in long

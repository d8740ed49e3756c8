"""The committed configurations, and a run of text from start to export."""

import dataclasses
import json
import shutil

import pytest
import runs
import texts
from test_published import no_network

from iapo_jax.config import formats, presets
from iapo_jax.config import parsing as config_lib
from iapo_jax.config import rules as config_rules
from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import tokenizer
from iapo_jax.run import assembly, logs, sources, trainer, workdir
from iapo_jax.tools import comparison, export


def config_file(name):
  return runs.module(f"configs/{name}.py")


def test_tasks_of_sums_differ_in_their_sums_and_sizes_alone():
  plain, mixed, slips = map(config_file, ("arithmetic", "mixed", "slips"))
  variants = presets.read("sums")["VARIANTS"]
  for variant in (None, *variants):
    base = config_lib.flatten(config_lib.parse(plain.get_config(variant)))
    assert base["data.arithmetic.min_operands"] == 0
    assert base["data.arithmetic.slip_rate"] == 0
    for module in (mixed, slips):
      other = config_lib.flatten(config_lib.parse(module.get_config(variant)))
      changed = {name for name in base if base[name] != other[name]}
      kinds = {name.split(".")[0] for name in changed}
      # Of methods only those with lengths of their own go by the longest.
      sized = {"dapo": {"reward"}, "s_grpo": {"select"}}.get(variant, set())
      ours = {"data", "model", "rollout", "evaluation", "warm_start"}
      assert kinds <= ours | sized
  for module in (plain, mixed, slips):
    with pytest.raises(ConfigError) as error:
      module.get_config("ppo")
    assert str(error.value) == (
        f"variant 'ppo': 'ppo' must be exactly one of {', '.join(variants)}"
    )


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("qwen_math", ("0.5b", "1.5b", "7b")),
        ("llama_math", ("1b", "3b", "8b")),
        ("gemma_math", ("1b", "2b", "9b")),
    ],
)
def test_every_variant_is_a_configuration(name, sizes):
  module = config_file(name)
  found = {
      module.get_config(f"{size}-{data}-{credit}").model.pretrained
      for size in sizes
      for data in ("gsm8k", "math500", "dapo")
      for credit in ("paper", "to_go", "grpo", "faithful", "length_penalty")
      if config_lib.parse(module.get_config(f"{size}-{data}-{credit}"))
  }
  assert len(found) == 3
  first = f"{sizes[0]}-gsm8k-paper"
  assert module.get_config() == module.get_config(first)
  # In any order, the rest by default.
  assert module.get_config(f"to_go-{sizes[1]}") == module.get_config(
      f"{sizes[1]}-gsm8k-to_go"
  )


def test_every_variant_of_models_that_think():
  module = config_file("thinking_math")
  found = {}
  for name in module.MODELS:
    for data in ("gsm8k", "math500", "dapo"):
      for method in set(module.METHODS) - {"dapo"}:  # a data set, too
        c = config_lib.parse(module.get_config(f"{name}-{data}-{method}"))
        found[c.model.pretrained] = c
        assert c.format == formats.of("thinker")
        assert c.probe.elicitation == formats.elicitation_of("thinker")
        assert (c.data.prompt, c.data.instructions) == ("instructed", "user")
        assert (c.rollout.max_tokens, c.probe.stride) == (8192, 64)
        assert c.rollout.temperature == 1
        e = c.evaluation
        assert (e.temperature, e.top_p) == (0.6, 0.95)
        assert e.top_k == (20 if name.startswith("qwen3") else 0)
        sharded = c.mesh.fsdp == -1
        assert sharded == name.endswith(("_4b", "_7b", "_3b"))
  assert len(found) == 6
  assert module.get_config() == module.get_config("qwen3_0.6b-gsm8k-paper")
  with pytest.raises(ConfigError, match="'faithful' is unknown"):
    module.get_config("faithful")
  # The longest completion costs what a right answer is worth.
  chance = config_lib.parse(module.get_config("chance"))
  assert chance.credit.cost * 8192 == 1


@pytest.mark.parametrize(
    ("variant", "part"),
    [("2b", "2b"), ("gsm8k-dapo", "dapo"), ("0.5b-0.5b", "0.5b"), ("-", "")],
)
def test_other_variants_are_refused(variant, part):
  rule = f"{part!r} is unknown or repeats a kind; the kinds are"
  with pytest.raises(ConfigError, match=rule):
    config_file("qwen_math").get_config(variant)


def test_the_papers_numbers():
  """METHOD of the paper and its code, field by field."""
  c = config_lib.parse(config_file("qwen_math").get_config())
  assert c.model.pretrained == "Qwen/Qwen2.5-0.5B-Instruct"
  assert (c.seed, c.group_size, c.sequences_per_step) == (42, 8, 96)
  assert (c.rollout.temperature, c.rollout.max_tokens) == (1.0, 2048)
  assert (c.data.task, c.data.split) == ("gsm8k", "published")
  assert (c.data.max_prompt_tokens, c.data.validation_problems) == (512, 50)
  assert (c.data.prompt, c.data.chat_template) == ("instructed", True)
  o = c.optimizer
  assert (o.learning_rate, o.b1, o.b2) == (1e-6, 0.9, 0.99)
  assert (o.clip_norm, o.weight_decay, o.decay) == (1.0, 0.0, False)
  loss = c.loss
  assert (loss.clip_low, loss.clip_high) == (0.2, 0.28)
  assert (loss.kl_weight, loss.num_updates) == (0.001, 1)
  assert loss.aggregation == "token_mean"
  assert c.credit.mode == "paper"
  assert (c.credit.info_weight, c.credit.explore_weight) == (1.0, 1.0)
  r = c.reward
  assert (r.correct, r.wrong) == (1.0, -1.0)
  assert (r.well_formed, r.malformed) == (0.5, -0.5)
  assert (c.evaluation.samples, c.evaluation.checkpoint) == (32, "best")
  assert c.warm_start.num_steps == 0
  seven = config_lib.parse(config_file("qwen_math").get_config("7b-dapo"))
  assert seven.sequences_per_step == 128
  assert (seven.credit.info_weight, seven.credit.explore_weight) == (
      1e-6, 1e-6,
  )  # fmt: skip
  assert (seven.data.first_rows, seven.data.split) == (7000, "80_20")
  assert (c.model.dtype, c.reward.grader) == ("bfloat16", "host")


@pytest.mark.parametrize(
    ("variant", "info", "explore"),
    [
        # The best weights that the authors list.
        ("0.5b-gsm8k", 1, 1), ("0.5b-math500", 1, 1e-6),
        ("0.5b-dapo", 1e-6, 1e-2), ("1.5b-gsm8k", 1, 1),
        ("1.5b-math500", 1e-6, 1e-6), ("1.5b-dapo", 1e-2, 1e-4),
        ("7b-gsm8k", 1, 1e-6), ("7b-math500", 1e-6, 1e-6),
        ("7b-dapo", 1e-6, 1e-6), ("7b-dapo-faithful", 1e-6, 1e-6),
        ("7b-dapo-to_go", 2, 0),
    ],
)  # fmt: skip
def test_the_weights_of_each_variant(variant, info, explore):
  c = config_lib.parse(config_file("qwen_math").get_config(variant))
  assert (c.credit.info_weight, c.credit.explore_weight) == (info, explore)
  mode = variant.split("-")[2:] or ["paper"]
  assert [c.credit.mode] == mode
  # One pass, or four of 350 problems.
  drawn = {"gsm8k": 7423, "math500": 1400, "dapo_math": 5550}[c.data.task]
  assert c.num_steps == drawn // c.prompts_per_step


def test_chances_are_of_whole_answers():
  c = config_lib.parse(config_file("qwen_math").get_config("gsm8k-chance"))
  assert (c.probe.estimator, c.probe.answer_tokens) == ("gold_chance", 8)
  # 2,048 tokens cost about the 1 that a chance can rise by; not 20 times it.
  assert 1 <= c.credit.cost * c.rollout.max_tokens < 1.1


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_the_default_batch_divides_over_common_devices(devices):
  c = config_lib.parse(config_file("qwen_math").get_config())
  # Qwen2.5-0.5B's own sizes.
  sizes = {
      "vocab_size": 151_936, "num_heads": 14, "num_kv_heads": 2,
      "d_model": 896, "mlp_dim": 4864,
  }  # fmt: skip
  for name, value in sizes.items():
    object.__setattr__(c.model, name, value)
  assert config_rules.mesh_shape(c, devices) == (devices, 1, 1)


def test_the_literal_command_without_a_network(monkeypatch, tmp_path):
  """One line tells of all that is missing, and how to point at it."""
  no_network(monkeypatch)
  config = config_file("qwen_math").get_config()
  config.data.prepared_dir = str(tmp_path / "prepared")
  config.model.pretrained += "-never-fetched"
  with pytest.raises(ConfigError) as error:
    trainer.train(config_lib.parse(config), tmp_path / "run")
  message = str(error.value)
  assert "\n" not in message
  assert "Qwen2.5-0.5B-Instruct-never-fetched" in message
  assert "--config.model.pretrained=FOLDER" in message
  assert "data 'gsm8k': is not prepared in" in message
  assert "--config.data.source_dir=FOLDER" in message
  assert not (tmp_path / "run").exists()


def shrink(config, place, **overrides):
  """The same configuration at the size of a test."""
  changes = {
      "data.source_dir": str(place), "data.validation_problems": 4,
      "data.prepared_dir": str(place / "prepared"),
      "data.max_prompt_tokens": 400, "rollout.max_tokens": 24,
      "prompts_per_step": 8, "group_size": 2, "num_steps": 2,
      "loss.micro_batches": 1, "loss.head_chunk": 8,
      "evaluation.every": 2, "evaluation.problems": 4,
      "evaluation.samples": 2, "evaluation.batch_size": 16,
      "log.samples_every": 1,
  }  # fmt: skip
  for name, value in (changes | overrides).items():
    config.update_from_flattened_dict({name: value})
  return config_lib.parse(config)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  folder = tmp_path_factory.mktemp("texts")
  texts.write_gsm8k(folder)
  texts.write_tokenizer(folder / "tokenizer")
  return folder


@pytest.fixture(scope="module")
def smoke(place):
  """A finished run of configs/gsm8k_smoke.py, warm start and all."""
  config = config_file("gsm8k_smoke").get_config()
  cfg = shrink(
      config,
      place,
      **{
          "data.tokenizer": str(place / "tokenizer"), "data.first_rows": 0,
          "data.test_problems": 0, "warm_start.num_steps": 6,
          "warm_start.batch_size": 16, "rollout.max_tokens": 60,
          "model.num_heads": 2, "evaluation.samples": 1,
          "model.d_model": 32, "model.mlp_dim": 64,
      },
  )  # fmt: skip
  trainer.train(cfg, place / "run")
  return place / "run", cfg


def test_a_run_of_text(smoke):
  run, cfg = smoke
  summary = json.loads((run / "summary.json").read_text())
  assert summary["problems"] == 8
  assert "note" not in summary
  assert summary["skipped"] == 0
  learned = logs.stage_metrics(run, "warm_start")
  assert len(learned) == 6
  assert learned[-1]["sft/nll"] < learned[0]["sft/nll"]
  steps = logs.stage_metrics(run, "rl")
  assert [line["step"] for line in steps] == [1, 2]
  for line in steps:
    assert line["reward/timeouts"] == 0
    assert -1.5 <= line["reward/total"] <= 1.5
  # Completions as they were, in the tokenizer's own words.
  (first, *_) = logs.read(run, logs.SAMPLES)
  assert "Ada has" in first["prompt"]
  # The same again goes on, here: has nothing to do.
  trainer.train(cfg, run)


def test_other_data_cannot_go_on_with_a_run(smoke, place, tmp_path):
  run, _ = smoke
  copy = tmp_path / "run"
  shutil.copytree(run, copy)
  (copy / "summary.json").unlink()
  other = tmp_path / "texts"
  texts.write_gsm8k(other, train=31)
  changed = json.loads((run / "config.json").read_text())
  nested = config_lib.default()
  nested.update_from_flattened_dict(
      {k: v for k, v in changed.items() if not isinstance(v, list)}
  )
  nested.data.source_dir = str(other)
  with pytest.raises(ConfigError) as error:
    trainer.train(config_lib.parse(nested), copy)
  assert "the train problems are not those" in str(error.value)
  # The same files from another place are the same data.
  moved = tmp_path / "moved"
  shutil.copytree(place / "gsm8k", moved / "gsm8k")
  nested.data.source_dir = str(moved)
  trainer.train(config_lib.parse(nested), copy)
  assert (copy / "summary.json").exists()


def test_it_is_judged_on_another_data_set(smoke, tmp_path):
  run, _ = smoke
  rows = [{"problem": f"Find {i}.", "answer": str(i)} for i in range(6)]
  texts.write_jsonl(tmp_path / "test.jsonl", rows)
  contestants = comparison.load(
      [run], "last", data={"task": "aime24", "source_dir": str(tmp_path)}
  )
  tables = contestants[0].parts.task.tables
  assert {name: len(table.kept) for name, table in tables.items()} == {
      "test": 6,
  }  # fmt: skip
  ((results,),) = comparison.judge(
      contestants, split="test", problems=100, seeds=[0]
  )
  assert results["problems"] == 6
  (record,) = comparison.report(contestants, [[results]], "test")
  assert (record["task"], record["skipped"]) == ("aime24", 0)
  with pytest.raises(ConfigError, match="aime24 has only these splits: test"):
    comparison.judge(contestants, split="train", problems=1, seeds=[0])


def test_each_run_is_graded_in_its_own_format(smoke, tmp_path):
  run, _ = smoke
  other = runs.unfinished_copy(run, tmp_path / "run")
  runs.edit(other / "config.json", **{"format.lenient": True})
  ours, theirs = comparison.load([run, other], "last")
  assert not ours.parts.cfg.format.lenient
  assert theirs.parts.cfg.format.lenient
  assert ours.sampler is not theirs.sampler


def test_a_configuration_of_an_earlier_version(smoke, tmp_path):
  """`instructed` had another name, and formats were not configured."""
  run, _ = smoke
  saved = json.loads((run / "config.json").read_text())
  older = {k: v for k, v in saved.items() if not k.startswith("format.")}
  older["data.prompt"] = "think_answer"
  del older["data.system"], older["data.chat_kwargs"]
  (tmp_path / "config.json").write_text(json.dumps(older))
  found = workdir.load_config(tmp_path)
  assert found.data.prompt == "instructed"
  expected = workdir.load_config(run)
  data = dataclasses.replace(expected.data, prompt="instructed")
  assert found == dataclasses.replace(expected, data=data)


def test_its_own_task_by_name_keeps_its_splits(smoke):
  """Of an 80/20 run the published test problems were train for the most."""
  run, cfg = smoke
  (contestant,) = comparison.load([run], "last", data={"task": cfg.data.task})
  assert contestant.parts.cfg.data == cfg.data


def test_it_is_judged_on_its_own_data_only(smoke, tmp_path):
  run, _ = smoke
  texts.write_gsm8k(tmp_path, test=7)
  with pytest.raises(ConfigError, match="the test problems are not those"):
    comparison.load([run], "last", data={"source_dir": str(tmp_path)})


def test_it_is_exported_with_its_tokenizer(smoke, place, tmp_path):
  run, _ = smoke
  names = export.export(sources.last(run), tmp_path / "model")
  assert "model.safetensors" in names
  exported = tokenizer.load(tmp_path / "model")
  assert exported.chat_template == texts.CHAT
  assert (tmp_path / "model" / "tokenizer.json").read_bytes() == (
      place / "tokenizer" / "tokenizer.json"
  ).read_bytes()


@pytest.mark.full
def test_the_real_configuration_trains(smoke, place, tmp_path):
  """configs/qwen_math.py: chat template, bf16, remat, probes, grading."""
  run, _ = smoke
  model = tmp_path / "model"
  export.export(sources.last(run), model)
  cfg = shrink(
      config_file("qwen_math").get_config(),
      place,
      **{"model.pretrained": str(model), "data.max_gold_tokens": 16},
  )
  trainer.train(cfg, tmp_path / "run")
  assert len(logs.stage_metrics(tmp_path / "run", "rl")) == 2
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert summary["samples"] == 2
  (first, *_) = logs.read(tmp_path / "run", logs.SAMPLES)
  assert first["prompt"].startswith("<|im_start|>system\nThink the problem")
  assert first["prompt"].endswith("<|im_start|>assistant\n<think>")


def test_math500_boxes_its_answers_and_is_said_to_be_split(
    smoke, tmp_path, capsys
):
  run, _ = smoke
  model = tmp_path / "model"
  export.export(sources.last(run), model)
  rows = [
      {"problem": f"Find ${i}/2$.", "answer": rf"\frac{{{i}}}{{2}}"}
      for i in range(40)
  ]
  texts.write_jsonl(tmp_path / "test.jsonl", rows)
  cfg = shrink(
      config_file("qwen_math").get_config("math500-to_go"),
      tmp_path,
      **{"model.pretrained": str(model), "data.max_gold_tokens": 16},
  )
  trainer.train(cfg, tmp_path / "run", dry_run=True)
  said = capsys.readouterr().out
  assert "train      28 prompts" in said
  assert "test       8 prompts" in said
  assert "of one published split of math500" in said
  task = assembly.assemble(cfg).task
  table = task.tables["train"].prompts
  shown = task.tokenizer.decode(table.tokens[0, : table.lengths[0]])
  assert "<answer>\\boxed{4}</answer>" in shown
  asked = task.tokenizer.decode(list(task.vocabulary.elicitation))
  assert asked == "</think>\n<answer>\\boxed{"

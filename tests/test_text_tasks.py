"""Tasks of text: splits, prompts, demonstrations, limits."""

import functools
import json

import numpy as np
import pytest
import texts
import tiny

from iapo_jax.config import parsing as config_lib
from iapo_jax.config.formats import FormatConfig
from iapo_jax.config.schema import WarmStartConfig
from iapo_jax.core.errors import ConfigError
from iapo_jax.data import examples, prompts, published, splits
from iapo_jax.data.examples import Example
from iapo_jax.hf import tokenizer
from iapo_jax.rewards import text

TAGS = FormatConfig()


def data_config(**settings):
  return config_lib.parse({"data": {"task": "gsm8k"} | settings}).data


def rows_of(count, prefix="q"):
  return [Example(f"{prefix}{i}", str(i)) for i in range(count)]


def test_published_splits():
  rows = {"train": rows_of(40), "test": rows_of(10, "t")}
  data = data_config(validation_problems=8)
  made = splits.make_splits(rows, data)
  assert made["test"] == rows["test"]
  assert len(made["validation"]) == 8
  # Validation comes out of train; nothing is lost, and the order is kept.
  together = made["train"] + made["validation"]
  assert sorted(together, key=rows["train"].index) == rows["train"]
  assert made["train"] == [r for r in rows["train"] if r in made["train"]]
  assert splits.make_splits(rows, data) == made
  other = data_config(validation_problems=8, split_seed=1)
  assert splits.make_splits(rows, other)["validation"] != made["validation"]


def test_first_rows_and_test_problems():
  rows = {"train": rows_of(40), "test": rows_of(10, "t")}
  data = data_config(validation_problems=2, first_rows=10, test_problems=3)
  made = splits.make_splits(rows, data)
  together = {row.question for row in made["train"] + made["validation"]}
  assert together == {f"q{i}" for i in range(10)}
  assert made["test"] == rows["test"][:3]
  rule = "first_rows = 41: must be at most 40, all problems of gsm8k"
  with pytest.raises(ConfigError, match=rule):
    splits.make_splits(rows, data_config(first_rows=41))
  rule = "test_problems = 11: must be at most 10, all problems of gsm8k"
  with pytest.raises(ConfigError, match=rule):
    splits.make_splits(
        rows, data_config(validation_problems=2, test_problems=11)
    )
  with pytest.raises(ConfigError, match="less than 40, all train problems"):
    splits.make_splits(rows, data_config(validation_problems=40))


def test_eighty_twenty():
  rows = {"test": rows_of(100)}
  data = data_config(task="math500", split="80_20", validation_problems=5)
  made = splits.make_splits(rows, data)
  assert {name: len(split) for name, split in made.items()} == {
      "train": 75, "validation": 5, "test": 20,
  }  # fmt: skip
  everything = [row for split in made.values() for row in split]
  assert sorted(everything, key=rows["test"].index) == rows["test"]
  assert made["test"] != rows["test"][80:]  # drawn
  assert "one published split of math500" in splits.note(data)
  assert splits.note(data_config()) is None
  rule = r"has published splits \(train, test\); use published"
  with pytest.raises(ConfigError, match=rule):
    splits.make_splits(
        {"train": rows_of(5), "test": rows_of(5)},
        data_config(split="80_20"),
    )


def named(*questions):
  return [Example(question, "1") for question in questions]


def test_repeated_problems_are_counted_but_for_white_space():
  found = splits.count_repeats({
      "train": named("a b", "a  b", "c", "c\n", "d"),
      "test": named("e", "a\tb", "f", "f", " v ", "A b"),
      "validation": named("v", "d"),
  })
  assert found == {
      "train": splits.Repeats(5, within=2, trained=0, first=""),
      "validation": splits.Repeats(2, within=0, trained=1, first="d"),
      "test": splits.Repeats(6, within=1, trained=2, first="a b"),
  }
  assert splits.describe_repeats(found) == (
      "2 of 5 train, 0 of 2 validation, 1 of 6 test problems repeat another of"
      " their split; 1 validation problems are also in train; 2 test problems"
      " are also in train or validation"
  )
  only = splits.count_repeats({"test": named("a", "a")})
  assert splits.describe_repeats(only) == (
      "1 of 2 test problems repeat another of their split"
  )


def test_test_problems_that_are_train_problems():
  questions = [f"What is {i}?" for i in range(200)]

  def repeats(shared):
    test = [f"Why {i}?" for i in range(200 - shared)] + questions[:shared]
    rows = {"train": named(*questions), "test": named(*test)}
    return splits.count_repeats(rows)

  data = data_config(task="own", source_dir="x")
  splits.check_overlap(repeats(2), data)  # 1 % is allowed
  assert splits.note(data, repeats(2)) is None
  with pytest.raises(ConfigError) as error:
    splits.check_overlap(repeats(3), data)
  assert str(error.value) == (
      "config.data.max_overlap = 0.01: 3 of 200 test problems are also train or"
      " validation problems, the first is 'What is 0?'; remove them from one of"
      " the splits, or allow them with --config.data.max_overlap=1"
  )
  allowing = data_config(task="own", source_dir="x", max_overlap=1.0)
  splits.check_overlap(repeats(200), allowing)
  assert splits.note(allowing, repeats(200)) == (
      "200 of 200 test problems of own are also train or validation problems"
  )
  splits.check_overlap({}, data)
  splits.check_overlap(splits.count_repeats({"train": named("a")}), data)


def test_what_cannot_be_trained_on():
  for task, missing in (("math500", "train"), ("dapo_math", "test")):
    data = data_config(task=task, validation_problems=2)
    rows = {"train" if task == "dapo_math" else "test": rows_of(10)}
    with pytest.raises(ConfigError, match=f"has no published {missing}"):
      splits.check_trainable(splits.make_splits(rows, data), data)
  few = data_config(task="math500", first_rows=5)
  rule = "first_rows = 5: math500 has no published train problems"
  with pytest.raises(ConfigError, match=rule):
    splits.make_splits({"test": rows_of(9)}, few)


def prompt_of(question="Q?", task="gsm8k", elicitation="</think>\n<answer>",
              **settings):  # fmt: skip
  def render(messages):
    turns = "".join(f"[{m['role']}] {m['content']} " for m in messages)
    return f"{turns}[assistant] "

  return prompts.of(
      question,
      source=published.DATA_SETS[task],
      form=TAGS,
      elicitation=elicitation,
      data=data_config(task=task, **settings),
      render=render,
  )


@pytest.mark.parametrize(
    ("rendered", "opened"),
    [
        ("assistant\n", "assistant\n<think>"),
        ("assistant\n<think>\n", "assistant\n<think>\n"),
        # The thinking of an earlier turn is left alone.
        ("<think></think> 4 user\n", "<think></think> 4 user\n<think>"),
    ],
)
def test_a_template_opens_the_thinking_once(rendered, opened):
  assert prompts.chat("Q?", TAGS, "", lambda _: rendered) == opened


def test_prompts_word_by_word():
  assert prompt_of() == "Q?\n<think>"
  assert prompt_of(chat_template=True) == "[user] Q? [assistant] <think>"
  told = (
      "Think the problem through between <think> and </think>, then give"
      " nothing but the final answer between <answer> and </answer>."
  )
  worked = "<think>Two and two more make four.</think>\n<answer>4</answer>"
  form = "The answer is a single integer.\n\n"
  assert prompt_of(prompt="instructed", chat_template=True) == (
      f"[system] {told} [user] {form}What is 2 + 2? [assistant] {worked}"
      f" [user] {form}Q? [assistant] <think>"
  )
  assert prompt_of(
      prompt="instructed", chat_template=True, instructions="user"
  ) == (
      f"[user] {told} {form}What is 2 + 2? [assistant] {worked}"
      f" [user] {form}Q? [assistant] <think>"
  )
  assert prompt_of(prompt="instructed") == (
      f"{told}\n\n{form}What is 2 + 2?\n\n{worked}\n\n{form}Q?\n<think>"
  )


def test_a_template_that_leaves_something_out():
  """Some cut the thinking out of earlier turns: no example would be left."""
  def strip(messages):
    return " ".join(m["content"].split("</think>")[-1] for m in messages)

  with pytest.raises(ConfigError, match="the chat template leaves out part"):
    prompts.of(
        "Q?",
        source=published.DATA_SETS["gsm8k"],
        form=TAGS,
        elicitation="</think>\n<answer>",
        data=data_config(prompt="instructed", chat_template=True),
        render=strip,
    )


def test_prompts_of_other_answers():
  boxed = prompt_of(
      task="math500",
      prompt="instructed",
      elicitation="</think>\n<answer>\\boxed{",
  )
  assert "an expression in LaTeX. Write it as \\boxed{...}." in boxed
  assert "</think>\n<answer>\\boxed{4}</answer>" in boxed
  letters = prompt_of(task="commonsense_qa", prompt="instructed")
  assert "The answer is the letter of one choice." in letters
  assert "<answer>B</answer>" in letters


@pytest.mark.parametrize(
    ("elicitation", "closing"),
    [
        ("</think>\n<answer>", "</answer>"),
        ("</think>\n<answer>\\boxed{", "}</answer>"),
        ("</think><answer>\\boxed{\\text{", "}}</answer>"),
    ],
)
def test_what_ends_an_answer(elicitation, closing):
  assert examples.closing(TAGS, elicitation) == closing


def test_demonstrations_of_worked_solutions():
  example = published.from_gsm8k(texts.row(1))
  demonstrate = functools.partial(
      examples.demonstration, example, form=TAGS,
      elicitation="</think>\n<answer>",
  )
  whole = demonstrate(
      np.random.default_rng(0),
      WarmStartConfig(early_share=0.0, early_full_share=0.0),
  )
  # 3 boxes of 4 nails.
  assert "".join(piece.text for piece in whole) == (
      "Each box has 4 nails.\nThere are 3 * 4 = 12 nails.</think>\n"
      "<answer>12</answer>"
  )
  assert all(piece.learned for piece in whole)
  cuts, full = set(), 0
  for seed in range(300):
    pieces = demonstrate(
        np.random.default_rng(seed),
        WarmStartConfig(early_share=1.0, early_full_share=0.1),
    )
    reasoning = pieces[0].text.removesuffix("</think>\n<answer>")
    assert example.solution.startswith(reasoning)
    assert reasoning != example.solution
    assert [piece.text for piece in pieces[1:]] == ["12", "</answer>"]
    assert pieces[1].learned
    assert pieces[0].learned == pieces[2].learned
    full += pieces[0].learned
    cuts.add(len(reasoning.split()))
  # The solution has 13 words: cut after none to after 12.
  assert cuts == set(range(13))
  # 300 draws at 0.1: 30 expected, standard deviation 5.2.
  assert 10 < full < 60


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Data, tokenizer and the configuration that reads them."""
  folder = tmp_path_factory.mktemp("texts")
  texts.write_gsm8k(folder)
  texts.write_tokenizer(folder / "tokenizer")
  return folder


def small(place, **settings):
  base = config_lib.default()
  base.data.update({
      "task": "gsm8k",
      "source_dir": str(place),
      "prepared_dir": str(place / "prepared"),
      "validation_problems": 4,
      "max_prompt_tokens": 64,
      "max_gold_tokens": 6,
  })
  base.reward.grader = "host"
  base.rollout.max_tokens = 64
  for name, value in settings.items():
    base.update_from_flattened_dict({name.replace("__", "."): value})
  return config_lib.parse(base)


def load_task(place, **settings):
  return tiny.load_task(small(place, **settings), None, place / "tokenizer")


def test_a_task_of_text(place):
  task = load_task(place, warm_start__num_steps=1)
  table = task.tables["train"]
  assert len(table.kept) == 28
  for i in (0, 7, 27):
    record, problem = table.record(i), task.problems["train"][i]
    shown = task.tokenizer.decode(record["tokens"][: record["lengths"]])
    assert shown == f"{problem.question}\n<think>"
    gold = record["gold"][: record["gold_lengths"]]
    assert task.tokenizer.decode(gold) == problem.answer
  cfg = small(place)
  record = task.demonstration(3, np.random.default_rng(1), cfg)
  learned = record["completion"][record["learned"]]
  shown = tokenizer.decode(task.tokenizer, learned.tolist())
  assert shown.endswith("</answer><|im_end|>")
  assert text.is_well_formed(shown.removesuffix("<|im_end|>"), TAGS)
  assert set(task.fingerprint) == {"train", "validation", "test"}


def test_solutions_that_do_not_fit(place):
  limits = {"warm_start__num_steps": 1, "rollout__max_tokens": 27}
  with pytest.raises(ConfigError) as error:
    load_task(place, **limits)
  assert "max_tokens = 27: " in str(error.value)
  assert "of 28 worked solutions are longer" in str(error.value)
  task = load_task(place, data__overlong="skip", **limits)
  assert 0 < len(task.demonstrable) < 28
  for index in task.demonstrable:
    cfg = small(place, **limits, warm_start__early_share=0.0)
    task.demonstration(int(index), np.random.default_rng(0), cfg)
  with pytest.raises(ConfigError, match="no worked solution fits"):
    load_task(
        place, data__overlong="skip", warm_start__num_steps=1,
        rollout__max_tokens=8,
    )  # fmt: skip


def test_settings_that_go_not_together(place):
  for settings, message in (
      ({"data__prompt": "instructed", "data__overlong": "truncate_left"},
       "which need the beginning"),
      ({"data__task": "arithmetic"}, r"source_dir = .*: has no effect"),
      ({"data__arithmetic__operands": 3}, "arithmetic = .*: has no effect"),
      ({"data__instructions": "user"}, "needs data.prompt instructed"),
      ({"data__split": "half"}, "must be one of published, 80_20"),
  ):  # fmt: skip
    with pytest.raises(ConfigError, match=message):
      small(place, **settings)
  rule = "tokenizer = '': gsm8k needs a tokenizer"
  with pytest.raises(ConfigError, match=rule):
    tiny.load_task(small(place))


def test_problems_without_a_solution_are_not_demonstrated(tmp_path, place):
  rows = [
      {"problem": f"Find {i}.", "answer": str(i),
       "solution": "So it is." if i % 2 else ""}
      for i in range(20)
  ]  # fmt: skip
  texts.write_jsonl(tmp_path / "test.jsonl", rows)
  task = load_task(
      place, data__task="math500", data__source_dir=str(tmp_path),
      data__split="80_20", warm_start__num_steps=5,
  )  # fmt: skip
  train = task.problems["train"]
  assert task.demonstrable.tolist() == [
      i for i, problem in enumerate(train) if problem.solution
  ]
  assert 0 < len(task.demonstrable) < len(train)


def write_own(folder, rows, **changes):
  """Twelve rows of train with `changes`, and four others of test."""
  for split, part in (("train", rows[:12]), ("test", rows[12:])):
    texts.write_jsonl(folder / f"{split}.jsonl", [x | changes for x in part])
  return {
      "data__task": "own", "data__source_dir": str(folder),
      "data__validation_problems": 2, "warm_start__num_steps": 5,
  }  # fmt: skip


OWN = [{"question": f"What is {i}?", "answer": i} for i in range(16)]


def test_own_rows_without_a_solution(tmp_path, place):
  for solution in (None, "", " "):
    settings = write_own(tmp_path, OWN, solution=solution)
    with pytest.raises(ConfigError) as error:
      load_task(place, **settings)
    assert str(error.value) == (
        "config.warm_start.num_steps = 5: none of 10 train problems of own has"
        " a worked solution to learn from; give them a field solution, or set"
        " it to 0"
    )
  assert load_task(place, **settings | {"warm_start__num_steps": 0})


def test_prompts_and_solutions_of_unknown_words(tmp_path, capsys):
  """A tokenizer of words that the data do not use."""
  words = ["<pad>", "<eos>", "<unk>", "What", "is", "</think>", "<answer>"]
  words += [str(i) for i in range(16)] + ["</answer>"]
  tok = tokenizer.word_tokenizer(
      words, pad="<pad>", eos="<eos>", unknown="<unk>"
  )
  tok.save_pretrained(tmp_path / "tokenizer")
  rows = [row | {"solution": "by and by"} for row in OWN]
  for i, row in enumerate(rows):
    row["question"] = f"What is {i} " if i < 12 else f"Why {i}?"
  settings = write_own(tmp_path, rows) | {
      "probe__elicitation": " </think> <answer> ",
      "data__prepared_dir": str(tmp_path / "prepared"),
  }
  cfg = small(tmp_path, **settings)
  tiny.load_task(cfg, None, tmp_path / "tokenizer")
  told = [
      x for x in capsys.readouterr().out.splitlines() if x.startswith("warning")
  ]
  advice = "set config.data.tokenizer to one that knows their words"
  # `Why 13? <think>` has no known word, `by and by </think> <answer>
  # 3</answer>` has two of six.
  assert told == [
      "warning: of 4 of 4 test prompts the tokenizer does not know most tokens"
      f" (12 of 12 are '<unk>'); {advice}",
      "warning: of 10 of 10 worked solutions the tokenizer does not know most"
      f" tokens (40 of 60 are '<unk>'); {advice}",
  ]


def test_own_solutions_with_tags_are_one_demonstration(tmp_path, place):
  rows = [
      row | {"solution": f"<think>So {i}.</think><answer>{i}</answer>"}
      for i, row in enumerate(OWN)
  ]
  settings = write_own(tmp_path, rows) | {"warm_start__early_share": 0.0}
  task = load_task(place, **settings)
  record = task.demonstration(
      3, np.random.default_rng(0), small(place, **settings)
  )
  shown = tokenizer.decode(
      task.tokenizer, record["completion"][record["learned"]].tolist()
  ).removesuffix("<|im_end|>")
  answer = task.problems["train"][3].answer
  assert shown == f"So {answer}.</think>\n<answer>{answer}</answer>"
  assert text.is_well_formed(shown, TAGS)


def test_a_skipped_row_may_have_any_gold_answer(tmp_path, place):
  """Nothing of it is used; the rows that stay are checked."""
  long = {"question": "What? " * 60, "answer": "12 " * 20}
  settings = write_own(tmp_path, [*OWN[:14], long, long]) | {
      "data__overlong": "skip", "warm_start__num_steps": 0,
  }  # fmt: skip
  table = load_task(place, **settings).tables["test"]
  assert (table.kept.tolist(), table.skipped) == ([0, 1], 2)
  write_own(tmp_path, [*OWN[:14], {"question": "What?", "answer": "12 " * 20}])
  with pytest.raises(ConfigError, match="the gold answer of row 2 has"):
    load_task(place, **settings)


def test_no_solutions_to_learn_from(tmp_path, place):
  rows = [{"problem": f"Find {i}.", "answer": str(i)} for i in range(30)]
  texts.write_jsonl(tmp_path / "test.jsonl", rows)
  with pytest.raises(ConfigError, match="aime24 has no worked solutions"):
    load_task(
        place, data__task="aime24", data__source_dir=str(tmp_path),
        data__split="80_20", warm_start__num_steps=5,
    )  # fmt: skip


def test_a_gold_answer_that_the_tokenizer_cannot_write(tmp_path, place):
  """Graders read gold answers from tokens: what those lose is lost."""
  folder = tmp_path / "tokenizer"
  texts.write_tokenizer(folder)
  parts = json.loads((folder / "tokenizer.json").read_text())
  parts["normalizer"] = {
      "type": "Replace", "pattern": {"String": "1"}, "content": "one",
  }  # fmt: skip
  (folder / "tokenizer.json").write_text(json.dumps(parts))
  with pytest.raises(ConfigError, match=r"answer '21' into '2one'"):
    tiny.load_task(small(place), None, folder)

import dataclasses

import numpy as np
import pytest
import tiny

from iapo_jax.config import parsing as config_lib
from iapo_jax.config.data import ArithmeticConfig, DataConfig
from iapo_jax.config.formats import FormatConfig
from iapo_jax.config.schema import Config, WarmStartConfig
from iapo_jax.core.errors import ConfigError
from iapo_jax.data import arithmetic, pipeline
from iapo_jax.rewards import text

TAGS = FormatConfig()


@pytest.fixture(scope="module")
def task():
  return tiny.load_task()


def pieces(problem, seed=0, **overrides):
  redundancy = overrides.pop("redundancy", 0.8)
  settings = {"early_share": 0.0, "early_full_share": 0.1}
  return arithmetic.demonstration(
      problem,
      ArithmeticConfig(redundancy=redundancy),
      np.random.default_rng(seed),
      WarmStartConfig(**(settings | overrides)),
  )


def test_a_problem_by_hand():
  # 5 + 1 - 5 + 3: running totals 5, 6, 1, 4.
  problem = arithmetic.Problem((5, 1, 5, 3), (1, -1, 1))
  assert problem.totals == (5, 6, 1, 4)
  assert problem.answer == "4"
  assert problem.prompt == "5 b + 1 c - 5 d + 3 = <think>"
  lean = pieces(problem, redundancy=0.0)
  assert "".join(piece.text for piece in lean) == (
      "b 5 + 1 = 6 c 6 - 5 = 1 d 1 + 3 = 4 </think> <answer> 4 </answer>"
  )
  assert all(piece.learned for piece in lean)


def test_splits_share_no_problem_and_are_always_the_same():
  splits = arithmetic.make_splits(ArithmeticConfig())
  sizes = {name: len(split) for name, split in splits.items()}
  assert sizes == {"train": 6000, "validation": 512, "test": 2048}
  distinct = set().union(*splits.values())
  assert len(distinct) == sum(sizes.values())
  assert len({problem.prompt for problem in distinct}) == len(distinct)
  assert splits == arithmetic.make_splits(ArithmeticConfig())
  for problem in distinct:
    assert all(0 <= total <= 15 for total in problem.totals)
    assert all(1 <= number <= 7 for number in problem.numbers)


def test_more_problems_than_there_are():
  # Two operands of 1..2 with totals of 0..4: 1+1, 1+2, 2+1, 2+2, 1-1, 2-1, 2-2.
  tight = ArithmeticConfig(operands=2, max_operand=2, max_total=4)
  with pytest.raises(ConfigError, match=r"the ranges hold 7;"):
    arithmetic.make_splits(tight)


def test_every_demonstration_is_well_formed_right_and_within_bounds(task):
  longest = 0
  for i, problem in enumerate(task.problems["train"][:3000]):
    completion = "".join(piece.text for piece in pieces(problem, seed=i))
    assert text.is_well_formed(completion, TAGS)
    assert text.extract_answer(completion, TAGS) == problem.answer
    longest = max(longest, len(completion.split()) + 1)  # and an EOS
  assert longest <= arithmetic.longest_demonstration(ArithmeticConfig())
  # The bound is one: a chain with every redundancy has this length.
  assert longest == arithmetic.longest_demonstration(ArithmeticConfig())


def test_early_answers_are_cut_chains(task):
  problem = task.problems["train"][0]
  cuts, full = set(), 0
  for seed in range(300):
    opening, answer, closing = pieces(problem, seed=seed, early_share=1.0)
    assert answer.text == f" {problem.answer}"
    assert answer.learned
    assert opening.learned == closing.learned
    full += opening.learned
    cuts.add(len(opening.text.split()) - 2)
  assert min(cuts) == 0
  assert len(cuts) > 20
  # 300 draws at 0.1: 30 expected, standard deviation 5.2.
  assert 10 < full < 60


def test_the_tokenizer_round_trips_and_reloads(task, tmp_path):
  from transformers import AutoTokenizer

  task.tokenizer.save_pretrained(tmp_path)
  again = AutoTokenizer.from_pretrained(tmp_path)
  for problem in task.problems["test"][:100]:
    ids = task.tokenizer.encode(problem.prompt)
    assert task.tokenizer.unk_token_id not in ids
    assert task.tokenizer.decode(ids) == problem.prompt
    assert again.encode(problem.prompt) == ids
  assert task.vocabulary.elicitation == tuple(
      task.tokenizer.encode("</think> <answer>")
  )
  assert task.vocabulary.eos_ids == (again.eos_token_id,)


def test_tables_hold_the_prompts(task):
  table = task.tables["test"]
  for i in (0, 77, 2047):
    record = table.record(i)
    problem = task.problems["test"][i]
    ids = record["tokens"][: record["lengths"]]
    assert task.tokenizer.decode(ids) == problem.prompt
    assert task.tokenizer.decode(record["gold"]) == problem.answer
    assert set(record["tokens"][record["lengths"] :]) <= {
        task.tokenizer.pad_token_id
    }


def tokenise(task, prompts, golds):
  return pipeline.tokenise_prompts(
      task.tokenizer, prompts, golds, DataConfig(), pad_id=0
  )


class TestLimits:
  """Prompts of 3, 5 and 4 words against a limit of 4."""

  prompts = ("1 + 2", "1 + 2 + 3", "1 + 2 =")
  golds = ("3", "6", "3")

  def table(self, task, **settings):
    data = dataclasses.replace(
        DataConfig(), max_prompt_tokens=4, max_gold_tokens=1, **settings
    )
    return pipeline.tokenise_prompts(
        task.tokenizer, self.prompts, self.golds, data, pad_id=0
    )

  def test_error_is_the_default(self, task):
    with pytest.raises(ConfigError) as error:
      self.table(task)
    assert str(error.value) == (
        "config.data.max_prompt_tokens = 4: the prompt of row 1 has 5 tokens;"
        " raise the limit or set config.data.overlong to skip or truncate_left"
    )

  def test_skip_counts(self, task):
    table = self.table(task, overlong="skip")
    assert (table.skipped, table.truncated) == (1, 0)
    np.testing.assert_array_equal(table.kept, [0, 2])
    np.testing.assert_array_equal(table.prompts.lengths, [3, 4])

  def test_truncate_left_counts_and_keeps_the_end(self, task):
    table = self.table(task, overlong="truncate_left")
    assert (table.skipped, table.truncated) == (0, 1)
    assert task.tokenizer.decode(table.prompts.tokens[1]) == "+ 2 + 3"

  def test_nothing_left(self, task):
    data = dataclasses.replace(
        DataConfig(), max_prompt_tokens=1, overlong="skip"
    )
    with pytest.raises(ConfigError, match="none of 3 prompts is within the"):
      pipeline.tokenise_prompts(
          task.tokenizer, self.prompts, self.golds, data, pad_id=0
      )

  def test_no_prompts_at_all(self, task):
    with pytest.raises(ConfigError, match="data: has no prompts"):
      tokenise(task, [], [])

  def test_long_and_empty_golds(self, task):
    with pytest.raises(ConfigError) as error:
      tokenise(task, ["1 + 2"], ["1 2"])
    assert str(error.value) == (
        "config.data.max_gold_tokens = 1: the gold answer of row 0 has 2"
        " tokens; raise the limit"
    )
    with pytest.raises(ConfigError, match="row 0: the gold answer is empty"):
      tokenise(task, ["1"], [""])
    with pytest.raises(ConfigError, match="row 0: the prompt is empty"):
      tokenise(task, [""], ["1"])


def numbers(size, **settings):
  return pipeline.batches(
      size, lambda i: {"i": np.int64(i)}, batch_size=4, seed=0, **settings
  )


def test_an_epoch_holds_every_record_once_in_a_new_order():
  batches = numbers(12)
  epochs = [
      np.concatenate([next(batches)["i"] for _ in range(3)]) for _ in range(2)
  ]
  for epoch in epochs:
    assert sorted(epoch) == list(range(12))
  assert list(epochs[0]) != list(epochs[1])


def test_rows_do_not_depend_on_who_reads_them():
  def random(record, rng):
    return record | {"draw": rng.integers(2**40)}

  whole = numbers(12, augment=random)
  parts = [numbers(12, rows=rows, augment=random) for rows in ([0, 1], [2, 3])]
  for _ in range(5):
    expected = next(whole)
    seen = [next(part) for part in parts]
    for name, values in expected.items():
      together = np.concatenate([part[name] for part in seen])
      np.testing.assert_array_equal(together, values)
    assert len(set(expected["draw"])) == 4


def test_the_position_is_restored():
  batches = numbers(12)
  next(batches)
  state = batches.get_state()
  expected = [next(batches)["i"].tolist() for _ in range(5)]
  other = numbers(12)
  other.set_state(state)
  assert [next(other)["i"].tolist() for _ in range(5)] == expected


def test_demonstrations_are_arrays(task):
  cfg = Config()
  rng = np.random.default_rng(0)
  record = task.demonstration(5, rng, cfg)
  assert record["completion"].shape == (cfg.rollout.max_tokens,)
  count = int(record["learned"].sum())
  words = task.tokenizer.decode(record["completion"][:count])
  assert words.endswith(arithmetic.EOS)


def test_limits_are_checked_before_anything_is_compiled():
  config = config_lib.default()
  config.rollout.max_tokens = 40
  config.warm_start.num_steps = 1
  with pytest.raises(ConfigError) as error:
    tiny.load_task(config_lib.parse(config))
  assert str(error.value) == (
      "config.rollout.max_tokens = 40: the longest demonstration of the task"
      " has 69 tokens; raise the limit"
  )
  config = config_lib.default()
  config.probe.elicitation = "  "
  rule = "elicitation = '  ': must have at least one token"
  with pytest.raises(ConfigError, match=rule):
    tiny.load_task(config_lib.parse(config))
  config.probe.elicitation = "The answer: "
  rule = "text that the tokenizer does not know"
  with pytest.raises(ConfigError, match=rule):
    tiny.load_task(config_lib.parse(config))

"""Sums of several levels, and sums whose results slip."""

import collections
import dataclasses
import hashlib
import re

import numpy as np
import pytest
import tiny

from iapo_jax.config import parsing as config_lib
from iapo_jax.config.data import ArithmeticConfig
from iapo_jax.config.formats import FormatConfig
from iapo_jax.config.schema import WarmStartConfig
from iapo_jax.core.errors import ConfigError
from iapo_jax.data import arithmetic
from iapo_jax.data import task as task_lib
from iapo_jax.hf import tokenizer
from iapo_jax.rewards import text

TAGS = FormatConfig()

SLIPS = ArithmeticConfig(
    slip_rate=0.3, check_rate=0.5, slip_check_rate=0.7
)


def pieces(problem, sums, seed=0, early_share=0.0, early_full_share=0.0):
  return arithmetic.demonstration(
      problem,
      sums,
      np.random.default_rng(seed),
      WarmStartConfig(
          early_share=early_share, early_full_share=early_full_share
      ),
  )


def written(problem, sums, seed=0, **early):
  return "".join(p.text for p in pieces(problem, sums, seed, **early))


def digest(lines):
  return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_task_without_levels_and_slips_is_what_it_was():
  """Digests of what the version before these fields drew."""
  sums = ArithmeticConfig()
  splits = arithmetic.make_splits(sums)
  problems = (
      f"{name} {problem.prompt} {problem.answer}\n"
      for name, split in splits.items()
      for problem in split
  )
  assert digest(problems) == (
      "9bf67df7aad915e2ef883f371fadab445fde2fab53a6af4d63654da67d854d1a"
  )
  demonstrations = (
      f"{piece.text}|{piece.learned}\n"
      for i, problem in enumerate(splits["train"][:500])
      for piece in pieces(problem, sums, i, 0.25, 0.1)
  )
  assert digest(demonstrations) == (
      "db8140d3e8816f7090102ddd40dae6d69f4f0f7ad4e3d0ee39669b82c1d7175d"
  )
  assert "no" not in arithmetic.vocabulary(sums)


class TestLevels:
  """Operands of 1 .. 2, totals of 0 .. 4.

  Of two operands there are 7 problems: 1+1, 1+2, 2+1, 2+2, 1-1, 2-1, 2-2.
  From a total of 0, 1, 2, 3, 4 there are 2, 3, 4, 3, 2 steps, so that of three
  operands there are 4 + 3 + 3 + 2 + 2 + 3 + 2 = 19.
  """

  def splits(self, **sizes):
    return arithmetic.make_splits(
        ArithmeticConfig(
            operands=3, min_operands=2, max_operand=2, max_total=4, **sizes
        )
    )

  def test_every_problem_there_is(self):
    splits = self.splits(
        test_problems=8, validation_problems=4, train_problems=14
    )
    levels = {name: [p.level for p in split] for name, split in splits.items()}
    # The room that 4 + 2 held-out problems of two operands leave is 1.
    assert levels == {
        "test": [2, 3] * 4,
        "validation": [2, 3] * 2,
        "train": [2] + [3] * 13,
    }
    distinct = set().union(*splits.values())
    assert len(distinct) == 26
    for problem in distinct:
      assert all(0 <= total <= 4 for total in problem.totals)

  def test_an_odd_problem_is_of_the_highest_level(self):
    splits = self.splits(
        test_problems=5, validation_problems=1, train_problems=9
    )
    assert [p.level for p in splits["test"]] == [2, 3, 2, 3, 3]
    assert [p.level for p in splits["validation"]] == [3]
    # 7 - 2 - 0 = 5 of two operands are left: more than half of 9.
    assert collections.Counter(p.level for p in splits["train"]) == {2: 4, 3: 5}

  def test_more_operands_than_letters(self):
    with pytest.raises(ConfigError, match="operands = 27: must be at most 26"):
      arithmetic.make_splits(ArithmeticConfig(operands=27))

  def test_more_held_out_than_a_level_holds(self):
    with pytest.raises(ConfigError) as error:
      self.splits(test_problems=10, validation_problems=4, train_problems=1)
    assert str(error.value) == (
        "config.data.arithmetic.test_problems = 10: needs 5 problems with 2"
        " operands for test, 2 for validation and at least 1 for train, but the"
        " ranges hold 7; lower test_problems or validation_problems, or raise"
        " max_total"
    )

  def test_more_to_train_on_than_is_left(self):
    with pytest.raises(ConfigError) as error:
      self.splits(test_problems=8, validation_problems=4, train_problems=15)
    assert str(error.value) == (
        "config.data.arithmetic.train_problems = 15: must be at most 14, the"
        " distinct problems that validation and test leave"
    )

  def test_prompts_and_chains_are_as_long_as_their_problems(self):
    two = arithmetic.Problem((2, 1), (-1,))
    assert two.prompt == "2 b - 1 = <think>"
    lean = ArithmeticConfig(operands=3, min_operands=2, redundancy=0.0)
    assert written(two, lean) == "b 2 - 1 = 1 </think> <answer> 1 </answer>"
    assert arithmetic.vocabulary(lean)[-18:-16] == ["b", "c"]


def walk(problem, sums, words):
  """Reads a chain as docs say it is; (slipped, checked) of every step.

  Raises where it is anything else.
  """
  words, found, total = list(words), [], problem.numbers[0]

  def take(expected):
    taken = [words.pop(0) for _ in expected.split()]
    assert " ".join(taken) == expected

  def may_take(expected):
    if words[: len(expected.split())] == expected.split():
      take(expected)
      return True
    return False

  for name, sign, number in zip(
      "bcdefg", problem.signs, problem.numbers[1:], strict=False
  ):
    clause = f"{total} {'+' if sign > 0 else '-'} {number} ="
    right = min(max(total + sign * number, 0), sums.max_total)
    take(f"{name} {clause}")
    total = int(words.pop(0))
    slipped = total != right
    checked = may_take(f"check {clause} {total}")
    if checked:
      take(f"no so total {right} ." if slipped else "yes")
      total = right
    found.append((slipped, checked))
    may_take(f"so total {total} .")
    may_take("hmm wait .")
  may_take(f"again total {total} .")
  take(f"</think> <answer> {total} </answer>")
  assert not words
  return found


@pytest.fixture(scope="module")
def problems():
  return arithmetic.make_splits(SLIPS)["train"]


def test_a_slip_without_a_check_is_gone_on_from():
  # 2 - 1 = 1 slips to z, and z + 3 is kept within 0 .. 3.
  problem = arithmetic.Problem((2, 1, 3), (-1, 1))
  sums = ArithmeticConfig(
      operands=3, max_operand=3, max_total=3, redundancy=0.0, slip_rate=1.0
  )
  stated = set()
  for seed in range(40):
    found = re.fullmatch(
        r"b 2 - 1 = (\d) c \1 \+ 3 = (\d) </think> <answer> \2 </answer>",
        written(problem, sums, seed),
    )
    stated.add(found.groups())
  # Never 1; never 3, which is every 0 .. 3 plus 3, kept within 0 .. 3.
  assert stated == {(a, b) for a in "023" for b in "012"}


def test_a_check_repairs_a_slip():
  problem = arithmetic.Problem((5, 1, 5), (1, -1))
  sums = ArithmeticConfig(
      operands=3, redundancy=0.0, slip_rate=1.0, slip_check_rate=1.0
  )
  first, second = re.fullmatch(
      r"b 5 \+ 1 = (\d+) check 5 \+ 1 = \1 no so total 6 \."
      r" c 6 - 5 = (\d+) check 6 - 5 = \2 no so total 1 \."
      r" </think> <answer> 1 </answer>",
      written(problem, sums),
  ).groups()
  assert first != "6"
  assert second != "1"
  assert [(p.text, p.learned) for p in pieces(problem, sums)][:4] == [
      ("b 5 + 1 =", True),
      (f" {first}", False),
      (f" check 5 + 1 = {first} no so total 6 . c 6 - 5 =", True),
      (f" {second}", False),
  ]


def test_chains_slip_and_check_as_often_as_they_should(problems):
  steps, clamped, longest = [], 0, 0
  for i, problem in enumerate(problems[:2000]):
    completion = written(problem, SLIPS, i)
    assert text.is_well_formed(completion, TAGS)
    steps += walk(problem, SLIPS, completion.split())
    clamped += bool(re.search(r" (1[0-5]) \+ [6-7] = 15 check", completion))
    longest = max(longest, len(completion.split()) + 1)
    words = [
        word for p in pieces(problem, SLIPS, i) if not p.learned
        for word in p.text.split()
    ]  # fmt: skip
    assert len(words) == sum(slip for slip, _ in steps[-3:])
  slips, checks = np.array(steps).T
  # 6,000 steps: a standard deviation of 0.0059; of the checks of 1,800 slips
  # 0.011, of those of 4,200 others 0.0077.
  assert abs(slips.mean() - 0.3) < 0.02
  assert abs(checks[slips].mean() - 0.7) < 0.04
  assert abs(checks[~slips].mean() - 0.5) < 0.02
  assert clamped
  assert longest <= arithmetic.longest_demonstration(SLIPS)


def test_the_longest_chain():
  """Three steps of 6 + 11 + 4 + 3 words, 4 more, 4 of the answer, an EOS."""
  assert arithmetic.longest_demonstration(SLIPS) == 3 * 24 + 4 + 4 + 1


def test_an_early_answer_is_where_its_chain_would_have_arrived(problems):
  wrong = 0
  for i, problem in enumerate(problems[:300]):
    whole = written(problem, SLIPS, i).split()
    early = pieces(problem, SLIPS, i, early_share=1.0)
    words = "".join(p.text for p in early).split()
    chain = words[: words.index("</think>")]
    assert chain == whole[: len(chain)]
    assert words[len(chain) :] == whole[-4:]
    assert [p.text for p in early if p.learned] == [f" {whole[-2]}"]
    wrong += whole[-2] != problem.answer
  assert wrong > 30


def test_an_early_answer_learned_throughout_leaves_slips_out(problems):
  for i, problem in enumerate(problems[:100]):
    early = pieces(problem, SLIPS, i, early_share=1.0, early_full_share=1.0)
    for piece in early:
      assert piece.learned or re.fullmatch(r" \d+", piece.text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"min_operands": 5},
            "config.data.arithmetic.min_operands = 5: must be 0 or in [2,"
            " data.arithmetic.operands = 4]",
        ),
        (
            {"min_operands": 1},
            "config.data.arithmetic.min_operands = 1: must be 0 or in [2,"
            " data.arithmetic.operands = 4]",
        ),
        (
            {"check_rate": 0.5},
            "config.data.arithmetic.check_rate = 0.5: needs"
            " data.arithmetic.slip_rate > 0: without slips checks repair"
            " nothing",
        ),
        (
            {"slip_rate": 1.5},
            "config.data.arithmetic.slip_rate = 1.5: must be in [0, 1]",
        ),
        (
            {"slip_check_rate": 0.5},
            "config.data.arithmetic.slip_check_rate = 0.5: needs"
            " data.arithmetic.slip_rate > 0: without slips checks repair"
            " nothing",
        ),
        (
            {"slip_rate": 0.1, "check_rate": -0.1},
            "config.data.arithmetic.check_rate = -0.1: must be in [0, 1]",
        ),
    ],
)
def test_fields_that_do_not_fit(fields, message):
  config = config_lib.default()
  config.data.arithmetic.update(fields)
  with pytest.raises(ConfigError) as error:
    config_lib.parse(config)
  assert str(error.value) == message


def parsed(**fields):
  config = config_lib.default()
  config.data.arithmetic.update(
      {"train_problems": 60, "validation_problems": 6, "test_problems": 9}
  )
  config.data.arithmetic.update(fields)
  return config_lib.parse(config)


def test_the_first_test_problems_may_judge_a_run():
  whole = parsed()
  few = dataclasses.replace(
      whole, data=dataclasses.replace(whole.data, test_problems=4)
  )
  splits, fewer = (task_lib.read(x.data) for x in (whole, few))
  assert fewer == splits | {"test": splits["test"][:4]}
  assert len(splits["test"]) == 9
  rule = "test_problems = 10: must be at most 9, all problems of arithmetic"
  with pytest.raises(ConfigError, match=rule):
    task_lib.read(dataclasses.replace(whole.data, test_problems=10))


def test_what_a_compiled_step_is_told_of_slips():
  task = tiny.load_task(
      parsed(slip_rate=0.25, check_rate=0.5, slip_check_rate=0.5)
  )
  steps, planting = task.steps, task.planting
  decode = task.tokenizer.decode
  assert decode(list(steps.names)) == "b c d"
  assert decode(list(steps.numbers)) == " ".join(map(str, range(16)))
  named = [steps.plus, steps.minus, steps.equals, steps.check]
  assert decode(named) == "+ - = check"
  assert steps.max_total == 15
  assert planting.rate == 0.25
  assert planting.values == steps.numbers
  # b 5 + 1 =
  assert [decode(list(ids)) for ids in planting.after] == [
      "b c d", decode(list(steps.numbers)), "+ -",
      decode(list(steps.numbers)), "=",
  ]  # fmt: skip
  hash(task.vocabulary)  # static
  plain = tiny.load_task(parsed())
  assert plain.planting is None
  assert plain.steps is None
  assert plain.tables["test"].levels is None


def test_levels_follow_the_prompts():
  task = tiny.load_task(parsed(min_operands=2))
  for table in task.tables.values():
    # `a b + c =` and the opening tag are 3 n words.
    np.testing.assert_array_equal(table.prompts.lengths, 3 * table.levels)
  assert task.tables["test"].levels.tolist() == [2, 3, 4] * 3


def test_slips_need_a_token_for_every_word(tmp_path):
  words = arithmetic.vocabulary(ArithmeticConfig())  # without "no"
  tokenizer.word_tokenizer(
      words,
      pad=arithmetic.PAD,
      eos=arithmetic.EOS,
      unknown=arithmetic.UNKNOWN,
  ).save_pretrained(tmp_path)
  with pytest.raises(ConfigError) as error:
    tiny.load_task(parsed(slip_rate=0.25), None, tmp_path)
  assert str(error.value) == (
      f"config.data.arithmetic.slip_rate = 0.25: tokenizer {str(tmp_path)!r}"
      " must have a token for every word of the task; leave data.tokenizer and"
      " model.pretrained empty"
  )

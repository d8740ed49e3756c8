"""Problems of reasoning-gym: splits, scorers, and what is refused."""

import collections
import dataclasses
import inspect
import itertools
import json
import platform
import re
import shutil
import time

import numpy as np
import pytest
import runs
import texts
import tiny
from reasoning_gym import factory
from reasoning_gym.dataset import ProceduralDataset

from iapo_jax.config import formats, gym_families
from iapo_jax.config import gym as gym_config
from iapo_jax.config import parsing as config_lib
from iapo_jax.core.errors import ConfigError
from iapo_jax.data import gym, splits, worked
from iapo_jax.rewards import gym as gym_rewards
from iapo_jax.rewards import gym_entries
from iapo_jax.rewards.completions import Texts
from iapo_jax.rewards.pool import Pool
from iapo_jax.run import assembly, checkpoint, logs, workdir

TAGS = formats.of("think_answer")
# Sums and differences of two numbers in 0 .. 9: 2 * 10 * 10 questions.
SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def config(families="leg_counting", arguments=None, data=None, **groups):
  gym_group = {
      "families": families,
      "arguments": json.dumps(arguments) if arguments else "",
      "train_problems": 30, "validation_problems": 6, "test_problems": 9,
  }  # fmt: skip
  gym_group |= groups.pop("gym", {})
  data = {"task": "reasoning_gym", "gym": gym_group} | (data or {})
  return config_lib.parse(
      {"data": data, "reward": {"grader": "host"}} | groups
  )


def made(*given, **groups):
  return gym.make_splits(config(*given, **groups).data)


def families_in(rows):
  return collections.Counter(row.row["family"] for row in rows)


def test_the_table_has_every_family_of_the_library_once():
  known = gym_families.known()
  assert known.keys() | gym_families.REFUSED.keys() == factory.DATASETS.keys()
  assert not known.keys() & gym_families.REFUSED.keys()


def test_scorers_that_evaluate_answers_see_only_harmless_ones():
  """A scorer with `eval` or sympy's parser would execute any other answer."""
  # It evaluates the family's answer, not the policy's.
  harmless = {"number_sorting", "propositional_logic"}
  evaluating = set()
  for name, (kind, _) in factory.DATASETS.items():
    source = inspect.getsource(kind.score_answer)
    if "eval(" in source or "parse_expr(" in source:
      evaluating.add(name)
  assert {"countdown", "n_queens", "simple_integration"} <= evaluating
  for name in evaluating - harmless - gym_families.REFUSED.keys():
    family = gym_families.known()[name]
    for code in (
        "__import__('os').system('x')", "open('x')", "exec('x')", "a.b", "a()",
        "x.__class__", "9**9" * 400 + "!", "lambda: 0", "f'{x}'",
    ):  # fmt: skip
      assert not family.may_score(code) or (
          # Only functions of mathematics can be called.
          code in ("a()",) and "integration" in name
      ), (name, code)


def test_families_that_compare_with_one_text_have_one_answer():
  known = gym_families.known()
  for name, (kind, _) in factory.DATASETS.items():
    if kind.score_answer is ProceduralDataset.score_answer and name in known:
      assert known[name].one_answer, name


def test_splits_are_ranges_that_share_no_question():
  found = made("leg_counting")
  places = {
      name: [row.row["index"] for row in rows] for name, rows in found.items()
  }
  # No question repeats in the first 45 (counted here).
  drawn = [gym_entries.dataset("leg_counting", 0, "{}")[i] for i in range(45)]
  assert len({x["question"] for x in drawn}) == 45
  assert places == {
      "test": [*range(9)], "validation": [*range(9, 15)],
      "train": [*range(15, 45)],
  }  # fmt: skip
  assert [x.question for x in found["test"]] == [
      x["question"].strip() for x in drawn[:9]
  ]
  assert [x.answer for x in found["test"]] == [x["answer"] for x in drawn[:9]]
  repeats = splits.count_repeats(found)
  assert {(x.within, x.trained) for x in repeats.values()} == {(0, 0)}
  assert list(found) == ["train", "validation", "test"]
  # Every start makes the same; a larger train split leaves the others alone.
  assert splits.fingerprint(made("leg_counting")) == splits.fingerprint(found)
  more = made("leg_counting", gym={"train_problems": 40})
  assert more["test"] == found["test"]
  assert more["train"][:30] == found["train"]
  other = made("leg_counting", gym={"seed": 1000})
  assert not {x.question for x in other["test"]} & {
      x.question for x in found["test"]
  }


def test_shares_are_exact_though_questions_repeat(capsys):
  found = made(
      "chain_sum:2,leg_counting",
      {"chain_sum": SMALL},
      gym={"train_problems": 150, "validation_problems": 9},
  )
  assert families_in(found["train"]) == {"chain_sum": 100, "leg_counting": 50}
  assert families_in(found["validation"]) == {"chain_sum": 6, "leg_counting": 3}
  assert families_in(found["test"]) == {"chain_sum": 6, "leg_counting": 3}
  # So has every part of a split.
  assert families_in(found["train"][:30])["chain_sum"] == 20
  questions = [
      "".join(x.question.split()) for rows in found.values() for x in rows
  ]
  assert len(set(questions)) == len(questions) == 168
  # 112 of 200 questions, drawn with repetition, take more draws.
  told = capsys.readouterr().out
  assert "chain_sum: 112 distinct problems of " in told
  last = max(
      x.row["index"] for x in found["train"] if x.row["family"] == "chain_sum"
  )
  assert last > 112
  assert f"chain_sum: 112 distinct problems of {last + 1} drawn" in told


def test_too_few_questions_are_refused_with_their_number():
  rule = "chain_sum gives 200 distinct problems in .* draws, but .* is 315"
  with pytest.raises(ConfigError, match=rule):
    made("chain_sum", {"chain_sum": SMALL}, gym={"train_problems": 300})


def test_slow_families_are_told_of_but_not_refused(monkeypatch, capsys):
  """A run that began on an idle machine must resume on a busy one."""
  # 45 problems, 100 s each.
  monkeypatch.setattr(time, "monotonic", itertools.count(0, 100).__next__)
  assert len(made("leg_counting")["train"]) == 30
  told = re.findall(r"leg_counting: (\d+) of 45 .* took (\d+) s", (
      capsys.readouterr().out
  ))
  # Each time after more than twice as long.
  assert told == [
      ("1", "100"), ("3", "300"), ("7", "700"), ("15", "1500"), ("31", "3100"),
  ]  # fmt: skip


def test_a_family_without_a_problem_in_a_split_is_refused():
  rule = "test_problems = 9: leaves no test problem to gcd; raise it"
  with pytest.raises(ConfigError, match=rule):
    made("leg_counting:100,gcd")


def test_solutions_are_the_same_at_every_start():
  found = made("leg_counting,gcd", gym={"redundancy": 0.5})
  assert all(row.solution for row in found["train"])
  again = made("leg_counting,gcd", gym={"redundancy": 0.5})
  assert [x.solution for x in again["train"]] == [
      x.solution for x in found["train"]
  ]
  plain = made("leg_counting,gcd", gym={"redundancy": 0.0})
  whole = made("leg_counting,gcd", gym={"redundancy": 1.0})
  for few, some, many in zip(
      plain["train"], found["train"], whole["train"], strict=True
  ):
    assert len(few.solution) <= len(some.solution)
    assert some.solution in (few.solution, many.solution)
  shorter = [
      some == few
      for some, few in zip(found["train"], plain["train"], strict=True)
  ]
  assert 0 < sum(shorter) < 30


@pytest.mark.parametrize(
    ("families", "arguments", "rule"),
    [
        ("leg_cuonting", None, "unknown family 'leg_cuonting'; did you mean"
         " leg_counting"),
        ("", None, "unknown family ''"),
        ("gcd,gcd:2", None, "names gcd twice"),
        ("gcd:0", None, "the weight of gcd must be a number above 0, not '0'"),
        ("gcd:nan", None, "weight of gcd must be a number above 0, not 'nan'"),
        ("gcd:", None, "weight of gcd must be a number above 0, not ''"),
        ("puzzle24", None, "puzzle24 cannot be used: its scorer takes any"),
        ("composite", None, "composite cannot be used: name its families"),
        ("gcd", {"lcm": {}}, "lcm is not in data.gym.families = gcd"),
        ("gcd", {"gcd": 3}, "must be a JSON object by family such as"),
        ("gcd", {"gcd": {"seed": 3}}, "gcd.seed is given by the run"),
        ("gcd", [1], "must be a JSON object by family such as"),
    ],
)  # fmt: skip
def test_families_and_arguments_that_cannot_be(families, arguments, rule):
  with pytest.raises(ConfigError, match=rule):
    config(families, arguments)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"max_animal": 3}, "leg_counting has no argument max_animal; it has"
         " min_animals, max_animals, min_instances, max_instances"),
        ({"max_animals": 99}, "leg_counting does not take them: max_animals"
         " must be <= number of available animals"),
        ({"max_animals": "x"}, "leg_counting does not take them: '>=' not"),
    ],
)  # fmt: skip
def test_arguments_that_the_family_does_not_take(arguments, rule):
  with pytest.raises(ConfigError, match=rule):
    made("leg_counting", {"leg_counting": arguments})


def test_fields_that_do_not_fit():
  rule = "estimator = 'gold': needs one gold answer, but a problem of countdown"
  with pytest.raises(ConfigError, match=rule):
    config("gcd,countdown", probe={"estimator": "gold"})
  rule = "estimator = 'gold_chance': needs one gold answer"
  with pytest.raises(ConfigError, match=rule):
    config("rubiks_cube", probe={"estimator": "gold_chance"})
  config("gcd", probe={"estimator": "gold"})
  config("gcd,countdown", probe={"estimator": "own"})
  with pytest.raises(ConfigError, match="grader = 'token_match': must be host"):
    config(reward={"grader": "token_match"})
  with pytest.raises(ConfigError, match=r"test_problems = 3: has no effect"):
    config(data={"test_problems": 3})
  rule = "data.gym = .*: has no effect with data.task arithmetic"
  with pytest.raises(ConfigError, match=rule):
    config_lib.parse({"data": {"gym": {"seed": 1}}})
  with pytest.raises(ConfigError, match=r"partial = True: needs data.task rea"):
    config_lib.parse({"reward": {"partial": True}})
  lacking = config("gcd,countdown").data.gym
  with pytest.raises(ConfigError, match="countdown of reasoning_gym: no work"):
    gym.check_worked(lacking, 3)
  gym.check_worked(config("gcd,leg_counting").data.gym, 3)
  assert worked.writers().keys() <= gym_families.known().keys()


def answered(answer):
  return f"so</think>\n<answer>{answer}</answer>"


def row_of(family, index=7, seed=0):
  entry = gym_entries.dataset(family, seed, "{}")[index]
  checksum = gym_entries.checksum(entry)
  return gym_rewards.row_of(family, seed, "{}", index, checksum), entry


# Right, wrong and malformed answers to problem 7 of seed 0; the scorers of the
# library decide.
ANSWERS = [
    ("leg_counting", None, "1", "many"),
    ("chain_sum", None, "1", "((("),
    ("time_intervals", None, "00:00:00.001", "soon"),
    ("spell_backward", None, "zz", "<b>"),
    ("knights_knaves", None, "Nobody is a knave.", "?"),
    ("propositional_logic", "(P ↔ R)", "¬Q", "X ∨ Y"),
    ("mini_sudoku", None, "1 2 3 4\n1 2 3 4\n1 2 3 4\n1 2 3 4", "1"),
    ("rotate_matrix", None, "0 0\n0 0", "[["),
    ("n_queens", None, "Q Q\nQ Q", "[[Q"),
    ("complex_arithmetic", None, "1 + 1i", "nan"),
]


def test_scorers_in_other_processes_decide(tmp_path):
  """They make the same problems though their hash seeds differ."""
  completions, rows, expected = [], [], []
  for family, right, wrong, malformed in ANSWERS:
    row, entry = row_of(family)
    right = right or entry["answer"]
    completions += [
        *map(answered, (right, wrong, malformed)), f"so</think>{right}"
    ]  # fmt: skip
    rows += [row] * 4
    expected += [True, False, False, False]
  made_here = row_of("countdown")[1]["metadata"]
  sums = "+".join(map(str, made_here["numbers"]))
  place = tmp_path / "executed"
  code = f"__import__('pathlib').Path({str(place)!r}).touch()"
  completions += [answered(sums), answered(code)]
  rows += [row_of("countdown")[0]] * 2
  expected += [sum(made_here["numbers"]) == made_here["target"], False]
  graded = gym_rewards.grade(completions, rows, form=TAGS)
  assert [x.correct for x in graded] == expected
  assert not any(x.timed_out for x in graded)
  assert all(x.score == 1 for x in graded if x.correct)
  assert all(0 <= x.score < 1 for x in graded if not x.correct)
  assert not place.exists()


def test_partial_scores_count_only_if_asked_for():
  row, entry = row_of("spell_backward")
  answer = entry["answer"]
  half = answer[: len(answer) // 2]
  given = Texts([answered(half), answered(answer)], [], [], [row] * 2)
  first, second = gym_rewards.judge(given, form=TAGS, partial=True)
  assert first.score == pytest.approx(len(half) / len(answer))
  assert (first.correct, second.correct, second.score) == (False, True, 1.0)
  whole = gym_rewards.judge(given, form=TAGS, partial=False)
  assert [x.score for x in whole] == [None, None]
  assert [x.correct for x in whole] == [False, True]


def test_a_problem_that_cannot_be_made_again_is_no_grade():
  row, _ = row_of("gcd")
  for other, reason in (
      ({"index": 8}, "8 of gcd, seed 0: is another one than before"),
      ({"arguments": '{"min_value": -3}'},
       "7 of gcd, seed 0: cannot be made again: config.data.gym.arguments = "),
  ):  # fmt: skip
    rule = f"data reasoning_gym: problem {reason}"
    with pytest.raises(RuntimeError, match=rule):
      gym_rewards.grade([answered("1")], [row | other], form=TAGS)


@pytest.mark.parametrize(("prepare", "expected"), [
    (60.0, "is another one than before"),
    (0.1, "a grading process ended while it made it, or took over 0.5 s"),
])  # fmt: skip
def test_the_time_for_an_answer_begins_when_its_problem_is_made(
    prepare, expected
):
  """The problem, a sum of so many numbers, takes a second."""
  arguments = '{"max_terms": 700000, "min_terms": 700000}'
  row = gym_rewards.row_of("chain_sum", 0, arguments, 7, "unknown")
  pool = Pool(
      1, soft_seconds=9.0, prepare_seconds=prepare, hard_seconds=0.4,
      judge="scoring",
  )  # fmt: skip
  try:
    assert pool.judge([gym_rewards._task("x", row)]) == [expected]
  finally:
    pool.close()


def test_a_scorer_that_does_not_end_is_late():
  """Even this one, which takes the end of its time for a wrong answer."""
  row, _ = row_of("simple_integration")
  pool = Pool(1, soft_seconds=0.3, hard_seconds=9.0, judge="scoring")
  # An integer of 36 million digits.
  task = gym_rewards._task("7**(9**8)", row)
  assert task is not None
  try:
    assert pool.judge([task, gym_rewards._task("x", row)]) == [None, 0.0]
  finally:
    pool.close()


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tokenizer")
  texts.write_tokenizer(folder)
  return folder


def test_tables_of_a_mixture(tokenizer_folder):
  """Families are levels; a family without an answer has a gold to show."""
  cfg = config(
      "leg_counting,propositional_logic",
      data={"max_prompt_tokens": 600, "max_gold_tokens": 8},
  )
  loaded = tiny.load_task(cfg, None, tokenizer_folder)
  table = loaded.tables["validation"]
  names = [row.row["family"] for row in loaded.problems["validation"]]
  assert table.levels.tolist() == names
  assert set(names) == {"leg_counting", "propositional_logic"}
  places = np.array(names) == "propositional_logic"
  golds = [row.answer for row in loaded.problems["validation"]]
  assert {g for g, place in zip(golds, places, strict=True) if place} == {"?"}
  assert loaded.asked[0].columns["family"] in names
  alone = dataclasses.replace(
      cfg, data=dataclasses.replace(cfg.data, gym=config("gcd").data.gym)
  )
  assert tiny.load_task(alone, None, tokenizer_folder).tables[
      "test"
  ].levels is None
  assert gym_config.several(cfg.data.gym) == ["propositional_logic"]


def test_problems_that_are_others_name_what_made_them(
    tokenizer_folder, tmp_path
):
  """There are no files to restore, but versions."""
  cfg = config(
      "leg_counting",
      data={
          "max_prompt_tokens": 600, "max_gold_tokens": 8,
          "tokenizer": str(tokenizer_folder),
      },
  )  # fmt: skip
  parts = assembly.assemble(cfg)
  workdir.claim(tmp_path, parts)
  workdir.check_data(parts, tmp_path)
  python = platform.python_version()
  runs.edit(tmp_path / "data.json", test="other")
  runs.edit(tmp_path / "environment.json", python="3.0.1")
  rule = (
      "config.data.gym: the test problems are not those that the run in"
      f" {str(tmp_path)!r} began with; they were made with reasoning-gym"
      f" 0.1.25 and python 3.0.1, now with reasoning-gym 0.1.25 and python"
      f" {python}: restore the former, or use another --workdir"
  )
  with pytest.raises(ConfigError, match=f"^{re.escape(rule)}$"):
    workdir.claim(tmp_path, parts)
  (tmp_path / "environment.json").unlink()
  with pytest.raises(ConfigError, match=r"with reasoning-gym \(not recorded\)"):
    workdir.claim(tmp_path, parts)


def train(folder, tokenizer_folder, *more):
  return runs.command(
      "train", "--config=arithmetic:grpo", f"--workdir={folder}",
      "--config.data.task=reasoning_gym",
      f"--config.data.tokenizer={tokenizer_folder}",
      "--config.data.gym.families=leg_counting:2,countdown",
      "--config.data.gym.train_problems=12",
      "--config.data.gym.validation_problems=3",
      "--config.data.gym.test_problems=6",
      "--config.data.max_prompt_tokens=600",
      "--config.data.max_gold_tokens=64",
      "--config.reward.grader=host", "--config.reward.partial=True",
      "--config.format.lenient=True",
      "--config.warm_start.num_steps=0", "--config.num_steps=2",
      "--config.prompts_per_step=2", "--config.group_size=2",
      "--config.rollout.max_tokens=16", "--config.evaluation.problems=3",
      "--config.evaluation.batch_size=3", "--config.evaluation.every=1",
      "--config.checkpoint.every=1", "--config.log.samples_every=1",
      "--config.model.num_layers=1", "--config.model.d_model=16",
      "--config.model.mlp_dim=16", *more,
  )  # fmt: skip


@pytest.mark.full
def test_a_run_learns_from_scorers_and_resumes(tokenizer_folder, tmp_path):
  first = train(tmp_path / "run", tokenizer_folder)
  assert first.returncode == 0, first.stderr
  told = "0 test problems are also in train or validation"
  assert told in first.stdout
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert summary["problems/level_leg_counting"] == 4
  assert summary["problems/level_countdown"] == 2
  again = runs.unfinished_copy(tmp_path / "run", tmp_path / "again")
  shutil.rmtree(checkpoint.stage_folder(again, "rl") / "2")
  second = train(again, tokenizer_folder)
  assert second.returncode == 0, second.stderr
  assert "resumes at rl step 1" in second.stdout
  for name in (logs.METRICS, logs.SAMPLES):
    repeated = runs.lines(again, name)
    assert repeated == runs.lines(tmp_path / "run", name)
    assert 2 in [x["step"] for x in repeated if x.get("stage", "rl") == "rl"]
  repeated = json.loads((again / "summary.json").read_text())
  assert repeated | {"seconds": 0} == summary | {"seconds": 0}

"""A user's reward and credit in the step, and the programs that show how."""

import dataclasses
import functools
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from jax.sharding import Mesh, PartitionSpec
from test_trainer import small

from iapo_jax.cli import iapo
from iapo_jax.config.formats import FormatConfig
from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError
from iapo_jax.rewards import grading, user_functions
from iapo_jax.rewards.completions import Asked, Texts
from iapo_jax.rewards.grading import Graded
from iapo_jax.rl.own import Own
from iapo_jax.run import logs, trainer, workdir
from iapo_jax.tools import comparison

ROOT = pathlib.Path(__file__).parent.parent


# Rewards need neither probes nor a reference: the step compiles faster.
ONLY_REWARDS = {
    "credit__mode": "grpo", "probe__stride": 0, "loss__kl_weight": 0.0,
}  # fmt: skip


def train(folder, own, **overrides):
  cfg = small(
      warm_start__num_steps=0, log__samples_every=1, log__samples=64,
      loss__early_weight=0.0, evaluation__every=0, model__d_model=32,
      model__mlp_dim=64, **overrides,
  )  # fmt: skip
  trainer.train(cfg, folder, own=own)
  return logs.read(folder, logs.SAMPLES)


def total(_, texts):
  return texts


def of_length(rollout, grades, prompts):
  return -rollout.lengths.astype(jnp.float32)


@pytest.mark.full
def test_a_reward_in_the_program(tmp_path, capsys):
  samples = train(tmp_path, Own(reward=of_length), **ONLY_REWARDS)
  assert len(samples) == 64
  for sample in samples:
    assert sample["reward"] == -len(sample["tokens"])
  assert "own        reward of_length" in capsys.readouterr().out
  (line, _) = logs.stage_metrics(tmp_path, "rl")
  assert line["reward/total"] == pytest.approx(-line["length/completion"])
  assert "reward/correctness" not in line  # there are no parts


@pytest.mark.mesh
def test_functions_of_texts(tmp_path, capsys):
  """Every completion is asked about once, with the row of its problem."""
  asked, graded = [], []

  def length(completions, golds):
    asked.extend(zip(completions, golds, strict=True))
    return [len(text) for text in completions]

  def operands(*, texts, prompts, rows, question, answer):
    assert len(texts) == len(prompts) == len(rows)
    assert [x["question"] for x in rows] == question
    assert [x["answer"] for x in rows] == answer
    for prompt, row in zip(prompts, question, strict=True):
      assert prompt == f"{row} <think>"
    shown.extend(zip(prompts, answer, strict=True))
    return [len(prompt.split()) for prompt in prompts]

  def thirds(texts, golds, **more):
    assert [row["answer"] for row in more["rows"]] == golds
    verdicts = [(True, 0.5, None)[len(text) % 3] for text in texts]
    graded.extend(x == 1 for x in verdicts)
    return verdicts

  shown = []
  own = Own(text_reward=[length, (operands, -0.25)], text_grader=thirds)
  samples = train(
      tmp_path, own, model__vocab_size=40, mesh__data=4, mesh__tensor=2,
      data__arithmetic__test_problems=32, **ONLY_REWARDS,
  )  # fmt: skip
  assert len(asked) == len(samples) == 64  # two steps
  assert sorted(shown) == sorted(
      (s["prompt"], s["gold"].strip()) for s in samples
  )
  expected = [
      (s["reward"] + len(s["prompt"].split()) / 4, s["correct"])
      for s in samples
  ]
  found = [(float(len(x)), len(x) % 3 == 0) for x, _ in asked]
  assert sorted(expected) == sorted(found)
  assert {correct for _, correct in found} == {True, False}
  (line, _) = logs.stage_metrics(tmp_path, "rl")
  parts = [line[f"reward/{x}"] for x in ("length", "operands")]
  assert line["reward/total"] == pytest.approx(parts[0] - parts[1] / 4)
  assert parts[1] == np.mean([len(x.split()) for x, _ in shown[:32]])
  # The grader also decides in evaluations, here the one on the test split.
  summary = files.read_json(tmp_path / workdir.SUMMARY)
  assert summary["accuracy"] == np.mean(graded[64:])
  named = "text reward length + -0.25 operands, text grader thirds"
  assert summary["own"] == named
  assert f"own        {named}" in capsys.readouterr().out
  # It is no secret who graded.
  (alone,) = comparison.load([tmp_path], "last")
  assert not alone.parts.own.text_grader
  assert "own grader 'thirds', evaluated with 'none'" in capsys.readouterr().out
  (same,) = comparison.load([tmp_path], "last", own=own)
  assert same.parts.own == Own(text_grader=thirds)
  assert "warning" not in capsys.readouterr().out
  workdir._compare_environment(tmp_path, same.parts)
  told = capsys.readouterr().out
  assert f"own: the run began with '{named}' and continues with" in told


def test_a_text_grader_implies_the_grader_of_the_host(tmp_path, capsys):
  own = Own(text_grader=lambda texts, golds: [None] * len(texts))
  told = "reward.grader=token_match has no effect"
  trainer.train(small(), tmp_path / "a", dry_run=True, own=own)
  assert told in capsys.readouterr().out
  for more in ({"own": own}, {}):
    cfg = small(reward__grader="host" if more else "token_match")
    trainer.train(cfg, tmp_path / "a", dry_run=True, **more)
    assert "has no effect" not in capsys.readouterr().out


GIVEN = Texts(
    texts=["a", "b"], golds=["1", "2"], prompts=["p", "q"],
    rows=[{"level": 1, "x": 3}, {"level": 2}],
)  # fmt: skip
ASKED = [
    Asked(prompt, row)
    for prompt, row in zip(GIVEN.prompts, GIVEN.rows, strict=True)
]
WHOLE = {
    "texts": GIVEN.texts, "golds": GIVEN.golds, "prompts": GIVEN.prompts,
    "rows": GIVEN.rows, "level": [1, 2],
}  # fmt: skip


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda completions, golds: completions + golds, ["a", "b", "1", "2"]),
        (lambda golds, texts: (golds, texts), (["1", "2"], ["a", "b"])),
        (lambda one, two: (one, two), (["a", "b"], ["1", "2"])),
        (lambda x, y, /, z=3: (x, y, z), (["a", "b"], ["1", "2"], 3)),
        (lambda *both: both, (["a", "b"], ["1", "2"])),
        (lambda texts, golds, /: golds, ["1", "2"]),
        (min, ["1", "2"]),  # has no signature
        (lambda *, rows: rows, GIVEN.rows),
        (lambda level, scale=2: (level, scale), ([1, 2], 2)),
        (lambda *, prompts, **rest: rest | {"prompts": prompts}, WHOLE),
        (lambda completions, **rest: rest | {"texts": completions}, WHOLE),
        (functools.partial(lambda texts, scale: (texts, scale), scale=3),
         (["a", "b"], 3)),
    ],
)  # fmt: skip
def test_what_functions_of_texts_get(function, expected):
  call = user_functions.bind(function, "text_reward", ASKED)
  assert call(GIVEN) == expected


def misspelled(texts, levle):
  return texts, levle


def partly(texts, x):
  return texts, x


def alone(scores):
  return scores


@pytest.mark.parametrize(
    ("function", "asked", "message"),
    [
        (misspelled, ASKED,
         "Own.text_reward: misspelled asks for levle; it can name texts (or"
         " completions), golds, prompts, rows and the columns level, x of the"
         " data, or take **kwargs; change its signature"),
        (alone, ASKED, "alone asks for scores; it can name texts"),
        (lambda: [], ASKED, "<lambda> asks for nothing; it can name"),
        (partly, ASKED,
         "partly asks for the column x, which some rows lack; ask for rows and"
         " use row.get('x'), or fill the column"),
        (lambda **all: all, [Asked("", {"prompts": 1})],
         "asks for prompts, which is also a column of the data; rename"),
        (lambda completions: 0, [Asked("", {"completions": 1})],
         "asks for completions, which is also a column of the data; rename"),
    ],
)  # fmt: skip
def test_signatures_that_cannot_be_called(function, asked, message):
  with pytest.raises(ConfigError) as error:
    user_functions.bind(function, "text_reward", asked)
  assert message in str(error.value)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "must return 2 numbers, one per completion; it returned an"),
        ([[1], [2]], "returned an array of shape (2, 1)"),
        (3, "returned an array of shape ()"),
        (["a", "b"], "must return 2 numbers, one per completion (could not"),
        ([0.5, None], "must return finite numbers; it returned None for the"
         " completion 'b'"),
        ([float("inf"), 1], "it returned inf for the completion 'a'"),
    ],
)  # fmt: skip
def test_rewards_that_are_none(returned, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    user_functions.rewards_of(lambda _: returned, "mine", GIVEN)


def judge_of(returned):
  package = functools.partial(grading.judge, form=FormatConfig())
  return user_functions.judge_of(
      lambda _: returned, "mine", FormatConfig(), package
  )


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (True, "must return 2 values, one per completion; it returned True"),
        ([True], "must return 2 values, one per completion; it returned 1"),
        *(
            ([True, bad], "must return True, False, a number in [0, 1] or None;"
             f" it returned {bad!r} for the completion 'b'")
            for bad in ("yes", 1.5, -1, float("nan"), [1])
        ),
    ],
)  # fmt: skip
def test_verdicts_that_are_none(returned, message):
  judge = judge_of(returned)
  with pytest.raises(ValueError, match=re.escape(message)):
    judge(GIVEN)


def test_verdicts():
  """None keeps the package's grade; answers are found in any case."""
  right, wrong = (
      f"So.</think><answer>{x}</answer>" for x in ("2.0", "3")
  )
  given = dataclasses.replace(
      GIVEN, texts=[right, wrong, right, wrong, "no"], golds=["2"] * 5
  )
  returned = [None, None, np.bool_(False), np.float32(1), 0.25]
  judge = judge_of(returned)
  assert judge(given) == [
      Graded(True, "2.0", False),
      Graded(False, "3", False),
      Graded(False, "2.0", False, score=0.0),
      Graded(True, "3", False, score=1.0),
      Graded(False, None, False, score=0.25),
  ]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"text_reward": []}, "text_reward = []: must have a function"),
        ({"text_reward": 3}, "text_reward = 3: must be a function, or a list"),
        ({"text_reward": [3]}, "text_reward = [3]: must be a function, or a"),
        ({"text_reward": [(alone, 1, 2)]}, "and of pairs (function, weight)"),
        ({"text_reward": [("alone", 1)]}, "'alone' must be a function"),
        ({"text_reward": [(alone, "1")]}, "the weight '1' of alone must be a"),
        ({"text_reward": [(alone, math.nan)]}, "the weight nan of alone must"),
        ({"text_reward": [alone, (alone, 2)]},
         "the metric reward/alone of alone has the name of another metric"),
        ({"text_reward": [alone, functools.partial(total, 1)]},
         "the metric reward/total of total has the name of another metric"),
        ({"text_grader": 3}, "Own.text_grader = 3: must be a function"),
    ],
)  # fmt: skip
def test_parts_that_cannot_be_used(parts, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    Own(**parts)


def test_commands_that_use_no_functions(capsys):
  with pytest.raises(SystemExit):
    iapo.run("export", [], own=Own(text_reward=alone))
  told = capsys.readouterr().err
  assert "command 'export': own is for train, evaluate, replay" in told


def forget_failed_callbacks():
  """Calls the host from every device.

  Until then `jax.effects_barrier` would raise the error of each device's last
  call.
  """
  mesh = Mesh(np.array(jax.local_devices()), ("x",))

  def call(x):
    return jax.pure_callback(np.asarray, jax.typeof(x), x)

  spec = PartitionSpec("x")
  called = jax.shard_map(
      call, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
  )
  jax.block_until_ready(jax.jit(called)(jnp.zeros(mesh.size)))
  jax.effects_barrier()


@pytest.mark.full
@pytest.mark.mesh
def test_a_reward_that_fails(tmp_path):
  message = "must return 4 numbers, one per completion"
  with pytest.raises(Exception, match=message):
    train(
        tmp_path / "a", Own(text_reward=lambda x, y: [1.0]), **ONLY_REWARDS
    )
  forget_failed_callbacks()
  with pytest.raises(ValueError, match="reward or text_reward, not both"):
    Own(reward=of_length, text_reward=lambda x, y: x)


@pytest.mark.full
def test_a_credit(tmp_path):
  """It sees what the samples say, and is what is learned."""

  def credit(evidence):
    return evidence.information + 2.0 * evidence.group_advantages[:, None]

  samples = train(tmp_path, Own(credit=credit, reward=of_length))
  assert any(sample["group_advantage"] for sample in samples)
  for sample in samples:
    found = np.array(sample["advantages"])
    information = np.zeros(found.shape)
    information[: len(sample["information"])] = sample["information"]
    expected = information + 2 * sample["group_advantage"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_credit_of_another_shape(tmp_path):
  with pytest.raises(AssertionError):
    train(tmp_path, Own(credit=lambda evidence: evidence.rewards))


@pytest.mark.full
@pytest.mark.parametrize(
    ("program", "variant"), [("own_reward", "grpo"), ("own_credit", "to_go")]
)
def test_the_programs_of_the_docs(program, variant, tmp_path):
  settings = {
      "warm_start.num_steps": 0, "num_steps": 2, "prompts_per_step": 4,
      "group_size": 4, "evaluation.every": 0, "evaluation.batch_size": 16,
      **runs.SHORT,
      "data.arithmetic.train_problems": 32, "data.arithmetic.test_problems": 16,
  }  # fmt: skip
  done = runs.program(
      ROOT / "experiments" / f"{program}.py",
      f"--config=configs/arithmetic.py:{variant}",
      f"--workdir={tmp_path}",
      *(f"--config.{name}={value}" for name, value in settings.items()),
  )
  assert done.returncode == 0, done.stderr
  assert f"own        {program[4:].replace('reward', 'text reward')}" in (
      done.stdout
  )
  assert json.loads((tmp_path / workdir.SUMMARY).read_text())["problems"] == 16
  assert files.read_json(tmp_path / "config.json")["num_steps"] == 2

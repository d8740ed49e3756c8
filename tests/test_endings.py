"""How completions end, the length that would hold them, and who shows it."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import module, synthetic

from iapo_jax.cli import replay as replay_command
from iapo_jax.core import endings
from iapo_jax.run import evaluation, replay
from iapo_jax.run.evaluation import Completions
from iapo_jax.tools import comparison
from iapo_jax.tools.report import page, runs

# Tokens with EOS, EOS, tokens of reasoning, format. Of at most eight tokens.
ROWS = (
    (6, True, 2, True),  # as it should be: 2 + 3 + EOS
    (8, False, 8, False),  # cut in the reasoning
    (8, False, 5, False),  # cut in the answer
    (4, True, 3, False),  # an EOS inside the reasoning
    (1, True, 0, False),  # nothing but an EOS
    (7, True, 4, False),  # something else after the reasoning
)
COLUMNS = tuple(map(np.array, zip(*ROWS, strict=True)))


def test_the_three_ways_to_end_badly():
  for arrays in (COLUMNS, tuple(map(jnp.asarray, COLUMNS))):
    found = endings.of(*arrays)
    chex.assert_trees_all_equal(
        jax.tree.map(lambda x: np.flatnonzero(x).tolist(), found),
        endings.Endings(cut=[1, 2], in_reasoning=[3, 4], malformed=[5]),
    )
    np.testing.assert_array_equal(
        endings.answer_lengths(*arrays[:3]), [3, 0, 3, 0, 0, 2]
    )
    # Beyond four tokens: 2, 4, 4, 0, 0, 3; two of six end there.
    share, tokens = endings.late(*arrays[:2], 8)
    np.testing.assert_allclose((share, tokens), (2 / 6, 13 / 6), 1e-6)


def test_the_length_that_would_hold_95_percent_by_hand():
  # 0.3 ends in 30 tokens: one in a hundred. 0.2 are left; a quarter of them
  # is left after ln 4 / 0.01 more tokens.
  held = endings.held_length(0.2, 0.3, 30.0, 100)
  assert held == pytest.approx(100 + 100 * math.log(4))
  assert endings.held_length(1.0, 0.0, 50.0, 100) is None
  text = endings.describe_cut(0.2, 0.3, 30.0, 100)
  assert text == (
      "20% of the completions are cut off at rollout.max_tokens = 100 without"
      " an EOS; about 239 tokens would hold 95%, if completions go on ending as"
      " often as in the last 50 tokens"
  )
  text = endings.describe_cut(1.0, 0.0, 51.0, 101)
  assert re.match("every completion is .* be estimated, since none", text)
  assert text.endswith("in the last 51 tokens")


def test_the_length_is_right_where_the_assumption_is():
  """A third of 20,000 completions ends early, others at a rate of 1 / 300."""
  draw = np.random.default_rng(0)
  whole = np.where(
      draw.uniform(size=20_000) < 1 / 3,
      draw.integers(1, 80, 20_000),
      80 + np.ceil(draw.exponential(300, 20_000)),
  ).astype(int)
  ended = whole <= 200
  lengths = np.minimum(whole, 200)
  cut = np.mean(~ended)
  assert 0.4 < cut < 0.5
  held = endings.held_length(cut, *endings.late(lengths, ended, 200), 200)
  # 80 + 300 ln((2 / 3) / 0.05) = 857; the rate, from 4,000 ends, has an error
  # of 2 %, so what is beyond 200 has one of 2 %, too.
  assert held == pytest.approx(np.quantile(whole, 0.95), rel=0.04)


def completions(lengths, ended):
  flags = np.ones(lengths.shape, bool)
  return Completions(flags, flags, lengths, lengths - ended, ~flags, ended)


def test_an_evaluation_warns_from_a_tenth_on():
  lengths = np.full((10, 1), 40)
  ended = np.ones((10, 1), bool)
  ended[0] = False
  assert evaluation.cut_warning([completions(lengths, ended)]) is None
  # 3 of 20; one of the others ends late, after 35 of 40 tokens.
  more = np.array([[40], [40], [35]] + [[20]] * 7)
  other = completions(more, np.array([[0], [0]] + [[1]] * 8, bool))
  some = completions(np.where(ended, 20, 40), ended)
  text = evaluation.cut_warning([some, other])
  assert text.startswith("15% of the completions are cut off at rollout.max_")
  # One end in 3 x 20 + 15 tokens: 40 + 75 ln 3 = 122.4.
  assert "= 40 without an EOS; about 123 tokens would hold 95%" in text


OLD = {
    "run": "a", "checkpoint": "rl/2", "split": "test", "task": "arithmetic",
    "batch_size": 4, "seeds": [{}],
    "mean": dict.fromkeys(
        ("problems", "samples", "accuracy", "length@1", "efficiency@1",
         "mean_reasoning_tokens", "format_rate", "seconds_per_completion"),
        1.0,
    ),
}  # fmt: skip


def test_what_an_older_version_did_not_record_is_not_zero():
  new = OLD["mean"] | {"mean_answer_tokens": 0.0, "cut_rate": 0.0}
  heads, rows = comparison.rows([OLD, OLD | {"mean": new}])
  at = [heads.index("answer (tokens)"), heads.index("cut")]
  assert [[row[i] for i in at] for row in rows] == [
      ["–", "–"], ["0.0", "0.000"],
  ]  # fmt: skip
  # Of two seeds one is old: the mean of both is unknown.
  group = synthetic("x", 0, seeds=2)
  group.runs[0].summary["mean_answer_tokens"] = 4.0
  assert runs.mean_and_error(group, "mean_answer_tokens") is None
  (run,) = synthetic("x", 0).runs
  run.summary.update({"mean_reasoning_tokens": 9.0, "format_rate": 1.0})
  row = page._row(0, runs.Group("x", (run,)))
  assert row["cells"] == [
      "0.500 ±\N{NO-BREAK SPACE}0.010", "20.0", "9.0", "–", "1.000", "–", "1",
  ]  # fmt: skip


def test_a_replay_of_a_step_that_an_older_version_kept():
  found = replay.Replayed(
      {"length/answer": 1.25, "reward/total": math.nan},
      {"reward/total": math.nan},
      None,
  )
  assert replay_command._lines(found) == [
      f"{'length/answer':28} {'1.25':>12}   in the run {'–':>12}",
      f"{'reward/total':28} {'nan':>12}   in the run {'nan':>12}",
  ]


def test_the_demo_reads_old_summaries():
  demo = module("iapo_jax/cli/demo.py")
  old = {"accuracy": 0.5, "accuracy_se": 0.1, "mean_tokens": 9.0,
         "mean_reasoning_tokens": 4.0, "format_rate": 1.0, "problems": 8,
         "seconds": 1.0}  # fmt: skip
  new = old | {"mean_answer_tokens": 4.25}
  table = demo._table({"sft": demo._combine([new])}, 1)
  assert table.splitlines()[-1].split(" | ")[3:5] == ["4.0", "4.2"]
  mixed = demo._combine([old, new])
  table = demo._table({"sft": mixed}, 2)
  assert table.splitlines()[-1].split(" | ")[3:5] == ["4.0", "–"]

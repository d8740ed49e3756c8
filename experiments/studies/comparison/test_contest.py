"""Trials of a comparison, their intervals and the tables made of them."""

import pathlib

import contest
import evidence
import numpy as np
import pytest
import trials

from iapo_jax.config import parsing as config_lib
from iapo_jax.config import presets
from iapo_jax.core import intervals
from iapo_jax.core.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[3]


def test_interval_by_hand():
  # Mean 3, s = sqrt((1 + 0 + 1) / 2) = 1; t for 2 degrees is 4.302653.
  found = intervals.of_mean([2.0, 3.0, 4.0])
  half = 4.302653 / np.sqrt(3)
  np.testing.assert_allclose(
      [found.mean, found.low, found.high], [3, 3 - half, 3 + half], rtol=1e-6
  )
  # Differences 1, 1, 1: no spread.
  same = intervals.of_difference([2.0, 3.0, 9.0], [1.0, 2.0, 8.0])
  assert (same.mean, same.low, same.high, same.count) == (1, 1, 1, 3)
  with pytest.raises(ValueError, match="1 values: must be at least 2"):
    intervals.of_mean([1.0])


def test_an_interval_holds_the_mean_as_often_as_it_says():
  rng = np.random.default_rng(0)
  hits = 0
  for sample in rng.normal(1.0, 2.0, (2000, 5)):
    found = intervals.of_mean(sample.tolist())
    hits += found.low <= 1.0 <= found.high
  # 2000 draws at 0.95: a standard deviation of 0.005.
  assert abs(hits / 2000 - 0.95) < 0.02


def test_pareto_by_hand():
  # The third is beaten by the first; equals do not beat each other.
  points = [(0.9, 20.0), (0.95, 40.0), (0.9, 21.0), (0.8, 10.0), (0.95, 40.0)]
  assert contest.pareto(points) == [0, 1, 3, 4]


def result(accuracy, tokens):
  return {"accuracy": accuracy, "mean_tokens": tokens}


def test_the_choice_of_a_setting():
  plain, *_, penalty = (
      trials.contenders()[name] for name in ("grpo", "dapo", "length_penalty")
  )
  tried = [
      result(0.90, 30), result(0.896, 20), result(0.88, 10), result(0.90, 25),
  ]  # fmt: skip
  # Of the most accurate the first; within half a point of .9 the shortest.
  assert trials.choose(plain, tried, 0.9, slack=0.005) == 0
  assert trials.choose(penalty, tried, 0.9, slack=0.005) == 1
  # None is within half a point of .95: the most accurate.
  assert trials.choose(penalty, tried, 0.95, slack=0.005) == 0


def test_every_setting_is_a_configuration():
  for name, contender in trials.contenders().items():
    assert len(contender.settings) == trials.TUNED
    for task in ("mixed", "slips"):
      found = set()
      for fields in contender.settings:
        config = presets.read(task)["get_config"](contender.variant)
        config.update_from_flattened_dict({**contender.fixed, **fields})
        found.add(config_lib.parse(config))
      assert len(found) == trials.TUNED, name
  # Ablations have the setting of another, and none of their own is tried.
  tuned = list(trials.tuning(["grpo", "misplaced"], starts=2))
  assert [(t.setting, t.start) for t in tuned] == [
      (i, j) for i in range(4) for j in range(2)
  ]
  assert {t.method for t in tuned} == {"grpo"}
  ours = list(trials.final({"grpo": 1, "to_go": 3}, starts=2, seeds=2))
  assert [t.name for t in ours[:3]] == [
      "grpo/setting-1/start-0/seed-0",
      "to_go/setting-3/start-0/seed-0",
      "grpo/setting-1/start-1/seed-0",
  ]
  assert len(ours) == 8
  # Ablations come after all that they are compared with.
  ours = trials.final({"misplaced": 3, "to_go": 3}, starts=1, seeds=2)
  assert [t.method for t in ours] == ["to_go"] * 2 + ["misplaced"] * 2


def made_up():
  """Two methods, two warm starts, two seeds; numbers by hand."""
  accuracies = {"grpo": [0.9, 0.8, 0.9, 0.8], "to_go": [0.92, 0.82, 0.92, 0.82]}
  tokens = {"grpo": [40.0, 50.0, 40.0, 50.0], "to_go": [20.0, 25.0, 20.0, 25.0]}
  found = {
      "task": "mixed",
      "warm_starts": [
          result(0.7, 44.0) | {"start": 0, "begun_from": "0",
                               "early_answers": True,
                               "accuracy/level_2": 0.8, "tokens/level_2": 9.0},
      ],
      "settings": {
          name: [dict(x) for x in trials.contenders()[name].settings]
          for name in accuracies
      },
      "chosen": {"grpo": 2, "to_go": 3},
      "tuning": [
          result(0.5 + i / 10, 30.0 - i) | {"method": "grpo", "setting": i}
          for i in range(4)
      ],
      "trials": [],
  }  # fmt: skip
  for name, values in accuracies.items():
    for i, accuracy in enumerate(values):
      found["trials"].append(
          result(accuracy, tokens[name][i])
          | {"method": name, "start": i % 2, "seed": i // 2}
          | {"setting": found["chosen"][name]}
          | {"begun_from": str(i % 2)}
          | {"sampled_tokens": 3e6, "probe_tokens": 1.5e6 * (name == "to_go")}
          | {"accuracy/level_2": accuracy, "tokens/level_2": tokens[name][i]}
          | {"check_after_slip": 0.6, "check_after_none": 0.3}
      )
  return found


def test_tables_by_hand():
  found = made_up()
  lines = contest.comparison(found).splitlines()
  # Four values 0.1 apart in pairs: s = sqrt(4 · 0.05² / 3), t for 3 is 3.182.
  half = 3.182446 * np.sqrt(4 * 0.05**2 / 3) / 2
  assert lines[2] == "| warm start | | 1 | 0.700 | 44.0 | | | |"
  assert lines[3].startswith(
      f"| GRPO | rate 0.0004 | 4 | 0.850 ± {half:.3f} | 45.0 ±"
  )
  # Differences are 2 points and a half everywhere: no spread.
  assert lines[4].startswith("| IAPO to_go | rate 0.0004, w 2 | 4 | 0.870 ±")
  assert lines[4].endswith("| +2.0 (+2.0 to +2.0) | 50 (50 to 50) | 4.5 |")
  table = contest.against_penalty(found, "grpo").splitlines()
  assert table[2] == (
      "| IAPO to_go | +2.0 (+2.0 to +2.0) | 50 (50 to 50) |"
  )
  assert contest.levels(found).splitlines()[-1] == (
      "| IAPO to_go | 0.870 / 22.5 |"
  )
  assert "| rate 0.0004: **0.700 / 28.0** |" in contest.tuning(found)
  found["warm_starts"] = []
  assert contest.checks(found).splitlines()[2] == (
      "| GRPO | 0.600 | 0.300 | 2.00 | 0.850 | 45.0 |"
  )


def test_controls_stand_beside_what_they_are_of():
  found = made_up()
  for row in found["trials"]:
    if row["method"] == "grpo":
      row |= {"method": "shuffled", "setting": 3}
  found["chosen"]["shuffled"] = 3
  # 20 of 40 tokens and 25 of 50; .02 more: the other way round.
  assert contest.controls(found).splitlines()[2:] == [
      "| to_go, shuffled (control) | IAPO to_go | -2.0 (-2.0 to -2.0)"
      " | 200 (200 to 200) |"
  ]
  del found["trials"][4:]
  assert len(contest.controls(found).splitlines()) == 2


def test_replications_are_paired_whatever_their_order():
  found = made_up()
  found["trials"].reverse()
  change = contest.difference(found, "to_go", "grpo", "accuracy")
  np.testing.assert_allclose([change.low, change.high], [0.02, 0.02])
  # Of two methods only what both have counts.
  found["trials"] = [
      x for x in found["trials"]
      if x["method"] == "grpo" or (x["seed"], x["start"]) == (0, 0)
  ]  # fmt: skip
  assert contest.difference(found, "to_go", "grpo", "accuracy") is None
  assert contest.methods(found) == ["grpo"]


def test_a_setting_that_is_chosen_no_more_does_not_count():
  found = made_up()
  table = contest.comparison(found)
  found["trials"] += [
      row | {"setting": 1, "accuracy": 0} for row in found["trials"]
  ]
  assert contest.comparison(found) == table
  found["chosen"] = {"grpo": 2}
  assert contest.methods(found) == ["grpo"]


def test_levels_are_in_the_order_of_numbers():
  found = made_up()
  for row in (*found["trials"], *found["warm_starts"]):
    row |= {"accuracy/level_10": 0.5, "tokens/level_10": 60.0}
  head, _, first, *_ = contest.levels(found).splitlines()
  assert head == "| | 2 numbers | 10 numbers |"
  assert first.endswith("| 0.500 / 60.0 |")


def test_only_runs_from_the_same_weights_are_pairs():
  found = made_up()
  for row in found["trials"]:
    if row["method"] == "to_go" and row["start"] == 1:
      row["begun_from"] = "on another machine"
  change = contest.difference(found, "to_go", "grpo", "accuracy")
  assert change.count == 2


def test_what_began_without_early_answers_is_apart():
  found = made_up()
  names = {"grpo": "grpo_never_early", "to_go": "never_early"}
  found["trials"] += [
      row | {"method": names[row["method"]], "begun_from": "another"}
      for row in found["trials"]
  ]
  for part in ("settings", "chosen"):
    found[part] |= {names[k]: v for k, v in found[part].items()}
  (start,) = found["warm_starts"]
  found["warm_starts"].append(start | {"early_answers": False, "accuracy": 0.9})
  lines = contest.comparison(found).splitlines()
  assert lines[3] == (
      "| warm start, no early answers | | 1 | 0.900 | 44.0 | | | |"
  )
  assert lines[-1].startswith("| to_go, no early answers |")
  assert lines[-1].endswith(" | | | 4.5 |")  # not beside GRPO from elsewhere
  assert contest.controls(found).splitlines()[2:] == [
      "| to_go, no early answers | GRPO, no early answers"
      " | +2.0 (+2.0 to +2.0) | 50 (50 to 50) |"
  ]
  assert contest.by_start(found) == contest.by_start(made_up())


def test_the_page_is_made_of_the_results():
  assert pathlib.Path(evidence._DOCS.default) == ROOT / "docs"
  pages = evidence.pages(ROOT / "docs")
  assert {page.name for page in pages} == {"evidence.md", "README.md"}
  for page, tables in pages.items():
    text = page.read_text(encoding="utf-8")
    assert tables
    assert evidence.filled(text, tables, page.name) == text
  with pytest.raises(ConfigError, match=r"a.md: must have <!-- b --> twice"):
    evidence.filled("", {"b": "table"}, "a.md")


def test_each_warm_start_by_hand():
  # Start 0 has seeds 0 and 1 of 0.9 and 0.92; start 1 of 0.8 and 0.82.
  lines = contest.by_start(made_up()).splitlines()
  assert lines[0].count("checks after a slip / none") == 2
  assert lines[2] == (
      "| GRPO | 90.0 % right | 40.0 tokens | 60 / 30 %"
      " | 80.0 % right | 50.0 tokens | 60 / 30 % |"
  )
  half = "+2.0 (+2.0 to +2.0) | 50 (50 to 50) | 60 / 30 %"
  assert lines[3] == f"| IAPO to_go | {half} | {half} |"
  # Of a start that a method has one replication of nothing is said.
  one = made_up()
  one["trials"] = [x for x in one["trials"] if x["start"] + x["seed"] < 2]
  last = contest.by_start(one).splitlines()[3]
  assert last.endswith("60 / 30 % | – | – | – |")


def test_the_headline_by_hand():
  found = made_up()
  few = found | {"trials": found["trials"][:4]}  # GRPO alone
  lines = contest.headline({"mixed": found, "slips": few}).splitlines()
  one = "accuracy, points | tokens, % | checks after a slip / none"
  assert lines[0] == f"| | mixed: {one} | slips: {one} |"
  mean = "85.0 % right | 45.0 tokens | 60 / 30 %"
  assert lines[2:] == [
      f"| GRPO | {mean} | {mean} |",
      "| IAPO to_go | +2.0 (+2.0 to +2.0) | 50 (50 to 50) | 60 / 30 %"
      " | – | – | – |",
  ]


def test_the_figure_is_made_of_the_results(tmp_path):
  from iapo_jax.tools.report import figures

  found = made_up()
  tested, tried = contest.draw(found).axes
  assert len(tested.containers) == 2
  (line,) = tried.lines  # of `to_go` no setting was tried
  np.testing.assert_allclose(
      line.get_xydata(), [(27, 0.8), (28, 0.7), (29, 0.6), (30, 0.5)]
  )
  for name in ("a", "b"):
    figures.save(contest.draw(found), tmp_path / f"{name}.svg")
  assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()

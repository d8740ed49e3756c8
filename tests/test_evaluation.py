"""pass@k, length@k and the choice of a checkpoint, against hand-made tables."""

import itertools
import math

import jax
import numpy as np
import pytest

from iapo_jax.config import parsing as config_lib
from iapo_jax.core.types import KeyDomain
from iapo_jax.data.steps import CheckCounts
from iapo_jax.run import assembly, evaluation
from iapo_jax.run.evaluation import Completions

CORRECT = np.array([
    [1, 0, 0, 0],
    [1, 1, 0, 0],
    [0, 0, 0, 0],
    [1, 1, 1, 1],
], bool)  # fmt: skip


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        # c / n: (1/4 + 2/4 + 0 + 1) / 4.
        (1, 1.75 / 4),
        # 1 - C(3,2)/C(4,2) = 1 - 3/6; 1 - C(2,2)/6 = 5/6; 0; 1.
        (2, (3 / 6 + 5 / 6 + 0 + 1) / 4),
        # 1 - C(3,3)/C(4,3) = 1 - 1/4; 1 - 0 = 1; 0; 1.
        (3, (3 / 4 + 1 + 0 + 1) / 4),
        # Any correct one: 1, 1, 0, 1.
        (4, 3 / 4),
    ],
)
def test_pass_at_k_by_hand(k, expected):
  assert evaluation.pass_at_k(CORRECT, k) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 32])
def test_pass_at_k_is_the_closed_form(n):
  for c, k in itertools.product(range(n + 1), range(1, n + 1)):
    row = np.arange(n)[None, :] < c
    expected = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert evaluation.pass_at_k(row, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_the_mean_over_subsets():
  """Unbiased: the mean of "any of k" over all ways to draw k of n."""
  for k in range(1, 5):
    drawn = [
        CORRECT[:, list(subset)].any(axis=1).mean()
        for subset in itertools.combinations(range(4), k)
    ]
    assert evaluation.pass_at_k(CORRECT, k) == pytest.approx(np.mean(drawn))


@pytest.mark.parametrize("k", [0, 5])
def test_a_k_that_the_samples_cannot_tell(k):
  with pytest.raises(ValueError, match=rf"k = {k}: must be in \[1, 4\]"):
    evaluation.pass_at_k(CORRECT, k)


LENGTHS = np.array([[10, 20, 30, 40], [2, 4, 6, 8]])


@pytest.mark.parametrize(
    ("k", "expected"),
    # (10 + 2) / 2; ((10 + 20) / 2 + (2 + 4) / 2) / 2; (25 + 5) / 2.
    [(1, 6.0), (2, 9.0), (4, 15.0)],
)
def test_length_at_k_takes_the_first_k(k, expected):
  assert evaluation.length_at_k(LENGTHS, k) == expected


def test_the_unbiased_length_is_the_mean_over_subsets_for_every_k():
  """`mean_tokens` is what k of the n completions have on average."""
  flags = np.ones((2, 4), bool)
  results = Completions(flags, flags, LENGTHS, LENGTHS, ~flags, ~flags)
  unbiased = evaluation.summarise(results)["mean_tokens"]
  # ((10 + 20 + 30 + 40) / 4 + (2 + 4 + 6 + 8) / 4) / 2.
  assert unbiased == 15.0
  for k in range(1, 5):
    drawn = [
        evaluation.length_at_k(LENGTHS[:, list(subset)], k)
        for subset in itertools.combinations(range(4), k)
    ]
    assert np.mean(drawn) == pytest.approx(unbiased)


def test_powers_of_two():
  assert evaluation.powers_of_two(1) == [1]
  assert evaluation.powers_of_two(7) == [1, 2, 4]
  assert evaluation.powers_of_two(32) == [1, 2, 4, 8, 16, 32]


def test_the_summary_of_a_table():
  results = Completions(
      correct=np.array([[1, 0], [1, 1]], bool),
      well_formed=np.array([[1, 1], [1, 0]], bool),
      lengths=np.array([[10, 20], [30, 40]]),
      reasoning_lengths=np.array([[6, 16], [26, 36]]),
      timed_out=np.array([[0, 1], [0, 0]], bool),
      ended=np.array([[1, 1], [1, 0]], bool),
  )
  summary = evaluation.summarise(results)
  assert summary == pytest.approx({
      "accuracy": 0.75,
      # Problem means 1/2 and 1: spread 1/4 over sqrt(2).
      "accuracy_se": 0.25 / math.sqrt(2),
      "mean_tokens": 25.0,
      # Problem means 15 and 35.
      "mean_tokens_se": 10 / math.sqrt(2),
      "mean_reasoning_tokens": 21.0,
      # Four after each, one of them an EOS in three of four.
      "mean_answer_tokens": 13 / 4,
      "format_rate": 0.75,
      "cut_rate": 0.25,
      "ended_in_reasoning_rate": 0.0,
      "malformed_end_rate": 0.0,
      "timeout_rate": 0.25,
      "problems": 2,
      "samples": 2,
      "pass@1": 0.75,
      "pass@2": 1.0,
      "length@1": 20.0,
      "length@2": 25.0,
      "efficiency@1": 0.75 / 20,
      "efficiency@2": 1 / 25,
  })


def test_levels_and_checks_in_the_summary():
  correct = np.array([[1, 0], [1, 1], [0, 1]], bool)
  lengths = np.array([[4, 6], [10, 20], [12, 10]])
  results = Completions(
      correct,
      correct,
      lengths,
      lengths,
      ~correct,
      ~correct,
      checks=CheckCounts(
          wrong=np.array([[1, 0], [2, 1], [0, 0]]),
          wrong_checked=np.array([[1, 0], [1, 1], [0, 0]]),
          right=np.array([[0, 1], [3, 1], [2, 3]]),
          right_checked=np.array([[0, 1], [0, 0], [1, 0]]),
      ),
      levels=np.array([2, 3, 3]),
  )
  plain = evaluation.summarise(
      Completions(correct, correct, lengths, lengths, ~correct, ~correct)
  )
  summary = evaluation.summarise(results)
  assert {k: v for k, v in summary.items() if k not in plain} == pytest.approx({
      "accuracy/level_2": 1 / 2,
      "tokens/level_2": 5.0,
      "problems/level_2": 1,
      "accuracy/level_3": 3 / 4,
      "tokens/level_3": 13.0,
      "problems/level_3": 2,
      # 1 + 1 + 1 of 1 + 2 + 1; 1 + 1 of 1 + 3 + 1 + 2 + 3.
      "check_after_slip": 3 / 4,
      "check_after_none": 2 / 10,
      "results_wrong": 4,
      "results_right": 10,
  })


def test_no_results_have_no_checks():
  one = np.ones((1, 1), int)
  none = CheckCounts(0 * one, 0 * one, 0 * one, 0 * one)
  summary = evaluation.summarise(
      Completions(one == 1, one == 1, one, one, one == 0, one == 0, checks=none)
  )
  assert summary["check_after_slip"] == summary["check_after_none"] == 0
  assert summary["results_wrong"] == summary["results_right"] == 0


def test_one_sample_a_problem_has_the_binomial_error():
  correct = np.array([[1], [1], [1], [0]], bool)
  ones = np.ones((4, 1), int)
  summary = evaluation.summarise(
      Completions(correct, correct, ones, ones, ~correct, ~correct)
  )
  assert summary["accuracy_se"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def point(step, accuracy, efficiency):
  return {
      "step": step,
      "accuracy": accuracy,
      "samples": 4,
      "efficiency@1": 0.0,
      "efficiency@4": efficiency,
  }


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        # The most efficient of all is not among the five most accurate.
        (
            [point(i, 0.9 + i / 100, 0.01 * i) for i in range(5)]
            + [point(9, 0.5, 1.0)],
            4,
        ),
        # Among the five the ratio decides, not the accuracy.
        ([point(1, 0.9, 0.03), point(2, 0.8, 0.04)], 2),
        # The sixth by accuracy is left out; of equals the later one stays.
        ([point(i, 0.9, 1 / (i + 1)) for i in range(6)], 1),
        # Of equal ratios too.
        ([point(1, 0.9, 0.03), point(7, 0.9, 0.03), point(3, 0.9, 0.03)], 7),
    ],
)
def test_the_choice_of_a_checkpoint(points, expected):
  assert evaluation.best_step(points) == expected
  assert evaluation.best_step(points[::-1]) == expected


@pytest.fixture(scope="module")
def parts():
  config = config_lib.default()
  config.rollout.max_tokens = 12
  config.evaluation.update({"samples": 2, "batch_size": 32})
  config.data.arithmetic.update({
      "operands": 3,
      "min_operands": 2,
      "slip_rate": 0.3,
      "train_problems": 64,
      "validation_problems": 16,
      "test_problems": 40,
  })
  return assembly.assemble(config_lib.parse(config))


def test_every_problem_counts_once_whatever_the_batch(parts):
  """40 problems, 16 a call: the third call is filled up with repeats."""
  stage = assembly.reinforcement_stage(parts)
  params = assembly.create_state(parts, stage).params
  sampler = evaluation.make_sampler(parts)
  results = evaluation.evaluate(parts, sampler, params, "test", 1000)
  assert results.lengths.shape == results.correct.shape == (40, 2)
  assert results.checks.wrong.shape == (40, 2)
  np.testing.assert_array_equal(results.levels, [2, 3] * 20)
  # The first call is what the sampler says of the first sixteen problems.
  prompts, count = next(evaluation.batches(parts, "test", 16))
  assert count == 16
  key = KeyDomain.EVALUATION.key(parts.cfg.seed)
  first = sampler(params, prompts, jax.random.fold_in(key, 0))
  np.testing.assert_array_equal(results.lengths[:16], first.lengths)
  # Two completions of a problem are drawn independently.
  assert (results.lengths[:, 0] != results.lengths[:, 1]).any()
  counts = [count for _, count in evaluation.batches(parts, "test", 1000)]
  assert counts == [16, 16, 8]


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 0}, ""),
        ({}, ""),  # of an older version
        ({"temperature": 0.0, "top_p": 1.0, "top_k": 0}, "greedy"),
        ({"temperature": 0.6, "top_p": 0.95, "top_k": 20},
         "temperature 0.6, top-p 0.95, top-k 20"),
        ({"temperature": 1.0, "top_p": 0.8, "top_k": 0}, "top-p 0.8"),
    ],
)  # fmt: skip
def test_only_what_is_no_default_is_said(how, text):
  assert evaluation.sampled(how) == text

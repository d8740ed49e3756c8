import math

import pytest

from iapo_jax.run import watch

HEALTHY = {
    "reward/accuracy": 0.5,
    "reward/zero_spread_groups": 0.3,
    "length/reasoning": 40.0,
    "length/unfinished": 0.0,
    "reward/timeouts": 0.0,
    "probe/entropy_first": 2.0,
    "probe/entropy_last": 0.1,
    "probe/calibration_gap": 0.1,
    "update/logprob_gap": 1e-5,
    "update/ratio": 1.01,
    "update/kl": 0.01,
}


def warnings_of(steps):
  watcher, said = watch.Watch(200), []
  for number, metrics in enumerate(steps, 1):
    watcher.check(
        number, HEALTHY | metrics, lambda step, text: said.append((step, text))
    )
  return said


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"reward/zero_spread_groups": 1.0}, "within every group are equal"),
        ({"length/unfinished": 1.0}, "every completion is cut off"),
        ({"length/unfinished": 0.15}, "15% of the completions are cut off at"),
        ({"reward/timeouts": 0.02}, "2% of the answers take too long"),
        # The fp32 mean of ones may round below 1, of 55 of them for one.
        ({"reward/zero_spread_groups": 0.99999994}, "every group are equal"),
        ({"length/unfinished": 0.99999994}, "every completion is cut off"),
        ({"reward/accuracy": 0.0}, "no completion is correct"),
        ({"probe/entropy_last": 1.96}, "probes do not move"),
        ({"probe/calibration_gap": -0.9}, "probes are badly calibrated"),
        ({"update/logprob_gap": 1.1}, "do not agree about the same policy"),
        ({"update/ratio": 0.7}, "updates move the policy too far: mean ratio"),
        ({"update/ratio": 1.3}, "updates move the policy too far: mean ratio"),
        ({"update/kl": 1.5}, "the policy is far from its starting weights:"),
    ],
)
def test_each_trouble_is_told_once_when_it_lasts(change, text):
  assert warnings_of([change] * 4) == []
  # A healthy step between them starts the count again.
  assert warnings_of([change] * 4 + [{}] + [change] * 4) == []
  said = warnings_of([{}, *[change] * 12])
  assert [step for step, _ in said] == [6]
  assert text in said[0][1]


@pytest.mark.parametrize(
    "change",
    [
        {"reward/zero_spread_groups": 0.99},
        {"length/unfinished": 0.1},
        {"probe/entropy_last": 1.94},
        {"probe/calibration_gap": 0.49},
        {"update/logprob_gap": 0.99},
        {"update/ratio": 1.24},
        {"update/kl": 0.99},
    ],
)
def test_nearly_is_not_enough(change):
  assert warnings_of([change] * 20) == []


def test_two_troubles_at_once():
  change = {"reward/zero_spread_groups": 1.0, "reward/accuracy": 0.0}
  assert [step for step, _ in warnings_of([change] * 9)] == [5, 5]


class TestCollapse:
  good = {"reward/accuracy": 0.9, "length/reasoning": 40.0}  # noqa: RUF012

  def bad(self, accuracy, length):
    return {"reward/accuracy": accuracy, "length/reasoning": length}

  def test_shorter_and_worse(self):
    """Means of ten steps, k of them bad: accuracy .9 - k/10 .3, length 40 - 2k.

    Below .8 needs k > 3.3, at most 32 needs k >= 4: at step 10 + 4.
    """
    said = warnings_of([self.good] * 10 + [self.bad(0.6, 20.0)] * 10)
    assert len(said) == 1
    assert said[0][0] == 14
    assert "accuracy 0.78 and 32.0 reasoning tokens" in said[0][1]
    assert "after 0.90 and 40.0" in said[0][1]

  def test_shorter_and_as_good_is_what_is_wanted(self):
    assert warnings_of([self.good] * 10 + [self.bad(0.9, 10.0)] * 20) == []

  def test_worse_at_the_same_length_is_something_else(self):
    assert warnings_of([self.good] * 10 + [self.bad(0.3, 40.0)] * 20) == []

  def test_nothing_is_said_before_there_is_a_window(self):
    steps = [self.good] * 4 + [self.bad(0.1, 5.0)] * 5
    assert warnings_of(steps) == []


class TestCut:
  some = {  # noqa: RUF012
      "length/unfinished": 0.2, "length/late_ends": 0.3,
      "length/late_tokens": 30.0,
  }  # fmt: skip

  def test_the_length_that_would_hold_most(self):
    """A rate of 0.3 / 30, of five steps together: 200 + 100 ln (0.2 / 0.05)."""
    odd = self.some | {"length/unfinished": 0.3, "length/late_ends": 0.6}
    even = self.some | {"length/unfinished": 0.15, "length/late_ends": 0.1}
    ((step, text),) = warnings_of([odd, even, even, odd, even, *[odd] * 9])
    assert step == 5
    # Means of 0.3, 0.15, 0.15, 0.3, 0.15 and of 0.6, 0.1, 0.1, 0.6, 0.1:
    # 200 + 30 / 0.3 ln (0.21 / 0.05) = 343.5.
    assert text == (
        "21% of the completions are cut off at rollout.max_tokens = 200 without"
        " an EOS; about 344 tokens would hold 95%, if completions go on ending"
        " as often as in the last 100 tokens; raise rollout.max_tokens;"
        " select.finished=True leaves cut ones out of the loss"
    )

  def test_a_length_that_nobody_can_know(self):
    none = self.some | {"length/unfinished": 1.0, "length/late_ends": 0.0}
    ((_, text),) = warnings_of([none] * 12)
    # Where all are cut, leaving them out leaves nothing.
    assert text == (
        "every completion is cut off at rollout.max_tokens = 200 without an"
        " EOS; the length that would hold 95% cannot be estimated, since none"
        " ends in the last 100 tokens; raise rollout.max_tokens"
    )

  def test_one_warning_though_it_gets_worse(self):
    worse = self.some | {"length/unfinished": 1.0}
    assert len(warnings_of([self.some] * 9 + [worse] * 9)) == 1


class TestMoved:

  def lengths(self, reasoning, answer, cut=0.0, opened=0.0):
    return {
        "length/reasoning": reasoning,
        "length/answer": answer,
        "length/unfinished": cut,
        "format/ended_in_reasoning": opened,
    }

  def test_answers_that_take_over(self):
    """Means of ten steps, k of them later: reasoning 60 - 3 k, answer 5 + k.

    A fifth less than 60 needs k > 4; 5 is more than a fifth of 15.
    """
    steps = [self.lengths(60.0, 5.0)] * 10 + [self.lengths(30.0, 15.0)] * 10
    ((step, text),) = warnings_of(steps)
    assert step == 15
    assert "45.0 reasoning and 10.0 answer tokens, after 60.0 and 5.0" in text
    assert "credit.price=both" in text

  def test_it_compares_with_the_longest_reasoning(self):
    steps = [self.lengths(20.0, 5.0)] * 10 + [self.lengths(60.0, 5.0)] * 10
    ((step, _),) = warnings_of([*steps, *[self.lengths(30.0, 15.0)] * 10])
    assert step == 25

  @pytest.mark.parametrize(
      "later",
      [
          (30.0, 5.0),  # shorter reasoning is what is wanted
          (60.0, 50.0),  # longer answers are something else
          (30.0, 5.0, 0.0, 0.6),  # most never end the reasoning
          (30.0, 7.0),  # two tokens are not where thirty went
      ],
  )
  def test_what_is_something_else(self, later):
    steps = [self.lengths(60.0, 5.0)] * 10 + [self.lengths(*later)] * 20
    assert warnings_of(steps) == []

  def test_learning_to_end_the_reasoning_is_something_else(self):
    """Two in five never do at first; the answers of the others stay as long."""
    steps = [self.lengths(60.0, 12.0, 0.0, 0.4)] * 10
    assert warnings_of(steps + [self.lengths(40.0, 20.0)] * 20) == []

  def test_a_run_of_an_older_version_goes_on(self):
    """Its lines have no answers; the comparison begins with the new ones."""
    old = [{"length/reasoning": 90.0}] * 10
    steps = [self.lengths(60.0, 5.0)] * 10 + [self.lengths(30.0, 15.0)] * 10
    assert [step for step, _ in warnings_of(old + steps)] == [25]


def test_a_replayed_watch_goes_on_where_it_was():
  steps = [{"reward/accuracy": 0.0}] * 7
  watcher, said = watch.Watch(200), []
  for number, metrics in enumerate(steps, 1):
    warn = (lambda *_: None) if number <= 5 else (lambda *x: said.append(x))
    watcher.check(number, HEALTHY | metrics, warn)
  assert said == []  # it was given at step 5, before the restart


def test_a_step_that_is_not_finite_says_nothing_about_others():
  """Neither does it end a streak, nor is it in the means of a collapse."""
  odd = {"reward/accuracy": math.nan}
  low = {"reward/accuracy": 0.0}
  said = warnings_of([low, low, odd, low, low, odd, low])
  assert [step for step, _ in said] == [7]
  assert warnings_of([odd] * 20) == []

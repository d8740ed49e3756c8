"""Kinds of answers that graders got wrong: right ones beside wrong ones.

`grading/kinds.jsonl` has rows of a gold answer with right and wrong answers. In
doubt an answer is wrong: a wrong "right" pays a policy to cheat.
"""

import itertools
import json
import pathlib

import hypothesis
import pytest
from hypothesis import strategies as st

from iapo_jax.rewards import equivalence, grade

ROWS = [
    json.loads(line)
    for line in (pathlib.Path(__file__).parent / "grading" / "kinds.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]


@pytest.mark.parametrize("kind", sorted({row["kind"] for row in ROWS}))
def test_right_and_wrong_neighbours(kind):
  cases = [
      (row["gold"], answer, name == "right")
      for row in ROWS
      if row["kind"] == kind
      for name in ("right", "wrong")
      for answer in row[name]
  ]
  graded = grade(
      [f"so</think>\n<answer>{answer}</answer>" for _, answer, _ in cases],
      [gold for gold, _, _ in cases],
      lenient=False,
  )
  differ = [
      (*case, result.timed_out)
      for case, result in zip(cases, graded, strict=True)
      if result.correct != case[2]
  ]
  assert not differ


# Exact numbers as trees, each with a function that spells it.
LATEX = {
    "ratio": r"\frac{{{0}}}{{{1}}}", "root": r"\sqrt{{{0}}}", "pi": r"\pi",
    "power": r"{0}^{{{1}}}", "exp": r"e^{{{0}}}", "times": r"{0} \cdot {1}",
    "sum": r"\left({0} + {1}\right)", "less": r"\left({0} - {1}\right)",
}  # fmt: skip
PLAIN_TEXT = {
    "ratio": "({0}/{1})", "root": "sqrt({0})", "pi": "pi",
    "power": "{0}**({1})", "exp": "exp({0})", "times": "{0}*{1}",
    "sum": "({1} + {0})", "less": "(-{1} + {0})",
}  # fmt: skip
UNICODE = {
    "ratio": r"\dfrac {{{0}}} {{{1}}}", "root": "√({0})", "pi": "π",
    "power": "{0}^({1})", "exp": "e^({0})", "times": "{1} × {0}",
    "sum": "({0}+{1})", "less": "({0}−{1})",
}  # fmt: skip
NATURAL = st.integers(1, 99).map(str)
LEAVES = st.one_of(
    st.tuples(st.just("ratio"), NATURAL, NATURAL),
    st.tuples(st.just("root"), NATURAL),
    st.just(("pi",)),
    st.tuples(st.just("power"), st.integers(2, 9).map(str),
              st.integers(-99, 99).map(str)),
    st.tuples(st.just("exp"), st.integers(1, 30).map(str)),
)  # fmt: skip
NUMBERS = st.recursive(
    LEAVES,
    lambda parts: st.tuples(
        st.sampled_from(["times", "sum", "less"]), parts, parts
    ),
    max_leaves=3,
)
EXAMPLES = hypothesis.settings(
    max_examples=20, deadline=None, derandomize=True, database=None
)


def spell(number, style):
  """Writes a tree of numbers in a style."""
  if isinstance(number, str):
    return number
  return style[number[0]].format(*(spell(x, style) for x in number[1:]))


def is_same(answer, gold):
  """Returns whether an answer is right, decided in this process."""
  decided = equivalence.settle(answer, gold)
  if decided is None:
    return equivalence.equivalent(answer, gold, "")
  return decided


@EXAMPLES
@hypothesis.given(NUMBERS)
def test_a_number_is_itself_in_every_spelling(number):
  spelled = [spell(number, style) for style in (LATEX, PLAIN_TEXT, UNICODE)]
  hypothesis.assume(not is_same(f"{spelled[0]} + 1", "1"))  # not zero
  for answer, gold in itertools.permutations(spelled, 2):
    assert is_same(answer, gold)
    assert is_same(f"({answer}, 1)", f"({gold}, 1)")


@EXAMPLES
@hypothesis.given(NUMBERS, st.integers(1, 300))
def test_a_perturbed_number_is_never_right(number, bits):
  gold, plain = spell(number, LATEX), spell(number, PLAIN_TEXT)
  hypothesis.assume(not is_same(f"{gold} + 1", "1"))
  wrong = [
      rf"{gold} + \frac{{1}}{{2^{{{bits}}}}}", f"{plain} - 2**(-{bits})",
      rf"{gold} \cdot \left(1 + \frac{{1}}{{3^{{{bits}}}}}\right)",
      f"-{plain}",
  ]  # fmt: skip
  for answer in wrong:
    assert not is_same(answer, gold)
    assert not is_same(gold, answer)


@EXAMPLES
@hypothesis.given(NUMBERS, NUMBERS)
def test_equality_is_symmetric(one, other):
  forms = (
      "{0}", "({0}, {1})", "{1}, {0}",
      r"\begin{{pmatrix}}{0}\\{1}\end{{pmatrix}}",
  )  # fmt: skip
  left = [x.format(spell(one, LATEX), spell(other, LATEX)) for x in forms]
  right = [x.format(spell(other, UNICODE), spell(one, UNICODE)) for x in forms]
  same = [is_same(a, b) for a, b in itertools.product(left, right)]
  assert same == [is_same(b, a) for a, b in itertools.product(left, right)]
  assert same[10]  # the two lists: in any order

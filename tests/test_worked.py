"""Worked solutions: every sentence is true, and they reach the answer."""

import random
import re

import pytest

from iapo_jax.data import worked

gym = pytest.importorskip("reasoning_gym", reason="needs the extra gym")

_ARGUMENTS = {
    "leg_counting": {"min_animals": 1, "max_animals": 5},
    "chain_sum": {"min_terms": 2, "max_terms": 5, "allow_negation": True},
    "gcd": {"min_numbers": 2, "max_numbers": 3, "max_value": 300},
}
# An equation: numbers with +, - and * between them, and their value.
_EQUATION = re.compile(
    r"(-?\d+(?: [-+*] -?\d+)*) = (-?\d+(?: [-+*] -?\d+)*)"
)
# Sentences that state no number.
_SAID = (
    "I will add the legs of all animals.",
    "I will go from left to right.",
    "I will divide until the remainder is 0.",
)


def _value(terms: str) -> int:
  """Returns the value of a chain of +, - and *, by hand."""
  total, product, sign, symbol = 0, 1, 1, "*"
  for word in terms.split():
    if word in ("+", "-"):
      total, product = total + sign * product, 1
      sign, symbol = (1 if word == "+" else -1), "*"
    elif word == "*":
      symbol = "*"
    else:
      assert symbol == "*"
      product *= int(word)
  return total + sign * product


def _problems(family: str, count: int) -> list[dict]:
  made = gym.create_dataset(family, seed=5, size=count, **_ARGUMENTS[family])
  return [made[i] for i in range(count)]


def _write(family: str, problem: dict, seed: int, redundant: bool) -> str:
  return worked.solution(
      family,
      problem["answer"],
      problem["metadata"],
      random.Random(seed),
      redundant=redundant,
  )


def _check(sentence: str, question: str, total: int | None) -> int | None:
  """Checks a sentence on its own; returns the last result so far.

  Of a division without remainder that is the divisor.
  """
  equations = _EQUATION.findall(sentence)
  for left, right in equations:
    assert _value(left) == _value(right), sentence
  plain = sentence.rstrip(".")
  match plain.split():
    case ["One", *animal, "has", legs, "legs"]:
      from reasoning_gym.arithmetic import leg_counting

      assert leg_counting.ANIMALS[" ".join(animal)] == int(legs)
    case ["Wait,", "is", "it", *name]:
      assert " ".join(name).rstrip("?") in question
    case ["Yes,", count]:
      assert f" {count} " in question
    case ["So", "far", "the", ("total" | "remainder"), "is", number]:
      assert int(number) == total
    case ["The", "larger", "number", "is", _] | ["Now", "comes", *_]:
      pass  # the next equation begins with it
    case [
        "The" | "So", *_, ("is" | "are"), number
    ] if number.lstrip("-").isdigit():
      assert int(number) == total
    case ["So", "there", "are", number, "legs"]:
      assert int(number) == total
    case ["Check:", *_] | ["Once", "more:", *_]:
      assert equations
      return total
    case _:
      assert equations or sentence in _SAID, sentence
  if not equations:
    return total
  # a = b * c + d has reached the remainder d, other equations their value.
  *_, divisor, _, reached = ("", "", *equations[-1][1].split())
  return int(divisor if divisor and reached == "0" else reached)


@pytest.mark.parametrize("family", sorted(worked.writers()))
@pytest.mark.parametrize("redundant", [False, True])
def test_every_sentence_is_true(family, redundant):
  for seed, problem in enumerate(_problems(family, 60)):
    total, question = None, problem["question"]
    text = _write(family, problem, seed, redundant)
    sentences = re.findall(r"[^.?]+[.?]", text)
    assert "".join(sentences) == text  # nothing escapes the check
    for sentence in sentences:
      total = _check(sentence.strip(), question, total)
    if family != "gcd":
      assert str(total) == problem["answer"]


def test_a_false_sentence_is_found():
  with pytest.raises(AssertionError):
    _check("3 + 4 = 8.", "", None)
  with pytest.raises(AssertionError):
    _check("One dog has 5 legs.", "", None)
  with pytest.raises(AssertionError):
    _check("So far the total is 7.", "", 8)


@pytest.mark.parametrize("family", sorted(worked.writers()))
def test_redundant_solutions_add_sentences_to_the_plain_one(family):
  longer = 0
  for seed, problem in enumerate(_problems(family, 20)):
    plain = _write(family, problem, seed, False)
    redundant = _write(family, problem, seed, True)
    assert redundant == _write(family, problem, seed, True)
    left = iter(re.findall(r"[^.?]+[.?]", redundant.replace(". ", ".")))
    for sentence in re.findall(r"[^.?]+[.?]", plain.replace(". ", ".")):
      assert sentence in left  # in the same order
    longer += len(redundant) > len(plain)
  assert longer > 15


def test_plain_solutions_by_hand():
  legs = {"answer": "46", "metadata": {"animals": {"crab": 4, "bee": 1}}}
  # 4 * 10 = 40 and 1 * 6 = 6
  assert _write("leg_counting", legs, 0, False) == (
      "4 crabs: 4 * 10 = 40. 1 bee: 1 * 6 = 6. 40 + 6 = 46."
  )
  total = {"answer": "-3", "metadata": {"expression": "5 - -2 - 10"}}
  assert _write("chain_sum", total, 0, False) == (
      "5 - -2 = 7. 7 - 10 = -3."
  )
  # gcd(12, 18) = 6, gcd(6, 4) = 2
  divisor = {"answer": "2", "metadata": {"numbers": [12, 18, 4]}}
  assert _write("gcd", divisor, 0, False) == (
      "18 = 1 * 12 + 6. 12 = 2 * 6 + 0. 6 = 1 * 4 + 2. 4 = 2 * 2 + 0."
      " The last divisor is 2."
  )


def test_a_solution_that_misses_the_answer_is_refused():
  problem = {"answer": "47", "metadata": {"animals": {"crab": 4, "bee": 1}}}
  with pytest.raises(ValueError, match=r"reaches \[46\], but its"):
    _write("leg_counting", problem, 0, False)

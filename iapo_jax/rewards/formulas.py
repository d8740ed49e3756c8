r"""Compares two formulas exactly, with Math-Verify's parser and SymPy.

Math-Verify's own comparison rounds: to it, numbers below some 1e-16 are equal.
Here decimals are read as fractions, and every number is compared to as many
digits as it takes. May run forever, so only a process that can be killed should
call it.
"""

import functools
import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import latex2sympy2_extended as parser
import math_verify
import sympy
from latex2sympy2_extended import latex2sympy2
from latex2sympy2_extended.logic import And
from sympy.core.relational import Relational

from iapo_jax.rewards import numbers, reading

_IMAGINARY = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")
_NAMED_COMMAND = re.compile(r"\\[A-Za-z]+")
# Marks that the parser ignores or misreads. Both formulas must have a mark, or
# neither.
_MARKS = tuple(
    re.compile(pattern)
    for pattern in (
        r"'", r"\\text", r"\d\s*_", r"\^\s*\{?\s*T\b", r"\\approx",
        r"\\equiv", r"\\ne(?![a-z])", r"\\sim", r"=", r"[<>]|\\[lg]e\b",
        r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z]).*\\circ",
    )
)  # fmt: skip
_MOST_DIGITS = 5000
_SPARE_DIGITS = 15  # lost to rounding at most


def equal(mine: str, theirs: str) -> bool:
  """Returns whether two normalised formulas are mathematically equal.

  A letter that the gold answer `theirs` lacks makes a formula wrong, except the
  constants `e` and `i`: it is a word, a program, or another quantity.
  """
  for mark in _MARKS:
    if bool(mark.search(mine)) != bool(mark.search(theirs)):
      return False
  parsed = _parse(mine), _parse(theirs)
  if None in parsed:
    return False
  try:
    same = (
        _equal(*parsed)
        or _is_rounded(mine, parsed[1])
        or _is_rounded(theirs, parsed[0])
    )
  except Exception:  # SymPy raises any type on what it cannot compare
    return False
  return same and _letters(mine) <= _letters(theirs) | set("ei")


def _letters(text: str) -> set[str]:
  return set(re.findall("[A-Za-z]", _NAMED_COMMAND.sub(" ", text)))


def any_equal(parsed: Sequence[Any], gold: str) -> bool:
  """Returns whether one of the formulas of a text equals a gold answer.

  A chain of equations counts as `first = last`, and only its last part counts
  if the gold answer is no equation.

  Args:
    parsed: what `math_verify.parse` found: objects of SymPy and strings.
    gold: the normalised gold answer.
  """
  theirs = _read(reading.explicit(gold) or gold)
  if theirs is None:
    return False
  theirs = _joined(theirs)
  for found in parsed:
    if not isinstance(found, (sympy.Basic, sympy.MatrixBase)):
      continue
    mine = _joined(_exact(found))
    if isinstance(mine, sympy.Eq) and not isinstance(theirs, sympy.Eq):
      mine = mine.rhs
    if _equal(mine, theirs):
      return True
    # A set for a tuple, and the like.
    if isinstance(theirs, sympy.Set) and math_verify.verify(
        theirs, mine, timeout_seconds=None
    ):
      return True
  return False


def _joined(x: Any) -> Any:
  """Returns a chain of equations as one, from its first to its last part."""
  parts = getattr(x, "_unsorted_args", ()) if isinstance(x, And) else ()
  if parts and all(isinstance(part, sympy.Eq) for part in parts):
    return sympy.Eq(parts[0].lhs, parts[-1].rhs, evaluate=False)
  return x


def _exact(x: Any) -> Any:
  """Replaces floating-point numbers by the decimals that they stand for."""
  if isinstance(x, sympy.MatrixBase):
    return x.applyfunc(_exact)
  return x.xreplace({y: sympy.Rational(str(y)) for y in x.atoms(sympy.Float)})


def _parse(text: str) -> Any:
  """Parses a formula; None if it cannot be read in one way."""
  text = reading.explicit(text)
  return None if text is None else _read(text)


@functools.lru_cache(maxsize=1024)
def _read(text: str) -> Any:
  """Parses a formula with Math-Verify's parser; None if it cannot be parsed.

  The parser's defaults drop possible units and lower capitals, which would
  turn `3R^2` and `2x + 3t` into other expressions.
  """
  logging.getLogger("math_verify").setLevel(logging.ERROR)
  spelled = parser.normalize_latex(
      text,
      parser.NormalizationConfig(
          basic_latex=True,
          units=False,
          malformed_operators=True,
          nits=True,
          boxed="none",
          equations=False,
      ),
  )
  try:
    return parser.latex2sympy(
        spelled,
        is_real=not _IMAGINARY.search(spelled),
        convert_degrees=False,
        normalization_config=None,
        conversion_config=latex2sympy2.ConversionConfig(
            lowercase_symbols=False
        ),
    )
  except Exception:  # the parser raises any type on text that is no formula
    return None


def _equal(mine: Any, theirs: Any) -> bool:
  """Returns whether two objects of SymPy are equal."""
  mine, theirs = _evaluated(mine), _evaluated(theirs)
  pair = mine, theirs
  if _are(Relational, *pair):
    return _same_relation(mine, theirs)
  if _are(And, *pair):
    ours, golds = mine._unsorted_args, theirs._unsorted_args
    return len(ours) == len(golds) and all(map(_equal, ours, golds))
  if _are(sympy.MatrixBase, *pair):
    return mine.shape == theirs.shape and all(
        map(_equal, mine.flat(), theirs.flat())
    )
  if _are(sympy.Tuple, *pair):
    return len(mine) == len(theirs) and all(map(_equal, mine, theirs))
  if _are(sympy.Set, *pair):
    return mine == theirs or mine.symmetric_difference(theirs).is_empty is True
  return _are(sympy.Expr, *pair) and _same_value(mine, theirs)


def _are(kind: type, *objects: Any) -> bool:
  return all(isinstance(x, kind) for x in objects)


def _evaluated(x: Any) -> Any:
  try:
    return x.doit()
  except Exception:  # libraries raise any type
    return x


def _same_relation(mine: Any, theirs: Any) -> bool:
  """Compares equations and inequalities; sides may be exchanged or scaled."""
  ours, golds = mine.lhs - mine.rhs, theirs.lhs - theirs.rhs
  if type(mine) is type(theirs) and _same_value(ours, golds):
    return True
  if theirs.reversed.func is type(mine) and _same_value(-ours, golds):
    return True
  if not isinstance(mine, sympy.Eq) or not isinstance(theirs, sympy.Eq):
    return False
  names = sorted(theirs.free_symbols & mine.free_symbols, key=str)
  if not names or mine.free_symbols != theirs.free_symbols:
    return False
  solved = [sympy.solve(x, names[0]) for x in (ours, golds)]
  left = list(solved[1])
  for root in solved[0]:
    found = next((x for x in left if _equal(root, x)), None)
    if found is None:
      return False
    left.remove(found)
  return bool(solved[0]) and not left


def _same_value(mine: Any, theirs: Any) -> bool:
  """Compares two expressions, at several points if they have symbols."""
  if any(x.has(sympy.nan, sympy.zoo) for x in (mine, theirs)):
    return False
  if mine == theirs:
    return True
  if any(x.has(sympy.oo, -sympy.oo) for x in (mine, theirs)):
    return False
  difference = mine - theirs
  if difference.is_Rational:
    return bool(difference == 0)
  names, others = ({y.name for y in x.free_symbols} for x in (mine, theirs))
  if names != others:  # equal only if some cancel
    return _is_zero(difference)
  digits = _digits(mine, theirs)
  for point in _points(sorted(names)):
    ours, golds = (_value(x, point, digits) for x in (mine, theirs))
    if ours is None or golds is None:
      return _is_zero(difference)
    largest = max(abs(ours), abs(golds))
    if largest < sympy.Float(10) ** (-digits // 2):
      return _is_zero(difference)
    error = sympy.Float(10) ** (_SPARE_DIGITS - digits)
    if abs(ours - golds) > largest * error:
      return False
  return True


def _digits(*expressions: Any) -> int:
  """Returns how many digits tell different expressions apart.

  Numbers whose exact spelling has n digits can agree in some multiple of n.
  """
  bits = max(
      (
          max(x.p.bit_length(), x.q.bit_length())
          for expression in expressions
          for x in expression.atoms(sympy.Rational)
      ),
      default=0,
  )
  return min(60 + 2 * bits, _MOST_DIGITS)


def _points(names: list[str]) -> Iterator[dict[str, Any]]:
  """Yields values for symbols: positive, negative, and of both signs."""
  if not names:
    yield {}
    return
  for i, signs in enumerate(((1,), (-1,), (1, -1), (-1, 1))):
    yield {
        name: sign
        * sympy.Rational(sympy.prime(7 + 3 * i + k), sympy.prime(4 + i + 2 * k))
        for k, (name, sign) in enumerate(
            zip(names, itertools.cycle(signs), strict=False)
        )
    }


def _value(expression: Any, point: dict[str, Any], digits: int) -> Any:
  """Returns the value at a point; None if it is no finite number."""
  point = {x: point[x.name] for x in expression.free_symbols}
  value = expression.subs(point).evalf(digits, maxn=4 * digits)
  if not value.is_number or value.is_finite is not True:
    return None
  return value


def _is_zero(difference: Any) -> bool:
  try:
    return sympy.simplify(difference).is_zero is True
  except Exception:  # libraries raise any type
    return False


def _is_rounded(text: str, other: Any) -> bool:
  """Returns whether a text is a decimal that shortens an irrational number."""
  other = _evaluated(other)
  if not isinstance(other, sympy.Expr) or other.free_symbols:
    return False
  value = _value(other, {}, 60 + 4 * len(text))
  if other.is_Rational or value is None or not value.is_Float:
    return False
  exact = sympy.Rational(value)
  exact = frozenset([Fraction(int(exact.p), int(exact.q))])
  return numbers.shortens(text, numbers.candidates(text), exact)

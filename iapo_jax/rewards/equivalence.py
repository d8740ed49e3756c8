r"""Compares answers by meaning, in two stages.

`settle` decides at once, by spelling and exact numbers, and is safe to call
anywhere. `equivalent` decides the rest: it takes lists, tuples, intervals, sets
and matrices apart and compares their parts as formulas. It may run forever, so
only a process that can be killed should call it.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import math_verify

from iapo_jax.rewards import clock, formulas, numbers, spelling, structure
from iapo_jax.rewards.settling import (
    is_product,
    normalised,
    settle,
    squeezed,
)

__all__ = ["equivalent", "settle"]

_IN_BASE = re.compile(
    r"\(?((?=[A-Za-z]*\d)[0-9A-Za-z]+)\)?\s*(?:_\s*\{?\s*(?:\\text\s*\{)?|base\s+)"
    r"\(?(\d{1,2})\)?\s*\}{0,2}"
)
_TEXT_UNIT = re.compile(
    r"\s*\\text\s*\{\s*([A-Za-z][A-Za-z .]*)\}(?:\s*\^\s*\{?[23]\}?)?$"
)
_PLAIN_UNIT = re.compile(
    r"(?:(?<=[\d})])\s+|(?<=\\pi)\s+)([A-Za-z]{2,}(?: [A-Za-z]{2,})*)"
    r"(?:\s*\^\s*\{?[23]\}?)?$"
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")
_MEMBER = re.compile(r"[A-Za-z]\s*\\in(?![A-Za-z])\s*")
_RELATION = re.compile(
    r"[<>]|\\(?:le|ge|ne|lt|gt|approx|equiv|sim|simeq|cong|to)(?![A-Za-z])"
)
_LETTER = (
    r"(?:[A-Za-z]|\\(?:vec|hat|bar|text|overrightarrow)\{\w+\}|\\angle [A-Z]+"
    r"|\\[a-z]+\s?)"
)
_VARIABLE = rf"{_LETTER}(?:_\{{?\w{{1,3}}\}}?)?'?"
_POINT_NAMES = rf"\(({_VARIABLE}(?:\s*,\s*{_VARIABLE})+)\)"
# Words that negate what follows, or make it a program.
_NO_NAME = (
    r"(?!(?:not?|never|if|unless|let|int|float|double|bool|char|string|var|auto"
    r"|const|def|return|print|assert|while|for|import|lambda|echo|set)\b)"
)
# Left sides of an equation that only name the answer: letters, a function, a
# point, words.
_NAMED = re.compile(
    rf"{_VARIABLE}(?:\([\w,\s]{{1,20}}\))?"
    r"|[A-Za-z](?:\s*[-+]\s*[A-Za-z])+"
    rf"|{_POINT_NAMES}"
    rf"|{_NO_NAME}(?:\\text\s*\{{)?[A-Za-z][A-Za-z ]*\}}?"
)
_ASSIGNED = re.compile(
    rf"({_VARIABLE}(?:\([\w,\s]{{1,20}}\))?|{_POINT_NAMES}"
    rf"|{_NO_NAME}[A-Za-z][A-Za-z ]*|\\text\s*\{{[A-Za-z ]+\}})"
    r"\s*=\s*(?P<value>.+)"
)
_POINT = re.compile(rf"{_POINT_NAMES}\s*=\s*\((.+)\)")
_NUMBER = r"(?:\\?\$\s*)?[-+]?(?:\d[\d.,]*(?:/\d+)?|\\frac\s*\{\d+\}\s*\{\d+\})"
_QUANTITY = re.compile(
    rf"(?P<dollar>\\?\$)?{_NUMBER}\s*"
    r"(?P<unit>\\text\s*\{[^{}\d]*\}|(?<=\s)[A-Za-z][A-Za-z .]*"
    rf"|(?:{numbers.SHORT_UNITS})\b|%|\^\\circ\s*[CF]?)?"
    r"(?:\s*\^\s*\{?[23]\}?)?"
)
_SYNONYMS = {
    "hour": "h hr", "minute": "min", "second": "s sec", "foot": "ft feet",
    "inch": "in inche", "pound": "lb", "ounce": "oz", "meter": "m metre",
    "$": "dollar", "cent": "¢",
}  # fmt: skip
# Between two quantities that only a blank separates: `2 hours 30 minutes`.
_BETWEEN = re.compile(r"(?<=[A-Za-z.])\s+(?=\d)|(?<=\})\s*(?=\d)")


def equivalent(answer: str, gold: str, prose: str) -> bool:
  """Returns whether two answers are mathematically equal; may never return.

  Args:
    answer: one that `settle` left open.
    gold: the gold answer.
    prose: text in which Math-Verify may find another answer; may be empty.
  """
  if _same(spelling.normalise(answer), normalised(gold)):
    return True
  if not prose:
    return False
  parsed = math_verify.parse(prose, parsing_timeout=None)
  return formulas.any_equal(parsed, normalised(gold))


def _same(mine: str, theirs: str) -> bool:
  if squeezed(mine) == squeezed(theirs):
    return True
  mine, theirs = (_MEMBER.sub("", x, count=1) for x in (mine, theirs))
  if "," not in theirs:
    mine = _THOUSANDS.sub("", mine)
  if (values := _assigned_alike(mine, theirs)) and _same(*values):
    return True
  mine, theirs = _drop_assignments(mine, theirs)
  ours, golds = _members(mine), _members(theirs)
  if (members := _set_and_list(mine, theirs, ours, golds)) is not None:
    return members
  if len(structure.unions(theirs)) > 1:
    if _RELATION.search(mine):
      mine = r"\cup".join(map(structure.interval, structure.listed(mine)))
    sets = structure.unions(mine), structure.unions(theirs)
    return len(sets[0]) == len(sets[1]) and _same_members(*sets)
  if len(golds) > 1:
    return _same_list(ours, golds) or _same_point(mine, golds)
  if len(ours) > 1:
    return False
  return _same_single(mine, theirs)


def _same_single(mine: str, theirs: str) -> bool:
  """Compares two answers that are no lists."""
  ours, golds = structure.bracketed(mine), structure.bracketed(theirs)
  if bool(ours) != bool(golds):
    ours = ours or structure.bracketed(structure.interval(mine))
    golds = golds or structure.bracketed(structure.interval(theirs))
  if ours and golds:
    if ours[0] == golds[0] == "{}":
      return _same_set(ours[1], golds[1])
    same_shape = ours[0] == golds[0] and len(ours[1]) == len(golds[1])
    return same_shape and all(map(_same, ours[1], golds[1]))
  if ours or golds:
    return False
  return _same_leaf(mine, theirs)


def _same_ratio(mine: Sequence[str], theirs: Sequence[str]) -> bool:
  """Compares ratios of numbers, such as 1:2:3 and 2:4:6; 3:04 is a time."""
  if any(re.match(r"0\d", x) for x in (*mine, *theirs)):
    return False
  ours, golds = ([numbers.candidates(x) for x in y] for y in (mine, theirs))
  if len(ours) != len(golds) or not all(len(x) == 1 for x in [*ours, *golds]):
    return False
  (first,), (gold,) = ours[0], golds[0]
  return bool(first and gold) and all(
      x * gold == y * first
      for (x,), (y,) in zip(ours, golds, strict=True)
  )


@dataclasses.dataclass(frozen=True)
class _Member:
  """A member of a list.

  Attributes:
    text: the member.
    name: the variable that it is assigned to; empty if none.
    unit: the unit of a quantity; empty if none.
  """

  text: str
  name: str = ""
  unit: str = ""

  @property
  def label(self) -> str:
    """What tells members apart whatever their order."""
    return self.name or self.unit


def _members(text: str) -> list[_Member]:
  """Returns the members of a list, with the names and units that they have."""
  if point := _POINT.fullmatch(text):
    names, values = (structure.split(x, ",") for x in point.groups())
    if len(names) == len(values):
      return [
          _Member(value, squeezed(name).strip())
          for name, value in zip(names, values, strict=True)
      ]
  found: list[_Member] = []
  for item in structure.listed(text):
    parts = [_member(part) for part in _BETWEEN.split(item)]
    separate = len(parts) > 1 and all(part.unit for part in parts)
    found += parts if separate else [_member(item)]
  if len(found) > 1 and found[0].name and not any(x.label for x in found[1:]):
    return [dataclasses.replace(x, name=found[0].name) for x in found]
  if len(found) > 1 and found[-1].unit and not any(x.label for x in found[:-1]):
    return [dataclasses.replace(x, unit=found[-1].unit) for x in found]
  return found


def _member(text: str) -> _Member:
  assigned = _assignment(text)
  if assigned and not _RELATION.search(text):
    value = _right_side(text)
    return _Member(assigned[1] if value == text else value, assigned[0])
  if clock.read(text):
    return _Member(text)
  if quantity := _QUANTITY.fullmatch(text):
    unit = quantity["unit"] or ""
    if quantity["dollar"]:
      unit = f"$ {unit}"
  else:
    found = _TEXT_UNIT.search(text) or _PLAIN_UNIT.search(text)
    unit = found.group(1) if found else ""
  words = re.findall(r"[a-z$%]+", re.sub(r"\\text", "", unit.lower()))
  return _Member(text, unit=" ".join(map(_one_unit, words)))


def _one_unit(word: str) -> str:
  """Returns one spelling of a unit: `foot` for `feet` and `ft`, no plural."""
  word = word.rstrip("s") or word
  return next((x for x in _SYNONYMS if word in _SYNONYMS[x].split()), word)


def _same_list(ours: Sequence[_Member], golds: Sequence[_Member]) -> bool:
  """Compares lists.

  Members that nothing tells apart may stand in any order. Values of several
  variables, and quantities with unlike units, keep their order, or each has
  its name or unit.
  """
  solutions = _solutions(golds)
  if len(solutions) > 1:
    return _same_solutions(ours, solutions)
  if len(ours) != len(golds):
    return False
  are_told_apart = len({x.label for x in golds}) > 1
  units = {x.unit for x in ours}
  if len(units) == 1 and (golds[0].name or not are_told_apart):
    ours = [dataclasses.replace(x, unit="") for x in ours]
  texts = [[x.text for x in members] for members in (ours, golds)]
  # Numbered names, such as x_1 and x_2, may be those of roots.
  labels = {x.label.split("_")[0] for x in ours}
  if are_told_apart and any(labels):
    return _matched(ours, golds, _same_labelled)
  name = "" if are_told_apart else golds[0].name
  if name and not labels <= {"", name}:
    return False
  if are_told_apart or len(labels) > 1:
    return all(map(_same, *texts))
  return _same_members(*texts)


def _same_labelled(mine: _Member, theirs: _Member) -> bool:
  return mine.label == theirs.label and _same(mine.text, theirs.text)


def _solutions(members: Sequence[_Member]) -> list[list[_Member]]:
  """Splits values of several variables where a name is assigned again."""
  if len({x.name for x in members}) < 2 or not all(x.name for x in members):
    return [list(members)]
  found: list[list[_Member]] = [[]]
  for x in members:
    if x.name in {y.name for y in found[-1]}:
      found.append([])
    found[-1].append(x)
  return found


def _same_solutions(
    ours: Sequence[_Member], golds: Sequence[Sequence[_Member]]
) -> bool:
  """Compares several solutions, assignments or points, in any order."""

  def same(mine: Sequence[_Member], theirs: Sequence[_Member]) -> bool:
    if len(mine) == 1:
      return _same_point(mine[0].text, theirs)
    return _matched(mine, theirs, _same_labelled)

  named = all(x.name for x in ours)
  found = _solutions(ours) if named else [[x] for x in ours]
  return _matched(found, golds, same)


def _same_point(mine: str, golds: Sequence[_Member]) -> bool:
  """Compares a point with the values of several variables, in their order."""
  point = structure.bracketed(mine)
  if not point or point[0] != "()" or len(point[1]) != len(golds):
    return False
  names = {x.name for x in golds}
  return len(names) == len(golds) and "" not in names and all(
      _same(x, gold.text) for x, gold in zip(point[1], golds, strict=True)
  )


def _set_and_list(
    mine: str,
    theirs: str,
    ours: Sequence[_Member],
    golds: Sequence[_Member],
) -> bool | None:
  """Compares a set in braces with a list; None for any other pair.

  A set has no order, so it can be no list whose members are told apart.
  """
  sets = structure.bracketed(mine), structure.bracketed(theirs)
  if bool(sets[0]) == bool(sets[1]):
    return None
  kind, members = sets[0] or sets[1]
  listed = golds if sets[0] else ours
  if kind != "{}" or len(listed) < 2:
    return None
  if len({x.label.split("_")[0] for x in listed}) > 1:
    return False
  return _same_set(members, [x.text for x in listed])


def _same_members(mine: Sequence[str], theirs: Sequence[str]) -> bool:
  """Returns whether both have the same members, in any order."""
  return _matched(mine, theirs, _same)


def _matched(
    mine: Sequence[Any],
    theirs: Sequence[Any],
    same: Callable[[Any, Any], bool],
) -> bool:
  """Returns whether members pair up, in any order."""
  left = list(theirs)
  for item in mine:
    match = next((i for i, x in enumerate(left) if same(item, x)), None)
    if match is None:
      return False
    del left[match]
  return not left


def _same_set(mine: Sequence[str], theirs: Sequence[str]) -> bool:
  """Returns whether each holds all members of the other."""
  return all(any(_same(x, y) for y in theirs) for x in mine) and all(
      any(_same(x, y) for x in mine) for y in theirs
  )


def _assigned_alike(mine: str, theirs: str) -> tuple[str, str] | None:
  """Returns the values that two answers assign to one name, if they do."""
  found = [_assignment(x) for x in (mine, theirs)]
  if not all(found) or _RELATION.search(mine + theirs):
    return None
  if any(len(structure.listed(x)) > 1 for x in (mine, theirs)):
    return None
  return (found[0][1], found[1][1]) if found[0][0] == found[1][0] else None


def _assignment(text: str) -> tuple[str, str] | None:
  """Returns the name and the value of an assignment; None for other texts.

  `xy = 6` is an equation: it assigns nothing to a name.
  """
  found = _ASSIGNED.fullmatch(text)
  if not found or is_product(found.group(1).strip()):
    return None
  name = re.sub(r"\\text\s*\{\s*([^{}]*?)\s*\}", r"\1", found.group(1))
  return squeezed(name).strip(), found["value"]


def _drop_assignments(mine: str, theirs: str) -> tuple[str, str]:
  """Removes `x =` from answers that are no lists if the other one lacks it.

  Two equations stay equations. A chain such as `2 + 3 = 5` becomes its last
  part if its parts are equal.
  """
  if "=" in mine and "=" in theirs:
    return mine, theirs
  plain = _uncounted(mine)
  if "=" in mine and len(structure.listed(plain)) == 1:
    mine = _right_side(plain)
  names = _assignment(theirs) or not re.search("[A-Za-z]", theirs)
  is_list = len(structure.listed(theirs)) > 1
  if "=" in theirs and not is_list and (names or theirs.count("=") > 1):
    theirs = theirs.rpartition("=")[2].strip()
  return mine, theirs


def _right_side(text: str) -> str:
  """Returns the last part of a chain of equal parts; else the text."""
  if _RELATION.search(text):
    return text
  first, *rest = (part.strip() for part in structure.split(text, "="))
  if not rest or "" in (first, *rest):
    return text
  named = _NAMED.fullmatch(first)
  for part in rest[:-1] if named else [first, *rest[:-1]]:
    if not _same(_uncounted(part), _uncounted(rest[-1])):
      return text
  return rest[-1]


def _uncounted(text: str) -> str:
  """Removes dollar signs and thousands separators."""
  return _THOUSANDS.sub("", text).replace(r"\$", "").replace("$", "")


def _same_leaf(mine: str, theirs: str) -> bool:
  """Returns whether two single expressions are equal."""
  decided = settle(mine, theirs)
  if decided is not None:
    return decided
  ratios = [structure.split(x, ":") for x in (mine, theirs)]
  if max(map(len, ratios)) > 1:
    return _same_ratio(*ratios)
  if based := _IN_BASE.fullmatch(theirs):
    # The problem states the base, so an answer may leave it out.
    written = _IN_BASE.fullmatch(mine)
    mine = mine.strip("()")
    return (written.groups() if written else (mine, based[2])) == based.groups()
  mine = _drop_unit(_drop_unit(mine, _PLAIN_UNIT), _TEXT_UNIT)
  theirs = _drop_unit(theirs, _TEXT_UNIT)
  return structure.is_closed(mine) and formulas.equal(mine, theirs)


def _drop_unit(text: str, pattern: re.Pattern[str]) -> str:
  """Removes the words after an expression, if they are a unit."""
  unit = pattern.search(text)
  if unit and not numbers.is_other_number(unit.group(1)):
    return text[: unit.start()].strip()
  return text

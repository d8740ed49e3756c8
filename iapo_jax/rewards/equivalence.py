r"""Compares answers by meaning, in two stages.

`settle` decides at once, by spelling and exact numbers, and is safe to call
anywhere. `equivalent` decides the rest: it takes lists, tuples, intervals, sets
and matrices apart and compares their parts with Math-Verify. It may run
forever, so only a process that can be killed should call it.
"""

import functools
import itertools
import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence

from iapo_jax.rewards import numbers, spelling
from iapo_jax.rewards.text import last_boxed

_CHOICE_GOLD = re.compile(r"(?:\\text\s*\{)?\(?([A-J])\)?\}?")
_CHOICE = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+|right\s+)?(?:answer|option|choice|letter)"
    r"(?:\s+is|\s*:)?\s*)*(?:\\text\s*\{\s*)?[([{]?([A-J])(?![\w'^])",
    re.IGNORECASE,
)
_NEXT_CHOICE = re.compile(
    r"[\s.,:;/&)(\[\]}-]*(?:(?:or|and|because)\s+)?[(\[]?[A-J]"
    r"(?=\s*(?:$|[.,;:)\]/&]))"
)
_WORDS_GOLD = re.compile(r"\\text\s*\{[^{}]*[A-Za-z][^{}]*\}|[A-Za-z]{2,}")
# Powers and factorials that a computer algebra system may take forever to
# write out.
_ENDLESS = re.compile(
    r"\^[\s{(]*[-+]?\d{5,}|\d{401,}|\d{4,}[\s)}]*!|![\s)}]*!"
    r"|(?:\^[\s{(]*[-+]?\d+[\s})]*){3}"
)
_TOWER = re.compile(r"\^[\s{(]*[-+]?(\d+)[\s})]*\^[\s{(]*[-+]?(\d+)")
_LARGEST_EXPONENT = 10_000
_IN_BASE = re.compile(
    r"\(?([0-9A-Za-z]+)\)?\s*(?:_\s*\{?\s*(?:\\text\s*\{)?|base\s+)"
    r"\(?(\d{1,2})\)?\s*\}{0,2}"
)
_IMAGINARY = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")
_TEXT_UNIT = re.compile(
    r"\s*\\text\s*\{\s*([A-Za-z][A-Za-z .]*)\}(?:\s*\^\s*\{?[23]\}?)?$"
)
_PLAIN_UNIT = re.compile(r"(?<=[\d})])\s+([A-Za-z]{2,}(?: [A-Za-z]{2,})*)$")
# Marks that the parser ignores or misreads. Both answers must have a mark, or
# neither.
_MARKS = tuple(
    re.compile(pattern)
    for pattern in (
        r"'", r"\\text", r"\d\s*_", r"\^\s*\{?\s*T\b", r"\\approx",
        r"\\equiv", r"\\ne(?![a-z])", r"\\sim", r"=", r"[<>]|\\[lg]e\b",
    )
)  # fmt: skip
_MOST_NESTED = 30
_OPENING = ("(", "[", "{", r"\{", r"\langle")
_CLOSING = (")", "]", "}", r"\}", r"\rangle")
_TOKEN = re.compile(r"\\[{}]|\\[A-Za-z]+|\\.|.", re.DOTALL)
_JOINING = re.compile(
    r"\s*(?:;|\\text\s*\{\s*,?\s*(?:and|or)\s*\}|,?\s*\b(?:and|or)\b)\s*,?\s*"
)
_UNION = re.compile(r"\\cup(?![A-Za-z])|(?<=[)\]}])\s*U\s*(?=[(\[{\\])")
_MEMBER = re.compile(r"[A-Za-z]\s*\\in(?![A-Za-z])\s*")
_RELATION = re.compile(
    r"[<>]|\\(?:le|ge|ne|lt|gt|approx|equiv|sim|simeq|cong|to)(?![A-Za-z])"
)
# Left sides of an equation that only name the answer: letters, a function, a
# point, words.
_NAMED = re.compile(
    r"(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w{1,3}\}?)?'?(?:\([\w,\s]{1,20}\))?"
    r"|[A-Za-z](?:\s*[-+]\s*[A-Za-z])+"
    r"|\((?:[A-Za-z]|\\[a-z]+)\s*(?:,\s*(?:[A-Za-z]|\\[a-z]+)\s*)*\)"
    r"|(?:\\text\s*\{)?[A-Za-z][A-Za-z ]*\}?"
)
_LESS = r"\s*(<|\\le(?![a-z]))\s*"
_MORE = r"\s*(>|\\ge(?![a-z]))\s*"
_ORDER = r"\s*(<|>|\\[lg]e(?![a-z]))\s*"
_TURNED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_BETWEEN = re.compile(rf"([^<>=,]+?){_LESS}[A-Za-z]{_LESS}([^<>=,]+)")
_DESCENDING = re.compile(
    rf"([^<>=,]+?){_MORE}([A-Za-z]){_MORE}([^<>=,]+)"
)
_LETTER_FIRST = re.compile(rf"[A-Za-z]{_ORDER}([^<>=,]+)")
_LETTER_LAST = re.compile(rf"([^<>=,A-Za-z]+?){_ORDER}[A-Za-z]")
_MATRIX = re.compile(
    r"\\begin\s*\{([pbvVB]?matrix|array)\}(?:\{[^{}]*\})?(.*)"
    r"\\end\s*\{\1\}",
    re.DOTALL,
)
_ROW = re.compile(r"\\\\(?:\s*\[[^\]]*\])?")
_ASSIGNED = re.compile(
    r"(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w{1,3}\}?)?(?:\([a-zA-Z](?:,\s*[a-z])*\))?"
    r"\s*=\s*(.+)"
)


def settle(answer: str, gold: str) -> bool | None:
  """Returns whether an answer is right; None if that stays open.

  `answer` has at most `spelling.LONGEST` characters.
  """
  mine, theirs = spelling.normalise(answer), _normalised(gold)
  if not mine:
    return False
  if choice := _CHOICE_GOLD.fullmatch(theirs):
    return _chosen(mine) == choice.group(1)
  if _squeezed(mine) == _squeezed(theirs):
    return True
  golds = _gold_candidates(theirs)
  if golds and (found := numbers.candidates(mine)):
    return numbers.equal(mine, found, golds)
  if _WORDS_GOLD.fullmatch(theirs):
    return _words(mine) == _words(theirs)
  if _is_endless(mine) and not _is_endless(theirs):
    return False
  if max(_depths(mine)) > _MOST_NESTED:
    return False
  return None


@functools.lru_cache(maxsize=4096)
def _normalised(gold: str) -> str:
  return spelling.normalise(last_boxed(gold) or gold)


@functools.lru_cache(maxsize=4096)
def _gold_candidates(gold: str) -> frozenset:
  return numbers.candidates(gold, gold=True)


def _squeezed(text: str) -> str:
  """Removes blanks that separate nothing, and braces of short scripts."""
  text = re.sub(r"\s*([^\w\s])\s*", r"\1", text)
  return re.sub(r"(\^|_)\{(\w)\}", r"\1\2", text)


def _chosen(text: str) -> str | None:
  """Returns the letter of the only choice that a text names; else None."""
  found = _CHOICE.match(text)
  if not found or _NEXT_CHOICE.match(text, found.end()):
    return None
  return found.group(1).upper()


def _words(text: str) -> str:
  """Returns words to compare, without an introduction or an article."""
  text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
  words = " ".join(text.casefold().replace("-", " ").split()).strip(" .")
  words = re.sub(r"^(?:it|the [a-z]+) (?:is|was) (?!not\b)", "", words)
  return re.sub(r"^(?:an?|the) ", "", words)


def _is_endless(text: str) -> bool:
  """Returns whether powers or factorials may take forever to write out."""
  if _ENDLESS.search(text):
    return True
  return any(
      int(upper) * math.log(max(int(lower), 1)) > math.log(_LARGEST_EXPONENT)
      for lower, upper in _TOWER.findall(text)
  )


def _depths(tokens: Iterable[str]) -> Iterator[int]:
  """Yields how deep brackets nest, at the start and after each token."""
  changes = ((x in _OPENING) - (x in _CLOSING) for x in tokens)
  return itertools.accumulate(changes, initial=0)


def equivalent(answer: str, gold: str, prose: str) -> bool:
  """Returns whether two answers are mathematically equal; may never return.

  Args:
    answer: one that `settle` left open.
    gold: the gold answer.
    prose: text in which Math-Verify may find another answer; may be empty.
  """
  if _same(spelling.normalise(answer), _normalised(gold)):
    return True
  if not prose:
    return False
  import math_verify

  golds = _parse(_normalised(gold))
  parsed = math_verify.parse(prose, parsing_timeout=None)
  return math_verify.verify(golds, parsed, timeout_seconds=None)


def _same(mine: str, theirs: str) -> bool:
  if _squeezed(mine) == _squeezed(theirs):
    return True
  mine, theirs = _drop_assignments(mine, theirs)
  if "," not in theirs:
    mine = _uncounted(mine)
  if (members := _set_and_list(mine, theirs)) is not None:
    return members
  if len(_unions(theirs)) > 1 and _RELATION.search(mine):
    mine = r"\cup".join(map(_interval, _listed(mine)))
  for split in (_unions, _listed):
    ours, golds = split(mine), split(theirs)
    if len(ours) != len(golds):
      return False
    if len(ours) > 1:
      return _same_members(ours, golds)
  ours, golds = _bracketed(mine), _bracketed(theirs)
  if bool(ours) != bool(golds):
    ours = ours or _bracketed(_interval(mine))
    golds = golds or _bracketed(_interval(theirs))
  if ours and golds:
    if ours[0] == golds[0] == "{}":
      return _same_set(ours[1], golds[1])
    same_shape = ours[0] == golds[0] and len(ours[1]) == len(golds[1])
    return same_shape and all(map(_same, ours[1], golds[1]))
  if ours or golds:
    return False
  return _same_leaf(mine, theirs)


def _set_and_list(mine: str, theirs: str) -> bool | None:
  """Compares a set in braces with a list; None for any other pair."""
  ours, golds = _bracketed(mine), _bracketed(theirs)
  if bool(ours) == bool(golds):
    return None
  kind, members = ours or golds
  listed = _listed(theirs if ours else mine)
  if kind != "{}" or len(listed) < 2:
    return None
  return _same_set(members, listed)


def _same_members(mine: Sequence[str], theirs: Sequence[str]) -> bool:
  """Returns whether both have the same members, in any order."""
  left = list(theirs)
  for item in mine:
    match = next((x for x in left if _same(item, x)), None)
    if match is None:
      return False
    left.remove(match)
  return not left


def _same_set(mine: Sequence[str], theirs: Sequence[str]) -> bool:
  """Returns whether each holds all members of the other."""
  return all(any(_same(x, y) for y in theirs) for x in mine) and all(
      any(_same(x, y) for x in mine) for y in theirs
  )


def _drop_assignments(mine: str, theirs: str) -> tuple[str, str]:
  """Removes `x =` or `x ∈` if the other answer lacks it.

  Two equations stay equations. A chain such as `2 + 3 = 5` becomes its last
  part if its parts are equal.
  """
  both = "=" in mine and "=" in theirs
  mine, theirs = (_MEMBER.sub("", x, count=1) for x in (mine, theirs))
  if both:
    return mine, theirs
  if "=" in mine:
    plain = _uncounted(mine)
    mine = plain if len(_listed(plain)) == 1 else mine
    mine = ", ".join(_right_side(item) for item in _listed(mine))
  if theirs.count("=") > 1:
    theirs = theirs.rpartition("=")[2].strip()
  elif "=" in theirs and (assigned := _ASSIGNED.fullmatch(theirs)):
    theirs = assigned.group(1)
  return mine, theirs


def _right_side(text: str) -> str:
  """Returns the last part of a chain of equal parts; else the text."""
  if _RELATION.search(text):
    return text
  first, *rest = (part.strip() for part in _split(text, "="))
  if not rest or "" in (first, *rest):
    return text
  named = _NAMED.fullmatch(first)
  for part in rest[:-1] if named else [first, *rest[:-1]]:
    if not _same(_uncounted(part), _uncounted(rest[-1])):
      return text
  return rest[-1]


def _uncounted(text: str) -> str:
  """Removes dollar signs and thousands separators."""
  return re.sub(r"(?<=\d),(?=\d{3})|\\?\$", "", text)


def _split(text: str, separator: str) -> list[str]:
  """Splits at the separators outside of all brackets."""
  tokens = _TOKEN.findall(text)
  parts, part = [], []
  for token, depth in zip(tokens, _depths(tokens), strict=False):
    if token == separator and depth <= 0:
      parts.append(part)
      part = []
    else:
      part.append(token)
  return ["".join(part).strip() for part in (*parts, part)]


def _unions(text: str) -> list[str]:
  return _split(_UNION.sub(r"\\cup", text), r"\cup")


def _listed(text: str) -> list[str]:
  """Returns the members of a list without brackets; `a ± b` counts as two."""
  if _MATRIX.search(text):
    return [text]
  parts = _split(_JOINING.sub(", ", text), ",")
  if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
    return [text]
  return [side for part in parts for side in _both_signs(part)]


def _both_signs(text: str) -> list[str]:
  if text.count(r"\pm") == 1 and not _bracketed(text):
    return [text.replace(r"\pm", sign) for sign in "+-"]
  return [text]


def _bracketed(text: str) -> tuple[str, list[str]] | None:
  """Returns kind and entries of a tuple, an interval, a set or a matrix."""
  if matrix := _MATRIX.fullmatch(text):
    rows = [row for row in _ROW.split(matrix.group(2)) if row.strip()]
    columns = len(rows[0].split("&")) if rows else 0
    entries = [entry.strip() for row in rows for entry in row.split("&")]
    kind = "determinant" if matrix.group(1) == "vmatrix" else "matrix"
    return f"{kind} {len(rows)} {columns}", entries
  tokens = _TOKEN.findall(text)
  if len(tokens) < 3:
    return None
  first, last = tokens[0], tokens[-1]
  inner = text[len(first) : -len(last)]
  if first == r"\langle" and last == r"\rangle":
    kind = "()"
  elif first in (r"\{", "{") and last in (r"\}", "}") and _is_closed(inner):
    kind = "{}"
  elif first in "([" and last in ")]" and _is_closed(inner):
    kind = first + last
  else:
    return None
  entries = _listed(inner) if kind == "{}" else _split(inner, ",")
  if len(entries) == 1 and kind in ("()", "[]"):
    return None
  return kind, entries


def _interval(text: str) -> str:
  """Returns an inequality in one letter as an interval; else the text."""
  if match := _DESCENDING.fullmatch(text):
    high, second, letter, first, low = match.groups()
    text = f"{low} {_TURNED[first]} {letter} {_TURNED[second]} {high}"
  if match := _BETWEEN.fullmatch(text):
    low, first, second, high = match.groups()
    opening = "(" if first == "<" else "["
    return f"{opening}{low},{high}{')' if second == '<' else ']'}"
  if match := _LETTER_FIRST.fullmatch(text):
    order, bound = match.groups()
  elif match := _LETTER_LAST.fullmatch(text):
    bound, order = match[1], _TURNED[match[2]]
  else:
    return text
  if order in ("<", r"\le"):
    return rf"(-\infty,{bound}{')' if order == '<' else ']'}"
  return rf"{'(' if order == '>' else '['}{bound},\infty)"


def _is_closed(inner: str) -> bool:
  """Returns whether brackets pair up; kinds may differ, as in `[0, 1)`."""
  depths = list(_depths(_TOKEN.findall(inner)))
  return min(depths) == depths[-1] == 0


def _same_leaf(mine: str, theirs: str) -> bool:
  """Returns whether two single expressions are equal."""
  decided = settle(mine, theirs)
  if decided is not None:
    return decided
  if based := _IN_BASE.fullmatch(theirs):
    # The problem states the base, so an answer may leave it out.
    written = _IN_BASE.fullmatch(mine)
    mine = mine.strip("()")
    return (written.groups() if written else (mine, based[2])) == based.groups()
  mine = _drop_unit(_drop_unit(mine, _PLAIN_UNIT), _TEXT_UNIT)
  theirs = _drop_unit(theirs, _TEXT_UNIT)
  for mark in _MARKS:
    if bool(mark.search(mine)) != bool(mark.search(theirs)):
      return False
  if not _is_closed(mine):
    return False
  import math_verify

  return math_verify.verify(
      _parse(theirs), _parse(mine), strict=True, timeout_seconds=None
  )


def _drop_unit(text: str, pattern: re.Pattern[str]) -> str:
  """Removes the words after an expression, if they are a unit."""
  unit = pattern.search(text)
  if unit and not numbers.is_other_number(unit.group(1)):
    return text[: unit.start()].strip()
  return text


@functools.lru_cache(maxsize=1024)
def _parse(text: str) -> list:
  """Parses a formula with Math-Verify's parser; [] if it cannot be parsed.

  The parser's defaults drop possible units and lower capitals, which would
  turn `3R^2` and `2x + 3t` into other expressions.
  """
  import latex2sympy2_extended as parser
  from latex2sympy2_extended import latex2sympy2

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
    return [
        parser.latex2sympy(
            spelled,
            is_real=not _IMAGINARY.search(spelled),
            convert_degrees=False,
            normalization_config=None,
            conversion_config=latex2sympy2.ConversionConfig(
                lowercase_symbols=False
            ),
        )
    ]
  except Exception:  # the parser raises any type on text that is no formula
    return []

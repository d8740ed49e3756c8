r"""Whether two answers mean the same.

Two stages. `settle` decides at once, by spelling and exact numbers, and is safe
to call anywhere. What it leaves open goes to `equivalent`, which takes lists,
tuples, intervals, sets and matrices apart and asks Math-Verify about their
parts: it may run for ever, and belongs into a process that can be killed.
"""

import functools
import logging
import math
import re
from collections.abc import Sequence

from iapo_jax.rewards import numbers, spelling
from iapo_jax.rewards.text import last_boxed

_CHOICE_GOLD = re.compile(r"(?:\\text\s*\{)?\(?([A-J])\)?\}?")
_CHOICE = re.compile(
    r"(?:option|choice|letter)?\s*"
    r"(?:\\text\s*\{\s*)?[([]?([A-Ja-j])[)\]]?\s*\}?[)\]]?"
    r"(?:$|\s*[.:)\]](?:\s|$)|\s*\}|\)?\s+because\b|\s+-\s)"
)
_WORDS_GOLD = re.compile(r"\\text\s*\{[^{}]*[A-Za-z][^{}]*\}|[A-Za-z]{2,}")
# A computer algebra system would write these numbers out.
_ENDLESS = re.compile(
    r"\^[\s{(]*[-+]?\d{5,}|\d{401,}|\d{4,}[\s)}]*!|![\s)}]*!"
    r"|(?:\^[\s{(]*[-+]?\d+[\s})]*){3}"
)
_TOWER = re.compile(r"\^[\s{(]*[-+]?(\d+)[\s})]*\^[\s{(]*[-+]?(\d+)")
_LARGEST_EXPONENT = 10_000
_IN_BASE = re.compile(r"([0-9A-Za-z]+)\s*_\s*\{?\s*(\d{1,2})\s*\}?")
_MOST_NESTED = 30
_OPENING, _CLOSING = "([{", ")]}"
_TOKEN = re.compile(r"\\[{}]|\\[A-Za-z]+|\\.|.", re.DOTALL)
_JOINING = re.compile(
    r"\s*(?:;|\\text\s*\{\s*,?\s*(?:and|or)\s*\}|,?\s*\b(?:and|or)\b)\s*,?\s*"
)
_UNION = re.compile(r"\\cup(?![A-Za-z])|(?<=[)\]}])\s*U\s*(?=[(\[{\\])")
_MEMBER = re.compile(r"[A-Za-z]\s*(?:\\in(?![A-Za-z])|=)\s*")
_LESS = r"\s*(<|\\le(?![a-z]))\s*"
_MORE = r"\s*(>|\\ge(?![a-z]))\s*"
_BETWEEN = re.compile(rf"([^<>=,]+?){_LESS}[A-Za-z]{_LESS}([^<>=,]+)")
_BELOW = re.compile(rf"[A-Za-z]{_LESS}([^<>=,]+)")
_ABOVE = re.compile(rf"[A-Za-z]{_MORE}([^<>=,]+)")
_MATRIX = re.compile(
    r"\\begin\s*\{([pbvVB]?matrix|array)\}(?:\{[^{}]*\})?(.*)"
    r"\\end\s*\{\1\}",
    re.DOTALL,
)
_ASSIGNED = re.compile(
    r"(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w{1,3}\}?)?(?:\([a-zA-Z](?:,\s*[a-z])*\))?"
    r"\s*=\s*(.+)"
)

def settle(answer: str, gold: str) -> bool | None:
  """Whether an answer is right, where its spelling shows it.

  Args:
    answer: of at most `spelling.LONGEST` characters.
    gold: the gold answer.

  Returns:
    None where it does not.
  """
  mine, theirs = spelling.normalise(answer), _normalised(gold)
  if not mine:
    return False
  if choice := _CHOICE_GOLD.fullmatch(theirs):
    found = _CHOICE.match(mine)
    return bool(found) and found.group(1).upper() == choice.group(1)
  if mine == theirs or _squeezed(mine) == _squeezed(theirs):
    return True
  golds = _gold_candidates(theirs)
  if golds and (mine_numbers := numbers.candidates(mine)):
    return numbers.equal(mine, mine_numbers, golds)
  if _WORDS_GOLD.fullmatch(theirs):
    return _words(mine) == _words(theirs)
  if _is_endless(mine) and not _is_endless(theirs):
    return False
  if _depth(mine) > _MOST_NESTED:
    return False
  return None


@functools.lru_cache(maxsize=4096)
def _normalised(gold: str) -> str:
  return spelling.normalise(last_boxed(gold) or gold)


@functools.lru_cache(maxsize=4096)
def _gold_candidates(gold: str) -> frozenset:
  return numbers.candidates(gold)


def _squeezed(text: str) -> str:
  """Without blanks that separate nothing."""
  text = re.sub(r"\s*([^\w\s])\s*", r"\1", text)
  return re.sub(r"(\^|_)\{(\w)\}", r"\1\2", text)


def _words(text: str) -> str:
  text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
  return " ".join(text.casefold().replace("-", " ").split()).strip(" .")


def _is_endless(text: str) -> bool:
  """Whether it may take for ever to write out its powers and factorials."""
  if _ENDLESS.search(text):
    return True
  return any(
      int(upper) * math.log(max(int(lower), 1)) > math.log(_LARGEST_EXPONENT)
      for lower, upper in _TOWER.findall(text)
  )


def _depth(text: str) -> int:
  """How deep brackets nest."""
  deepest = depth = 0
  for character in text:
    depth += (character in _OPENING) - (character in _CLOSING)
    deepest = max(deepest, depth)
  return deepest


def equivalent(answer: str, gold: str, prose: str) -> bool:
  """Whether two answers are mathematically the same; may not come to an end.

  Args:
    answer: as for `settle`, which left it open.
    gold: the gold answer.
    prose: a text in which Math-Verify may look for another answer; or empty.

  Returns:
    Whether they are.
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
  if mine == theirs or _squeezed(mine) == _squeezed(theirs):
    return True
  mine, theirs = _drop_assignments(mine, theirs)
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


def _same_members(mine: Sequence[str], theirs: Sequence[str]) -> bool:
  """Whether one is the other in some order."""
  left = list(theirs)
  for item in mine:
    match = next((x for x in left if _same(item, x)), None)
    if match is None:
      return False
    left.remove(match)
  return not left


def _same_set(mine: Sequence[str], theirs: Sequence[str]) -> bool:
  """Whether each holds all members of the other."""
  return all(any(_same(x, y) for y in theirs) for x in mine) and all(
      any(_same(x, y) for x in mine) for y in theirs
  )


def _drop_assignments(mine: str, theirs: str) -> tuple[str, str]:
  """Without `x =` or `x ∈` where the other one lacks it.

  Equations of both are compared as such; of a chain that ends in the answer,
  `2 + 3 = 5`, the end counts.
  """
  has = ["=" in mine, "=" in theirs]
  if r"\in" in theirs:
    theirs = _MEMBER.sub("", theirs, count=1)
  if r"\in" in mine:
    mine = _MEMBER.sub("", mine, count=1)
  if has == [True, True]:
    return mine, theirs
  listed = len(_listed(mine)) > 1
  if has[0]:
    if listed:
      mine = ", ".join(_right_side(item) for item in _listed(mine))
    else:
      mine = mine.rsplit("=", 1)[1].strip()
  if has[1] and (assigned := _ASSIGNED.fullmatch(theirs)):
    theirs = assigned.group(1)
  return mine, theirs


def _right_side(text: str) -> str:
  assigned = _ASSIGNED.fullmatch(text)
  return assigned.group(1) if assigned else text


def _split(text: str, separator: str) -> list[str]:
  """Parts between separators that stand outside of all brackets."""
  parts, depth, start, at = [], 0, 0, 0
  for token in _TOKEN.findall(text):
    depth += (token in ("(", "[", "{", r"\{")) - (
        token in (")", "]", "}", r"\}")
    )
    if token == separator and depth <= 0:
      parts.append(text[start:at].strip())
      start = at + len(token)
    at += len(token)
  return [*parts, text[start:].strip()]


def _unions(text: str) -> list[str]:
  return _split(_UNION.sub(r"\\cup", text), r"\cup")


def _listed(text: str) -> list[str]:
  """The members of a list without brackets; `a ± b` are two."""
  if _MATRIX.search(text):
    return [text]
  parts = _split(_JOINING.sub(", ", text), ",")
  if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
    return [text]
  return [side for part in parts for side in _both_signs(part)]


def _both_signs(text: str) -> list[str]:
  if len(_split(text, r"\pm")) == 2:
    return [text.replace(r"\pm", sign) for sign in "+-"]
  return [text]


def _bracketed(text: str) -> tuple[str, list[str]] | None:
  """Kind and entries of a tuple, an interval, a set or a matrix."""
  if matrix := _MATRIX.fullmatch(text):
    rows = [row for row in re.split(r"\\\\", matrix.group(2)) if row.strip()]
    columns = len(rows[0].split("&")) if rows else 0
    entries = [entry.strip() for row in rows for entry in row.split("&")]
    kind = "determinant" if matrix.group(1) == "vmatrix" else "matrix"
    return f"{kind} {len(rows)} {columns}", entries
  tokens = _TOKEN.findall(text)
  if len(tokens) < 3:
    return None
  first, last = tokens[0], tokens[-1]
  inner = text[len(first) : -len(last)]
  if first in (r"\{", "{") and last in (r"\}", "}") and _is_closed(inner):
    kind = "{}"
  elif first in "([" and last in ")]" and _is_closed(inner):
    kind = first + last
  elif first == r"\langle" and last == r"\rangle":
    kind = "()"
  else:
    return None
  entries = _listed(inner) if kind == "{}" else _split(inner, ",")
  if len(entries) == 1 and kind in ("()", "[]"):
    return None
  return kind, entries


def _interval(text: str) -> str:
  """The interval that an inequality of one letter says, or the text."""
  if match := _BETWEEN.fullmatch(text):
    low, first, second, high = match.groups()
    opening = "(" if first == "<" else "["
    return f"{opening}{low},{high}{')' if second == '<' else ']'}"
  if match := _BELOW.fullmatch(text):
    return f"(-\\infty,{match[2]}{')' if match[1] == '<' else ']'}"
  if match := _ABOVE.fullmatch(text):
    return f"{'(' if match[1] == '>' else '['}{match[2]},\\infty)"
  return text


def _is_closed(inner: str) -> bool:
  """Whether its brackets pair up, whatever their kinds."""
  depth = 0
  for token in _TOKEN.findall(inner):
    depth += (token in ("(", "[", "{", r"\{")) - (
        token in (")", "]", "}", r"\}")
    )
    if depth < 0:
      return False
  return depth == 0


def _same_leaf(mine: str, theirs: str) -> bool:
  decided = settle(mine, theirs)
  if decided is not None:
    return decided
  if based := _IN_BASE.fullmatch(theirs):
    # A problem that asks for a base may be answered without saying it again.
    written = _IN_BASE.fullmatch(mine)
    return (written.groups() if written else (mine, based[2])) == based.groups()
  import math_verify

  golds, answers = _parse(theirs), _parse(mine)
  return math_verify.verify(
      golds, answers, strict=True, timeout_seconds=None
  )


@functools.lru_cache(maxsize=1024)
def _parse(text: str) -> list:
  """What Math-Verify reads in a formula, at most one expression."""
  import math_verify

  logging.getLogger("math_verify").setLevel(logging.ERROR)
  return math_verify.parse(
      f"\\boxed{{{text}}}",
      [math_verify.LatexExtractionConfig(boxed_match_priority=0)],
      fallback_mode="no_fallback",
      extraction_mode="first_match",
      parsing_timeout=None,
  )

"""Parts of normalised answers: lists, unions, tuples, sets, matrices."""

import itertools
import re
from collections.abc import Iterable, Iterator

_OPENING = ("(", "[", "{", r"\{", r"\langle", r"\begin")
_CLOSING = (")", "]", "}", r"\}", r"\rangle", r"\end")
_TOKEN = re.compile(r"\\[{}]|\\[A-Za-z]+|\\.|.", re.DOTALL)
_JOINING = re.compile(
    r"\s*(?:;|\\text\s*\{\s*,?\s*(?:and|or)\s*\}|,?\s*\b(?:and|or)\b)\s*,?\s*"
)
_JOINED_TEXT = re.compile(
    r",?\s*\\text\s*\{(?P<left>[^{}]*?)(?P<join>,?\s*\b(?:and|or)\b\s*|,\s*)"
    r"(?P<right>[^{}]*)\}"
)
# Where only a blank stands between two assignments: `x = 1 y = 2`.
_NEXT_ASSIGNED = re.compile(
    r"(?<==)(?P<value>\s*[-+]?[^\s=,<>]+)\s+(?=[A-Za-z](?:_\{?\w\}?)?\s*=[^=])"
)
_UNION = re.compile(r"\\cup(?![A-Za-z])|(?<=[)\]}])\s*U\s*(?=[(\[{\\])")
_SYSTEM = re.compile(
    r"(?:\\\{\s*)?\\begin\s*\{(?P<name>cases|aligned|gathered)\}(?P<rows>.*)"
    r"\\end\s*\{(?P=name)\}\s*\.?"
    r"|\\\{\s*\\begin\s*\{array\}\s*\{[lcr]*\}(?P<lines>.*)\\end\s*\{array\}"
    r"\s*\.?",
    re.DOTALL,
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
    r"\\begin\s*\{(?:(?P<name>[pbvVB]?(?:small)?matrix)(\*?)\}(?:\s*\[[a-z]\])?"
    r"|array\}(?:\s*\[[a-z]\])?\s*\{(?:[^{}]|\{[^{}]*\})*\})(?P<body>.*)"
    r"\\end\s*\{(?:(?P=name)\2|array)\}"
    r"|\\(?P<plain>[pbvVB]?matrix)\s*\{(?P<rows>.*)\}",
    re.DOTALL,
)
_ROW = re.compile(r"\\\\(?:\s*\[[^\]]*\])?|\\(?:cr|tabularnewline)(?![A-Za-z])")
_GROUPED = re.compile(r"^\{([^{}]*)\}$")
_RULE = re.compile(r"\\(?:hline|hdashline)(?![A-Za-z])")
_FENCED = re.compile(
    r"(?P<left>\\?[|{]|[(\[])\s*(?P<inner>.*?)\s*(?P<right>\\?[|}]|[)\]])",
    re.DOTALL,
)
_FENCES = {
    "()": "matrix", "[]": "matrix", "{}": "matrix", "||": "determinant",
    r"\|\|": "norm", r"\{\}": "matrix",
}  # fmt: skip
_ENVIRONMENTS = {"v": "determinant", "V": "norm"}


def depths(tokens: Iterable[str]) -> Iterator[int]:
  """Yields how deep brackets nest, at the start and after each token."""
  changes = ((x in _OPENING) - (x in _CLOSING) for x in tokens)
  return itertools.accumulate(changes, initial=0)


def split(text: str, separator: str) -> list[str]:
  """Splits at the separators outside of all brackets."""
  tokens = _TOKEN.findall(text)
  parts, part = [], []
  for token, depth in zip(tokens, depths(tokens), strict=False):
    if token == separator and depth <= 0:
      parts.append(part)
      part = []
    else:
      part.append(token)
  return ["".join(part).strip() for part in (*parts, part)]


def unions(text: str) -> list[str]:
  """Returns the members of a union of sets."""
  return split(_UNION.sub(r"\\cup", text), r"\cup")


def listed(text: str) -> list[str]:
  """Returns the members of a list without brackets; `a ± b` counts as two."""
  if system := _SYSTEM.fullmatch(text):
    rows = _ROW.split(system["rows"] or system["lines"] or "")
    rows = [row.strip(" ,;.") for row in rows]
    rows = [re.sub(r"&?\s*=\s*&?", "=", row) for row in rows if row]
    return [text] if any("&" in row for row in rows) else rows
  text = _JOINED_TEXT.sub(_separate, text)
  if r"\begin" not in text:  # in a matrix, it ends a row
    text = text.replace(r"\\", ", ")
  text = _NEXT_ASSIGNED.sub(r"\g<value>, ", text)
  parts = split(_JOINING.sub(", ", text), ",")
  if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
    return [text]
  return [side for part in parts for side in _both_signs(part)]


def _separate(match: re.Match[str]) -> str:
  """Takes a conjunction out of the words of a text."""
  left, right = (
      rf"\text{{{words}}}" if words.strip() else ""
      for words in (match["left"], match["right"])
  )
  return f"{left}, {right}"


def _both_signs(text: str) -> list[str]:
  if text.count(r"\pm") == 1 and not bracketed(text):
    return [text.replace(r"\pm", sign) for sign in "+-"]
  return [text]


def bracketed(text: str) -> tuple[str, list[str]] | None:
  """Returns kind and entries of a tuple, an interval, a set or a matrix."""
  if matrix := _matrix(text):
    return matrix
  tokens = _TOKEN.findall(text)
  if len(tokens) < 3:
    return None
  first, last = tokens[0], tokens[-1]
  inner = text[len(first) : -len(last)]
  if first == r"\langle" and last == r"\rangle":
    kind = "()"
  elif first in (r"\{", "{") and last in (r"\}", "}") and is_closed(inner):
    kind = "{}"
  elif first in "([" and last in ")]" and is_closed(inner):
    kind = first + last
  else:
    return None
  entries = listed(inner) if kind == "{}" else split(inner, ",")
  if len(entries) == 1 and kind in ("()", "[]"):
    return bracketed(inner.strip()) if kind == "()" else None
  return kind, entries


def _matrix(text: str) -> tuple[str, list[str]] | None:
  """Returns kind and entries of a matrix in any spelling; ((A)) is A.

  Lines around a matrix make a determinant or a norm, which equal no matrix.
  """
  if r"\begin" not in text and r"matrix" not in text:
    return None
  kinds = []
  while not (found := _MATRIX.fullmatch(text)):
    fenced = _FENCED.fullmatch(text)
    if not fenced or fenced["left"] + fenced["right"] not in _FENCES:
      return None
    kinds.append(_FENCES[fenced["left"] + fenced["right"]])
    text = fenced["inner"]
  body = found["body"] if found["rows"] is None else found["rows"]
  if r"\begin" in body:
    return None
  name = found["name"] or found["plain"] or "array"
  kinds.append(_ENVIRONMENTS.get(name.replace("small", "")[0], "matrix"))
  kind = next((x for x in kinds if x != "matrix"), "matrix")
  rows = [
      [_GROUPED.sub(r"\1", entry.strip()) for entry in row.split("&")]
      for row in _ROW.split(_RULE.sub("", body))
      if row.strip()
  ]
  shape = " ".join(str(len(row)) for row in rows)
  return f"{kind} {shape}", [entry for row in rows for entry in row]


def interval(text: str) -> str:
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


def is_closed(inner: str) -> bool:
  """Returns whether brackets pair up; kinds may differ, as in `[0, 1)`."""
  levels = list(depths(_TOKEN.findall(inner)))
  return min(levels) == levels[-1] == 0

"""Reads the fields of a row: texts, numbers, solutions with or without tags.

Every function raises ValueError for a row of another form; the caller adds the
file and the row's number.
"""

import decimal
import json
import math
from collections.abc import Mapping
from typing import Any

from iapo_jax.config import formats
from iapo_jax.data.examples import READ, Example
from iapo_jax.rewards import settling, spelling, text

_TAGS = formats.of("think_answer").marks
_WHOLE = (
    "<think>reasoning</think><answer>answer</answer> or"
    " <think>reasoning</think>text with one \\boxed{answer}"
)


def text_of(row: Mapping[str, Any], name: str) -> str:
  """Returns a field that must hold a text or a finite number, as text.

  A number has the fewest digits that give it: 42, 0.5, 1e-07. Rows of a jsonl
  file hold numbers as the file spells them.
  """
  value = row.get(name)
  if isinstance(value, int) and not isinstance(value, bool):
    value = str(value)
  if isinstance(value, float | decimal.Decimal) and math.isfinite(value):
    value = str(value)
  if not isinstance(value, str) or not value.strip():
    raise ValueError(f"{name} = {value!r}: must be a text or a finite number")
  try:
    value.encode()
  except UnicodeEncodeError as error:
    rule = "must not contain half a surrogate pair"
    raise ValueError(f"{name} = {_short(value)}: {rule}") from error
  return value.strip()


class Spelled(str):
  """A JSON number as its file spells it."""


def columns_of(row: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the columns beside question, answer and solution, as JSON values.

  Numbers are numbers, whatever their spelling was.
  """
  columns = {
      name: _unspelled(value) for name, value in row.items() if name not in READ
  }
  for name, value in columns.items():
    try:
      json.dumps(value)
    except TypeError as error:
      raise ValueError(
          f"{name} = {_short(value)}: must be a JSON value (a text, a number,"
          " true, false, null, a list or an object of these); convert this"
          " column or leave it out"
      ) from error
  return columns


def _unspelled(value: Any) -> Any:
  if isinstance(value, Spelled):
    return json.loads(value)
  if isinstance(value, Mapping):
    return {name: _unspelled(part) for name, part in value.items()}
  if isinstance(value, list | tuple):
    return [_unspelled(part) for part in value]
  return value


def solution_of(row: Mapping[str, Any]) -> str:
  """Returns the field `solution`; empty if it is missing, null or blank."""
  value = row.get("solution")
  if value is None or (isinstance(value, str) and not value.strip()):
    return ""
  return text_of(row, "solution")


def example(question: str, answer: str, solution: str = "") -> Example:
  """Makes an example; takes the reasoning out of a solution with all tags.

  The prompt, the demonstration and the grader add or remove the marks of the
  format. A solution may be the reasoning, or a whole completion of the format
  `think_answer` or `thinker`, whose answer must be that of the row; what a
  thinker writes after its thinking is left out. A question may name tags, but
  must not end by opening one.
  """
  opener, *_ = _TAGS
  if question.endswith(opener):
    raise ValueError(
        f"question: must not end in {opener}, which every prompt adds"
    )
  for tag in _TAGS:
    if tag in answer:
      raise ValueError(
          f"answer = {_short(answer)}: must be the answer alone, without {tag}"
      )
  if any(tag in solution for tag in _TAGS):
    solution = _reasoning(solution, answer)
  return Example(question, answer, solution)


def _reasoning(solution: str, answer: str) -> str:
  """Returns the reasoning of a whole completion with this answer."""
  known = map(formats.of, ("think_answer", "thinker"))
  whole = solution.removeprefix(_TAGS[0])
  fitting = [x for x in known if text.is_well_formed(whole, x)]
  if not fitting:
    raise ValueError(
        f"solution = {_short(solution)}: has tags, so it must have the form"
        f" {_WHOLE}; or give the reasoning without tags"
    )
  form = fitting[0]
  found = text.find_answer(whole, form, lenient=False)
  if found is None or not _same(found.text, answer):
    stated = _short(found.text if found else "")
    raise ValueError(
        f"solution: answers {stated} between {form.answer_open} and"
        f" {form.answer_close}, but the row's answer is {_short(answer)}; they"
        " must be the same"
    )
  return whole.partition(form.closer)[0].strip()


def _same(stated: str, answer: str) -> bool:
  if stated == answer:
    return True
  short = len(stated) <= spelling.LONGEST
  return short and bool(settling.settle(stated, answer))


def _short(value: Any) -> str:
  shown = repr(value)
  return shown if len(shown) < 60 else shown[:57] + "..."

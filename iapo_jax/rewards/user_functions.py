"""Calls a user's rewards and graders of texts, and checks what they return.

A function gets by keyword what its signature names: `texts` (or `completions`),
`golds`, `prompts`, `rows`, or a column of the data. With `**kwargs` it gets all
of these. A function of two arguments with other names gets texts and golds by
position.
"""

import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from iapo_jax.config.formats import FormatConfig
from iapo_jax.core.errors import ConfigError
from iapo_jax.rewards import text
from iapo_jax.rewards.completions import Asked, Texts
from iapo_jax.rewards.grading import Graded
from iapo_jax.rewards.reward import name_of

Call = Callable[[Texts], Any]
Judge = Callable[[Texts], list[Graded]]

_GIVEN = {name: name for name in ("texts", "golds", "prompts", "rows")}
_NAMES = _GIVEN | {"completions": "texts"}


def bind(
    function: Callable[..., Any], field: str, asked: Sequence[Asked]
) -> Call:
  """Returns what calls a function of texts with the arguments it asks for.

  Args:
    function: the user's.
    field: of `Own`, for errors.
    asked: all problems of the run.

  Raises:
    ConfigError: if the signature asks for something else, for a column that
      some rows lack, or for a column that has the name of another argument.
  """
  try:
    parameters = inspect.signature(function).parameters.values()
  except ValueError:  # some built-in functions have none
    return _by_position(function)
  everything = any(x.kind is x.VAR_KEYWORD for x in parameters)
  named = [
      x for x in parameters
      if x.kind in (x.POSITIONAL_OR_KEYWORD, x.KEYWORD_ONLY)
  ]  # fmt: skip
  columns = _columns(asked)
  known = columns.keys() | _NAMES.keys()
  if not everything and not any(x.name in known for x in named):
    try:
      inspect.signature(function).bind(None, None)
      return _by_position(function)
    except TypeError:
      pass  # the error below says what it can ask for
  wanted = {x.name for x in named if x.name in known}
  if everything:
    wanted |= _GIVEN.keys() | {x for x, whole in columns.items() if whole}
  described = f"Own.{field}: {name_of(function)}"
  _check_wanted(described, wanted, columns)
  unknown = [
      x.name
      for x in parameters
      if x.name not in wanted and x.default is x.empty
      and x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)
  ]  # fmt: skip
  if unknown or not wanted:
    raise ConfigError(
        f"{described} asks for {', '.join(unknown) or 'nothing'};"
        " it can name texts (or completions), golds, prompts, rows and the"
        f" columns {', '.join(columns) or '(none)'} of the data, or take"
        " **kwargs; change its signature"
    )
  return lambda given: function(**{x: _value(given, x) for x in wanted})


def _by_position(function: Callable[..., Any]) -> Call:
  return lambda given: function(given.texts, given.golds)


def _columns(asked: Iterable[Asked]) -> dict[str, bool]:
  """Returns the columns, and whether all problems have them."""
  counts: dict[str, int] = {}
  total = 0
  for problem in asked:
    total += 1
    for name in problem.columns:
      counts[name] = counts.get(name, 0) + 1
  return {name: count == total for name, count in counts.items()}


def _check_wanted(
    described: str, wanted: Iterable[str], columns: Mapping[str, bool]
) -> None:
  for name in sorted(wanted):
    if name in _NAMES and name in columns:
      raise ConfigError(
          f"{described} asks for {name}, which is also a column of the data;"
          " rename the column"
      )
    if not columns.get(name, True):
      raise ConfigError(
          f"{described} asks for the column {name}, which some rows lack; ask"
          f" for rows and use row.get({name!r}), or fill the column"
      )


def _value(given: Texts, name: str) -> list[Any]:
  if name in _NAMES:
    return getattr(given, _NAMES[name])
  return [row[name] for row in given.rows]


def rewards_of(call: Call, name: str, given: Texts) -> np.ndarray:
  """Calls a reward; returns fp32[n].

  Raises ValueError unless it returns n finite numbers.
  """
  returned = call(given)
  count = len(given.texts)
  try:
    found = np.asarray(returned, np.float32)
  except (TypeError, ValueError) as error:
    raise ValueError(
        f"text_reward {name}: must return {count} numbers, one per completion"
        f" ({error})"
    ) from error
  if found.shape != (count,):
    raise ValueError(
        f"text_reward {name}: must return {count} numbers, one per completion;"
        f" it returned an array of shape {found.shape}"
    )
  for i in np.flatnonzero(~np.isfinite(found)):
    raise ValueError(
        f"text_reward {name}: must return finite numbers; it returned"
        f" {list(returned)[i]!r} for the completion {_start(given.texts[i])}"
    )
  return found


def judge_of(
    call: Call, name: str, form: FormatConfig, package: Judge
) -> Judge:
  """Returns a judge that grades as a user's function says.

  The function returns for each completion True or False, a score in [0, 1], of
  which only 1 is right, or None, which keeps the grade of `package`.
  """

  def judge(given: Texts) -> list[Graded]:
    verdicts = _verdicts(call(given), name, given)
    left = [i for i, verdict in enumerate(verdicts) if verdict is None]
    kept = package(given.take(left)) if left else []
    grades = dict(zip(left, kept, strict=True))
    for i, verdict in enumerate(verdicts):
      if verdict is not None:
        found = text.find_answer(given.texts[i], form, lenient=form.lenient)
        grades[i] = Graded(
            correct=verdict == 1,
            answer=found and found.text,
            timed_out=False,
            guessed=bool(found) and not found.asked,
            score=verdict,
        )
    return [grades[i] for i in range(len(verdicts))]

  return judge


def _verdicts(
    returned: Any, name: str, given: Texts
) -> list[float | None]:
  """Checks what a grader returned; True is 1, False is 0."""
  count = len(given.texts)
  try:
    verdicts = list(returned)
  except TypeError as error:
    raise ValueError(
        f"text_grader {name}: must return {count} values, one per completion;"
        f" it returned {returned!r}"
    ) from error
  if len(verdicts) != count:
    raise ValueError(
        f"text_grader {name}: must return {count} values, one per completion;"
        f" it returned {len(verdicts)}"
    )
  for verdict, completion in zip(verdicts, given.texts, strict=True):
    if verdict is None or isinstance(verdict, bool | np.bool_):
      continue
    if isinstance(verdict, numbers.Real) and 0 <= verdict <= 1:
      continue
    raise ValueError(
        f"text_grader {name}: must return True, False, a number in [0, 1] or"
        f" None; it returned {verdict!r} for the completion"
        f" {_start(completion)}"
    )
  return [None if x is None else float(x) for x in verdicts]


def _start(completion: str) -> str:
  shown = repr(completion)
  return shown if len(shown) < 60 else f"{shown[:57]}..."

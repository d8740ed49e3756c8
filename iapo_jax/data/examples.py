"""Problems in words: conversion of published rows, and demonstrations."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from iapo_jax.data.pipeline import Piece
from iapo_jax.rewards import text

_LETTERS = "ABCDEFGHIJ"
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_DAPO_PREFIX = (
    "Solve the following math problem step by step. The last line of your"
    " response should be of the form Answer: $Answer (without quotes) where"
    " $Answer is the answer to the problem.\n\n"
)
_DAPO_SUFFIX = (
    '\n\nRemember to put your answer on its own line after "Answer:".'
)


@dataclasses.dataclass(frozen=True)
class Example:
  """A problem.

  Attributes:
    question: the problem in words.
    answer: the gold answer, plain or LaTeX.
    solution: the worked solution without the answer's line; empty if the row
      has none.
  """

  question: str
  answer: str
  solution: str = ""


def from_gsm8k(row: Mapping[str, Any]) -> Example:
  """Converts `question` and `answer`, a solution that ends in `#### N`.

  Removes the calculator's marks, and the answer's commas of thousands. Like
  every converter it raises ValueError for a row of another form.
  """
  solution, mark, answer = _text(row, "answer").rpartition("####")
  if not mark:
    raise ValueError("answer: must end in a line '#### N'")
  solution = _CALCULATOR.sub("", solution).strip()
  answer = answer.strip().replace(",", "")
  return Example(_text(row, "question"), answer, solution)


def from_math(row: Mapping[str, Any]) -> Example:
  """Converts `problem`, `answer` and, if present, `solution`."""
  solution = row.get("solution") or ""
  return Example(_text(row, "problem"), _text(row, "answer"), solution.strip())


def from_dapo(row: Mapping[str, Any]) -> Example:
  """Converts DAPO-Math-17k, as published or in its processed form.

  `prompt` is a text or a list of one message; the instructions before and
  after its problem are removed. The answer is `reward_model.ground_truth`, or
  `solution`.
  """
  prompt = row.get("prompt")
  if isinstance(prompt, str):
    question = _text(row, "prompt")
  else:
    if not prompt or len(prompt) != 1:
      raise ValueError("prompt: must be a text or a list of one message")
    question = _text(prompt[0], "content")
  has_prefix = question.startswith(_DAPO_PREFIX)
  if has_prefix != question.endswith(_DAPO_SUFFIX):
    raise ValueError("prompt: has a part of the usual instructions only")
  question = question.removeprefix(_DAPO_PREFIX).removesuffix(_DAPO_SUFFIX)
  judged = row.get("reward_model")
  if not question.strip():
    raise ValueError("prompt: has no problem in it")
  source, name = (judged, "ground_truth") if judged else (row, "solution")
  answer = _text(source, name)
  return Example(question.strip(), answer)


def from_commonsense_qa(row: Mapping[str, Any]) -> Example:
  """Converts a question with labelled choices, and the letter `answerKey`.

  The authors' rows have `question.stem` and `question.choices`, a list of
  `label` and `text`. The hub's have `question`, and `choices` with the two
  lists.
  """
  question, choices = row.get("question"), row.get("choices")
  if isinstance(question, Mapping):
    question, choices = _text(question, "stem"), question.get("choices")
  else:
    question = _text(row, "question")
  if isinstance(choices, Mapping):
    pairs = list(zip(choices["label"], choices["text"], strict=True))
  else:
    pairs = [(_text(c, "label"), _text(c, "text")) for c in choices or ()]
  answer = _text(row, "answerKey")
  labels = [label for label, _ in pairs]
  if not pairs or labels != list(_LETTERS[: len(pairs)]):
    raise ValueError(f"choices: must have the labels A, B, ..., not {labels}")
  if answer not in labels:
    raise ValueError(f"answerKey = {answer!r}: must be one of {labels}")
  lines = [question, *(f"{label}. {choice}" for label, choice in pairs)]
  return Example("\n".join(lines), answer)


def from_aime(row: Mapping[str, Any]) -> Example:
  """Converts `problem` or `question`, and `answer` in 0 .. 999.

  Field names may have capitals.
  """
  lower = {name.lower(): value for name, value in row.items()}
  name = "problem" if "problem" in lower else "question"
  answer = _text(lower, "answer")
  answer = answer.replace("^\\circ", "").strip(" $.") or answer
  if not answer.isdecimal() or int(answer) > 999:
    raise ValueError(f"answer = {answer!r}: must be in 0 .. 999")
  return Example(_text(lower, name), str(int(answer)))


def from_own(row: Mapping[str, Any]) -> Example:
  """Converts `question`, `answer` and, if present, `solution`.

  Raises:
    ValueError: for another form, also for any other field.
  """
  unread = row.keys() - {"question", "answer", "solution"}
  if unread:
    raise ValueError(
        f"{', '.join(sorted(unread))}: must be among question, answer and"
        " solution"
    )
  solution = _text(row, "solution") if row.get("solution") else ""
  return Example(_text(row, "question"), _text(row, "answer"), solution)


def _text(row: Mapping[str, Any], name: str) -> str:
  """Returns a field that must hold text or a whole number, as text."""
  value = row.get(name)
  if isinstance(value, int) and not isinstance(value, bool):
    value = str(value)
  if not isinstance(value, str) or not value.strip():
    raise ValueError(f"{name} = {value!r}: must be a text")
  return value.strip()


def demonstration(
    example: Example,
    rng: np.random.Generator,
    *,
    elicitation: str,
    early_share: float,
    early_full_share: float,
) -> list[Piece]:
  """Writes the worked solution and the answer, or an early answer.

  Args:
    example: a problem with a solution.
    rng: the only source of randomness.
    elicitation: the text between the reasoning and the answer.
    early_share: probability that the solution is cut after a random word and
      followed by the answer.
    early_full_share: share of those cut solutions whose tokens are all
      learned; of the others only the answer is learned.

  Returns:
    Pieces whose joined texts are the completion without EOS.
  """
  words = re.findall(r"\s*\S+", example.solution)
  learned = True
  if rng.random() < early_share:
    words = words[: rng.integers(len(words))]
    learned = bool(rng.random() < early_full_share)
  return written_out("".join(words), example.answer, elicitation, learned)


def written_out(
    reasoning: str, answer: str, elicitation: str, learned: bool = True
) -> list[Piece]:
  """Writes a completion; only its answer is learned regardless of `learned`."""
  return [
      Piece(reasoning + elicitation, learned),
      Piece(answer, True),
      Piece(closing(elicitation), learned),
  ]


def closing(elicitation: str) -> str:
  """Returns the text that ends an answer that the elicitation has begun."""
  begun = elicitation.rpartition(text.ANSWER_OPEN)[2]
  braces = begun.count("{") - begun.count("}")
  return "}" * max(braces, 0) + text.ANSWER_CLOSE


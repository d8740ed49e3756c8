"""Problems in words, and their demonstrations."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from iapo_jax.config.formats import FormatConfig
from iapo_jax.config.schema import WarmStartConfig
from iapo_jax.core.errors import fail
from iapo_jax.data.pipeline import Piece, cut_early
from iapo_jax.rewards import text


@dataclasses.dataclass(frozen=True)
class Example:
  """A problem.

  Attributes:
    question: the problem in words.
    answer: the gold answer, plain or LaTeX.
    solution: the worked solution without the line of the answer; empty if the
      row has none.
    row: the other columns of the row, as JSON values.
  """

  question: str
  answer: str
  solution: str = ""
  row: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

  @property
  def columns(self) -> dict[str, Any]:
    """All columns, those of the other fields included."""
    read = {name: getattr(self, name) for name in READ}
    return read | dict(self.row)


READ = ("question", "answer", "solution")


def demonstration(
    example: Example,
    rng: np.random.Generator,
    stage: WarmStartConfig,
    *,
    form: FormatConfig,
    elicitation: str,
) -> list[Piece]:
  """Writes the worked solution and the answer, or an early answer.

  The joined texts of the pieces are the completion without EOS; `elicitation`
  stands between reasoning and answer.
  """
  words = re.findall(r"\s*\S+", example.solution)
  words, learned = cut_early(words, rng, stage)
  return written_out(
      "".join(words), example.answer, form, elicitation, learned
  )


def written_out(
    reasoning: str,
    answer: str,
    form: FormatConfig,
    elicitation: str,
    learned: bool = True,
) -> list[Piece]:
  """Writes a completion; its answer is learned even if `learned` is False."""
  return [
      Piece(form.before_reasoning + reasoning + elicitation, learned),
      Piece(answer, True),
      Piece(closing(form, elicitation), learned),
  ]


def check(form: FormatConfig, elicitation: str) -> None:
  """Checks that worked solutions have the format that they should teach.

  Raises:
    ConfigError: unless a reasoning, the elicitation and an answer make a
      completion of the format, in which the grader finds the answer.
  """
  pieces = written_out("So it is 4.", "4", form, elicitation)
  written = "".join(piece.text for piece in pieces)
  found = text.find_answer(written, form, lenient=False)
  if not text.is_well_formed(written, form) or found.text != "4":
    rule = (
        f"makes worked solutions such as {written!r}, which do not have the"
        f" format; it must contain {form.answer_open!r}"
    )
    if form.thinks:
      rule += f" after {form.closer!r}"
    fail("probe.elicitation", elicitation, rule)


def closing(form: FormatConfig, elicitation: str) -> str:
  """Returns the text that closes the answer that the elicitation opens."""
  begun = elicitation.rpartition(form.answer_open)[2]
  braces = begun.count("{") - begun.count("}")
  return "}" * max(braces, 0) + form.answer_close


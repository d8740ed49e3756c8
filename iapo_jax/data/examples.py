"""Problems in words, and their demonstrations."""

import dataclasses
import re

import numpy as np

from iapo_jax.config.schema import WarmStartConfig
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
  """

  question: str
  answer: str
  solution: str = ""


def demonstration(
    example: Example,
    rng: np.random.Generator,
    stage: WarmStartConfig,
    *,
    elicitation: str,
) -> list[Piece]:
  """Writes the worked solution and the answer, or an early answer.

  The joined texts of the pieces are the completion without EOS; `elicitation`
  stands between reasoning and answer.
  """
  words = re.findall(r"\s*\S+", example.solution)
  words, learned = cut_early(words, rng, stage)
  return written_out("".join(words), example.answer, elicitation, learned)


def written_out(
    reasoning: str, answer: str, elicitation: str, learned: bool = True
) -> list[Piece]:
  """Writes a completion; its answer is learned even if `learned` is False."""
  return [
      Piece(reasoning + elicitation, learned),
      Piece(answer, True),
      Piece(closing(elicitation), learned),
  ]


def closing(elicitation: str) -> str:
  """Returns the text that closes the answer that the elicitation opens."""
  begun = elicitation.rpartition(text.ANSWER_OPEN)[2]
  braces = begun.count("{") - begun.count("}")
  return "}" * max(braces, 0) + text.ANSWER_CLOSE


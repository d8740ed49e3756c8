"""Problems in words, and their demonstrations."""

import dataclasses
import re

import numpy as np

from iapo_jax.data.pipeline import Piece
from iapo_jax.rewards import text


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


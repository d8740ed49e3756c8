"""Completions in words with their problems, as judges on the host get them.

Imports no JAX, so that answers can be graded without it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Asked:
  """A problem on the host.

  Attributes:
    prompt: the whole prompt. The policy sees its end if
      `data.overlong=truncate_left` cuts it.
    columns: question, answer and the other columns of its row.
  """

  prompt: str
  columns: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Texts:
  """n completions in words, with their problems, on the host.

  Attributes:
    texts: completions without their EOS.
    golds: gold answers.
    prompts: prompts, as in `Asked`; empty if the caller gave no problems.
    rows: the columns of each problem, as in `Asked`; empty as `prompts`.
  """

  texts: list[str]
  golds: list[str]
  prompts: list[str]
  rows: list[Mapping[str, Any]]

  def take(self, indices: Sequence[int]) -> "Texts":
    """Returns some of the completions."""
    return Texts(**{
        name: values and [values[i] for i in indices]
        for name, values in vars(self).items()
    })

"""Completions as tokens, each coloured by its information."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

_MARKS = {"\n": "↵\n", "\t": "⇥\t", "\r": "␍"}
_FAINT = 0.05  # nats; less information than this never gets full colour


def environment() -> jinja2.Environment:
  """Returns the environment of the templates, which escape every value."""
  return jinja2.Environment(
      loader=jinja2.PackageLoader("iapo_jax.tools.report"),
      autoescape=True,
      undefined=jinja2.StrictUndefined,
      trim_blocks=True,
      lstrip_blocks=True,
  )


def scale_of(information: Sequence[float]) -> float:
  """Returns the nats that get full colour, for one completion."""
  known = [abs(value) for value in information if math.isfinite(value)]
  return max([*known, _FAINT])


def tokens(
    texts: Sequence[str],
    information: Sequence[float],
    answer_entropies: Sequence[float],
    details: Sequence[Mapping[str, str]],
    *,
    reasoning: int,
) -> list[dict[str, Any]]:
  """Returns the fields that the template shows for each of T tokens.

  Args:
    texts: T.
    information: of the first R tokens; empty without probes.
    answer_entropies: R + 1; empty without probes.
    details: T; further values of each token, by name.
    reasoning: R, the leading tokens that are reasoning.
  """
  scale, found = scale_of(information), []
  for i, text in enumerate(texts):
    token = {
        "text": "".join(_MARKS.get(c, c) for c in text) or "·",
        "colour": "" if i < reasoning else "after",
        "data": dict(details[i]),
    }
    if i < len(information):
      value = information[i]
      if math.isfinite(value):
        token["colour"] = "gain" if value > 0 else "loss"
        token["share"] = f"{abs(value) / scale:.2f}"
      token["data"] |= {
          "information": f"{value:+.3f}",
          "before": f"{answer_entropies[i]:.3f}",
          "after": f"{answer_entropies[i + 1]:.3f}",
      }
    else:
      place = "not probed" if i < reasoning else "after the reasoning"
      token["data"]["place"] = place
    found.append(token)
  return found

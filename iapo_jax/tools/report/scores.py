"""The page of `iapo score`: completions token by token."""

from collections.abc import Mapping, Sequence
from typing import Any

from iapo_jax.tools.report import heat


def draw(
    lines: Sequence[Mapping[str, Any]], *, title: str, total: int
) -> str:
  """Returns an HTML page about lines of `score_lines.scored`.

  `total` counts all lines; `lines` may be only the first of them.
  """
  note = f"{total} completions"
  if len(lines) < total:
    note = f"The first {len(lines)} of {total} completions"
  return heat.environment().get_template("scores.html.j2").render(
      title=title,
      note=f"{note}, scored at temperature 1.",
      examples=[_example(line) for line in lines],
  )


def _example(line: Mapping[str, Any]) -> dict[str, Any]:
  reasoning = line["reasoning_tokens"]
  information = line["mi"][:reasoning]
  answers = line["answer_entropies"]
  texts = line.get("tokens")
  if texts is None:
    texts = [f"{i} " for i in line["completion_ids"]]
  details = [
      {"entropy": f"{entropy:.3f}", "logprob": f"{logprob:.3f}"}
      for entropy, logprob in zip(
          line["entropies"], line["logprobs"], strict=True
      )
  ]
  return {
      "prompt": _prompt(line),
      "reasoning": reasoning,
      # A line that an older version scored lacks it.
      "answer": line.get("answer_tokens", "–"),
      "first": f"{answers[0]:.3f}",
      "last": f"{answers[reasoning]:.3f}",
      "scale": f"{heat.scale_of(information):.2f}",
      "tokens": heat.tokens(
          texts, information, answers, details, reasoning=reasoning
      ),
  }


def _prompt(line: Mapping[str, Any]) -> str:
  prompt = line.get("prompt")
  if isinstance(prompt, list):
    return "\n".join(str(message.get("content", "")) for message in prompt)
  if prompt is None:
    return " ".join(map(str, line["prompt_ids"]))
  return prompt

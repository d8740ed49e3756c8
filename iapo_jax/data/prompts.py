"""Writes prompts: a problem as text that ends in `<think>`."""

import re
from collections.abc import Callable, Sequence

from iapo_jax.config.data import DataConfig
from iapo_jax.core.errors import ConfigError
from iapo_jax.data import examples
from iapo_jax.data.published import DataSet
from iapo_jax.rewards import text

_SKIPPED = re.compile(rf"{text.THINK_OPEN}\s*{text.THINK_CLOSE}\s*\Z")
Message = dict[str, str]
# messages -> text of a prompt, up to the start of the reply
Render = Callable[[Sequence[Message]], str]


def of(
    question: str,
    *,
    source: DataSet,
    elicitation: str,
    data: DataConfig,
    render: Render,
) -> str:
  """Writes the prompt of a problem; it ends in `<think>`.

  Args:
    question: the problem.
    source: the data set, which gives the form of answers and a worked example.
    elicitation: the text between reasoning and answer in the worked example.
    data: the fields that choose the format.
    render: applies the chat template.

  Raises:
    ConfigError: if the chat template leaves out part of a message.
  """
  messages: list[Message] = [_said("user", question)]
  if data.prompt == "think_answer":
    messages = _instructed(question, source, elicitation, data.instructions)
  if data.chat_template:
    rendered = render(messages)
    for turn in messages:
      # Some templates remove the thinking from earlier turns.
      if turn["content"].strip() not in rendered:
        raise ConfigError(
            f"config.data.prompt = {data.prompt!r}: the chat template leaves"
            f" out part of {turn['content']!r}; use"
            " --config.data.prompt=plain or --config.data.chat_template=False"
        )
    return _replied(rendered)
  return opened("\n\n".join(turn["content"] for turn in messages) + "\n")


def chat(question: str, render: Render) -> str:
  """Writes a prompt that is one user message, up to the opened reasoning."""
  return _replied(render([_said("user", question)]))


def _replied(rendered: str) -> str:
  """Opens the reasoning after a chat template.

  Some templates close it at once, for a reply without reasoning.
  """
  return opened(_SKIPPED.sub(text.THINK_OPEN, rendered))


def opened(prompt: str) -> str:
  """Appends `<think>`, unless the chat template did."""
  done = prompt.rstrip().endswith(text.THINK_OPEN)
  return prompt if done else prompt + text.THINK_OPEN


def _instructed(
    question: str, source: DataSet, elicitation: str, instructions: str
) -> list[Message]:
  """Returns instructions, one worked turn and the problem."""
  told = (
      "Think the problem through between"
      f" {text.THINK_OPEN} and {text.THINK_CLOSE}, then give nothing but the"
      f" final answer between {text.ANSWER_OPEN} and {text.ANSWER_CLOSE}."
  )
  form, example = source.form, source.worked
  if "\\boxed{" in elicitation:
    form = f"{form} Write it as \\boxed{{...}}."
  worked = "".join(
      piece.text
      for piece in examples.written_out(
          example.solution, example.answer, elicitation
      )
  )
  asked = f"{form}\n\n{example.question}"
  if instructions == "user":
    asked = f"{told} {asked}"
  turns = [
      _said("user", asked),
      _said("assistant", f"{text.THINK_OPEN}{worked}"),
      _said("user", f"{form}\n\n{question}"),
  ]
  return turns if instructions == "user" else [_said("system", told), *turns]


def _said(role: str, content: str) -> Message:
  return {"role": role, "content": content}

"""Writes prompts: a problem as text, up to the start of the completion."""

from collections.abc import Callable, Sequence

from iapo_jax.config.data import DataConfig
from iapo_jax.config.formats import BOX, FormatConfig
from iapo_jax.core.errors import fail
from iapo_jax.data import examples
from iapo_jax.data.published import Kind

Message = dict[str, str]
# messages -> text of a prompt, up to the start of the reply
Render = Callable[[Sequence[Message]], str]


def of(
    question: str,
    *,
    source: Kind,
    form: FormatConfig,
    elicitation: str,
    data: DataConfig,
    render: Render,
    other: str = "boxed",
) -> str:
  """Writes the prompt of a problem.

  Args:
    question: the problem.
    source: the data set, which gives the form of answers and a worked example.
    form: the format that the prompt asks for.
    elicitation: the text between reasoning and answer in the worked example.
    data: the fields that choose the prompt.
    render: applies the chat template.
    other: the preset that fits a template which cuts the worked example.

  Raises:
    ConfigError: if the chat template leaves out part of a message.
  """
  turns = [said("user", question)]
  if data.prompt == "instructed":
    turns = _instructed(question, source, form, elicitation, data.instructions)
  if not data.chat_template:
    return opened("\n\n".join(turn["content"] for turn in turns) + "\n", form)
  rendered = render(with_system(turns, data.system))
  for turn in turns:
    # Some templates remove the thinking from earlier turns.
    if turn["content"].strip() not in rendered:
      rule = f"the chat template leaves out part of {turn['content']!r}"
      fits = data.prompt == "instructed" and form.example
      way = f"format.preset={other}" if fits else "data.chat_template=False"
      rule += f"; use --config.{way}"
      fail("format.preset", form.preset, rule)
  return opened(rendered, form)


def chat(
    question: str, form: FormatConfig, system: str, render: Render
) -> str:
  """Writes a prompt that is one user message, after a system message if any."""
  turns = with_system([said("user", question)], system)
  return opened(render(turns), form)


def opened(prompt: str, form: FormatConfig) -> str:
  """Opens the thinking if the prompt should, unless the chat template did."""
  if form.opened_by != "prompt" or prompt.rstrip().endswith(form.opener):
    return prompt
  return prompt + form.think_open


def said(role: str, content: str) -> Message:
  """Returns a message of a chat."""
  return {"role": role, "content": content}


def with_system(turns: Sequence[Message], system: str) -> list[Message]:
  """Puts a text into the system message, before what it holds."""
  if not system:
    return list(turns)
  first, *rest = turns
  if first["role"] == "system":
    return [said("system", f"{system}\n\n{first['content']}"), *rest]
  return [said("system", system), *turns]


def _instructed(
    question: str,
    source: Kind,
    form: FormatConfig,
    elicitation: str,
    place: str,
) -> list[Message]:
  """Returns the problem with instructions, and perhaps a worked turn.

  Without a worked turn the instructions of a user's message follow the problem,
  as on the cards of models that think.
  """
  told, kind, example = form.instructions, source.form, source.worked
  if not form.example:
    if place == "user":
      return [said("user", f"{question}\n\n{kind} {told}".strip())]
    return [said("system", told), said("user", f"{question}\n\n{kind}")]
  if BOX in elicitation and not form.in_box:
    kind = f"{kind} Write it as {BOX}...}}."
  worked = "".join(
      piece.text
      for piece in examples.written_out(
          example.solution, example.answer, form, elicitation
      )
  )
  before = form.think_open if form.opened_by == "prompt" else ""
  asked = f"{kind}\n\n{example.question}"
  if place == "user":
    asked = f"{told} {asked}"
  turns = [
      said("user", asked),
      said("assistant", f"{before}{worked}"),
      said("user", f"{kind}\n\n{question}"),
  ]
  return turns if place == "user" else [said("system", told), *turns]

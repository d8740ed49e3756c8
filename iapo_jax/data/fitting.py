"""Checks that a chat template and a format fit, before anything is compiled."""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from iapo_jax.config.data import DataConfig, chat_arguments
from iapo_jax.config.formats import FormatConfig
from iapo_jax.core.errors import fail
from iapo_jax.core.types import Vocabulary
from iapo_jax.data import prompts
from iapo_jax.data.pipeline import PromptTable
from iapo_jax.hf import tokenizer
from iapo_jax.hf.decoding import token_texts

_SHOWN = 60  # characters of a prompt's end
# arguments of the template -> a prompt of one short message
_Rendered = Callable[[Mapping[str, Any]], str]


def check(tok: Any, form: FormatConfig, data: DataConfig) -> None:
  """Checks the arguments of the chat template, and how its prompts end.

  Raises:
    ConfigError: if the template does not know an argument, ignores the system
      message, or opens or closes the thinking against the format. It names the
      preset or the arguments that fit.
  """
  if not data.chat_template:
    return
  arguments = chat_arguments(data)
  rendered = functools.partial(_rendered, tok, data)
  prompt = rendered(arguments)  # raises for a template that cannot be used
  known = tokenizer.chat_variables(tok)
  for name in arguments:
    if name not in known:
      rule = f"the chat template has no argument {name}; it has"
      names = ", ".join(sorted(known)) or "none"
      fail("data.chat_kwargs", data.chat_kwargs, f"{rule} {names}")
  if data.system and prompt == _rendered(tok, data, arguments, system=""):
    rule = "the chat template ignores the system message; leave it out"
    fail("data.system", data.system, rule)
  _check_ending(form, data, prompt, rendered, sorted(known))


def _rendered(
    tok: Any,
    data: DataConfig,
    arguments: Mapping[str, Any],
    system: str | None = None,
) -> str:
  system = data.system if system is None else system
  turns = prompts.with_system([prompts.said("user", "question")], system)
  return tokenizer.render_chat(
      tok, turns, date=data.chat_date, arguments=arguments
  )


def _ending(prompt: str, form: FormatConfig) -> str:
  """Returns `open`, `closed` or `plain`, by the thinking at a prompt's end."""
  if prompt.rstrip().endswith(form.opener):
    return "open"
  opener, closer = map(re.escape, (form.opener, form.closer))
  closed = re.search(rf"{opener}\s*{closer}\s*\Z", prompt)
  return "closed" if closed else "plain"


def _check_ending(
    form: FormatConfig,
    data: DataConfig,
    prompt: str,
    rendered: _Rendered,
    known: Sequence[str],
) -> None:
  """Checks that the thinking is opened exactly once, or not at all."""
  arguments, ending = chat_arguments(data), _ending(prompt, form)

  def advice(*endings: str) -> str:
    """Returns the arguments with which prompts end like that, as a flag."""
    for name in known:
      for value in (True, False):
        tried = arguments | {name: value}
        try:
          found = _ending(rendered(tried), form)
        except ValueError:  # this argument wants another value
          continue
        if found in endings:
          return f"--config.data.chat_kwargs='{json.dumps(tried)}'"
    return ""

  end = f"the chat template ends prompts in {prompt[-_SHOWN:]!r}"
  if form.thinks and ending == "closed":
    rule = f"{end}, which closes the thinking before it begins"
    ways = [advice("open", "plain"), "--config.format.preset=boxed"]
    rule += f"; set {' or '.join(filter(None, ways))}"
    fail("data.chat_kwargs", data.chat_kwargs, rule)
  if form.opened_by == "model" and ending == "open":
    rule = f"{end}, which opens the thinking; use prompt"
    fail("format.opened_by", form.opened_by, rule)
  if form.thinks:
    return
  closing = advice("closed")
  if ending == "open" or (ending == "plain" and closing):
    does = "opens the thinking" if ending == "open" else "lets the model think"
    ways = ["--config.format.preset=thinker", closing]
    rule = f"{end}, which {does}; set {' or '.join(filter(None, ways))}"
    fail("format.preset", form.preset, rule)


def other_preset(tok: Any, form: FormatConfig) -> str:
  """Returns the preset for a template that cuts a worked example."""
  template = tokenizer.template_of(tok)
  return "thinker" if form.closer in template else "boxed"


def describe(
    tok: Any,
    form: FormatConfig,
    elicitation: str,
    vocabulary: Vocabulary,
    table: PromptTable | None,
) -> list[str]:
  """Returns lines for the plan: the first prompt's end, and what asks early.

  Warns if a model is made to think that may not have learned it.

  Args:
    tok: a Hugging Face tokenizer.
    form: the format.
    elicitation: the text that asks for the answer.
    vocabulary: its tokens.
    table: the prompts of a split; None if they were not read.
  """
  lines = []
  if table is not None:
    shown = tokenizer.decode_prompt(tok, table.texts()[0].tolist())
    cut = "..." if len(shown) > _SHOWN else ""
    thinking = {
        "prompt": "the prompt opens the thinking",
        "model": "the model opens the thinking",
        "nobody": "the model does not think",
    }[form.opened_by]
    lines.append(f"prompt     ends {cut}{shown[-_SHOWN:]!r}; {thinking}")
  known = form.opener in tokenizer.template_of(tok) or (
      form.opener in tok.get_vocab()
  )
  if form.preset == "thinker" and form.thinks and not known:
    lines.append(
        f"warning: neither chat template nor tokenizer has {form.opener}; for a"
        " model that does not think set --config.format.preset=boxed"
    )
  ids = list(vocabulary.elicitation)
  pieces = ", ".join(
      f"{i} {text!r}"
      for i, text in zip(ids, token_texts(ids, tok), strict=True)
  )
  lines.append(f"asks       {elicitation!r}, tokens {pieces}")
  if form.lenient:
    lines.append("answers    guessed where the format has none (lenient)")
  return lines

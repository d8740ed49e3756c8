"""Completions to score from lines of JSON, and their scores as lines of JSON.

What a line holds comes from anywhere: every rule is checked, of all lines,
before the first one is scored, and an error names the line.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from iapo_jax.data import task
from iapo_jax.data import tokenizer as tokenizer_lib
from iapo_jax.errors import ConfigError
from iapo_jax.rewards import text
from iapo_jax.samples import decoded, token_texts
from iapo_jax.scoring import Item, Scores

Line = dict[str, Any]
_TEXT = ("prompt", "completion")
_IDS = ("prompt_ids", "completion_ids")


@dataclasses.dataclass(frozen=True)
class Rules:
  """What lines are read by.

  Attributes:
    vocab_size: token ids are below it.
    max_positions: the longest sequence; 0 is any.
    tokenizer: of the model; None where its folder has none.
    eos_ids: tokens that end a completion and are no reasoning.
    elicitation: the text that asks for the answer.
    chat: whether prompts are a user's messages in the chat template.
  """

  vocab_size: int
  max_positions: int
  tokenizer: Any | None
  eos_ids: tuple[int, ...]
  elicitation: str
  chat: bool


def read(path: pathlib.Path, rules: Rules) -> tuple[list[Line], list[Item]]:
  """The lines of a file, and what is to be scored.

  Args:
    path: a JSON object a line; empty lines are passed over.
    rules: to read them by.

  Returns:
    Lines and items, one each.

  Raises:
    ConfigError: where the file cannot be read, or for the first line that
      breaks a rule.
  """
  lines, items = [], []
  try:
    with path.open(encoding="utf-8") as file:
      for number, row in enumerate(file, 1):
        if row.strip():
          where = f"{path}:{number}"
          lines.append(_parse(row, where))
          items.append(_item(lines[-1], rules, where))
  except OSError as error:
    raise ConfigError(f"--input = {str(path)!r}: {error.strerror}") from error
  except UnicodeDecodeError as error:
    raise ConfigError(f"--input = {str(path)!r}: is not UTF-8") from error
  if not lines:
    raise ConfigError(f"--input = {str(path)!r}: has no lines")
  return lines, items


def _parse(row: str, where: str) -> Line:
  try:
    line = json.loads(row, parse_constant=_no_constant)
  except (ValueError, RecursionError) as error:
    raise ConfigError(f"{where}: is not JSON ({error})") from error
  if not isinstance(line, dict):
    raise ConfigError(f"{where}: must be a JSON object")
  return line


def _no_constant(name: str) -> NoReturn:
  raise ValueError(f"{name} is no number of JSON")


def _item(line: Line, rules: Rules, where: str) -> Item:
  has_text, has_ids = (
      [name for name in names if name in line] for names in (_TEXT, _IDS)
  )
  if bool(has_text) == bool(has_ids):
    rule = "must have either prompt and completion, or prompt_ids and"
    raise ConfigError(f"{where}: {rule} completion_ids")
  for name in _IDS if has_ids else _TEXT:
    if name not in line:
      raise ConfigError(f"{where}: has no {name}")
  if has_text and "postfix_ids" in line:
    rule = "goes with prompt_ids; the text of --elicitation with prompt"
    raise ConfigError(f"{where} postfix_ids: {rule}")
  read_line = _item_of_ids if has_ids else _item_of_text
  item = read_line(line, rules, where)
  most = rules.max_positions
  if most and item.positions > most:
    raise ConfigError(
        f"{where}: prompt, completion and elicitation have {item.positions}"
        f" tokens; the model was trained for {most}"
    )
  return item


def _item_of_ids(line: Line, rules: Rules, where: str) -> Item:
  prompt, completion = (_ids(line, name, rules, where) for name in _IDS)
  if "postfix_ids" in line:
    postfix = _ids(line, "postfix_ids", rules, where)
  else:
    tok = _tokenizer(rules, where, "has no postfix_ids")
    postfix = task.elicitation_ids(tok, rules.elicitation)
  for name, ids in (("prompt_ids", prompt), ("postfix_ids", postfix)):
    if not ids:
      raise ConfigError(f"{where} {name}: must have at least one token")
  return Item(prompt, completion, postfix, reasoning=len(completion))


def _item_of_text(line: Line, rules: Rules, where: str) -> Item:
  tok = _tokenizer(rules, where, "is text")
  prompt, completion = line["prompt"], line["completion"]
  if not isinstance(completion, str):
    _fail(where, "completion", completion, "must be text")
  if isinstance(prompt, list) or (rules.chat and isinstance(prompt, str)):
    messages = prompt
    if isinstance(prompt, str):
      messages = [{"role": "user", "content": prompt}]
    if not all(isinstance(message, dict) for message in messages):
      _fail(where, "prompt", prompt, "must be text, or a list of messages")
    rendered = tokenizer_lib.render_chat(tok, messages)
    begin = tokenizer_lib.encode(tok, rendered)
  elif isinstance(prompt, str):
    begin = tokenizer_lib.encode_prompt(tok, prompt)
  else:
    _fail(where, "prompt", prompt, "must be text, or a list of messages")
  ids = tokenizer_lib.encode(tok, completion)
  if not begin:
    _fail(where, "prompt", prompt, "must have at least one token")
  for name, found in (("prompt", begin), ("completion", ids)):
    if max(found, default=0) >= rules.vocab_size:
      rule = f"has a token the model does not have: {max(found)}"
      raise ConfigError(f"{where} {name}: {rule}")
  ended = bool(ids) and ids[-1] in rules.eos_ids
  own = ids[:-1] if ended else ids
  return Item(
      tuple(begin),
      tuple(ids),
      task.elicitation_ids(tok, rules.elicitation),
      text.reasoning_length(own, lambda part: decoded(tok, part)),
  )


def _tokenizer(rules: Rules, where: str, what: str) -> Any:
  if rules.tokenizer is None:
    raise ConfigError(
        f"{where}: {what}, and the model's folder has no tokenizer.json"
    )
  return rules.tokenizer


def _ids(line: Line, name: str, rules: Rules, where: str) -> tuple[int, ...]:
  ids = line[name]
  whole = isinstance(ids, list) and all(type(i) is int for i in ids)
  if not whole:
    _fail(where, name, ids, "must be a list of whole numbers")
  for i in ids:
    if not 0 <= i < rules.vocab_size:
      rule = f"must be token ids from 0 to {rules.vocab_size - 1}"
      _fail(where, name, i, rule)
  return tuple(ids)


def _fail(where: str, name: str, value: Any, rule: str) -> NoReturn:
  shown = repr(value)
  shown = shown if len(shown) < 60 else shown[:57] + "..."
  raise ConfigError(f"{where} {name} = {shown}: {rule}")


def scored(
    line: Line, item: Item, scores: Scores, tokenizer: Any | None
) -> Line:
  """A line with its scores.

  Args:
    line: as it was read; all of it is kept.
    item: of the line.
    scores: of the item.
    tokenizer: of the model, if there is one: tells the tokens' texts.

  Returns:
    The line and `reasoning_tokens`, `logprobs` [t], `entropies` [t],
    `answer_entropies` [t + 1] (null after the reasoning, where there is no
    early answer), `mi` [t], and with a tokenizer `tokens` [t].

  Raises:
    FloatingPointError: where a score is not finite.
  """
  for array in dataclasses.astuple(scores):
    if not np.isfinite(array).all():
      raise FloatingPointError(
          "scores are not finite; try --dtype=float32, or look at the weights"
      )
  answers = _floats(scores.answer_entropies)
  rest = len(item.completion) - item.reasoning
  found = {
      "reasoning_tokens": item.reasoning,
      "logprobs": _floats(scores.logprobs),
      "entropies": _floats(scores.entropies),
      "answer_entropies": [*answers, *[None] * rest],
      "mi": _floats(scores.information),
  }
  if tokenizer is not None:
    found["tokens"] = token_texts(list(item.completion), tokenizer)
  return line | found


def _floats(values: np.ndarray) -> list[float]:
  """Nine digits: every bit of a float32."""
  return [float(f"{value:.9g}") for value in values]


def dump(line: Mapping[str, Any]) -> str:
  """A line of JSON, in ASCII: half a surrogate pair has no UTF-8."""
  return json.dumps(line) + "\n"

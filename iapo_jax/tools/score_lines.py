"""Reads completions from lines of JSON, and writes their scores as lines.

The input is untrusted: every line is checked before the first one is scored,
and an error names the line.
"""

import dataclasses
import fcntl
import functools
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NoReturn

import numpy as np

from iapo_jax.config.formats import FormatConfig
from iapo_jax.core import endings, files
from iapo_jax.core.errors import ConfigError
from iapo_jax.data import prompts, unknown
from iapo_jax.hf import tokenizer as tokenizer_lib
from iapo_jax.hf.decoding import token_texts
from iapo_jax.rewards import text
from iapo_jax.tools.scoring import Item, Scores

Line = dict[str, Any]
_TEXT = ("prompt", "completion")
_IDS = ("prompt_ids", "completion_ids")
_SCORES = (
    "reasoning_tokens", "answer_tokens", "logprobs", "entropies",
    "answer_entropies", "mi", "tokens",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rules:
  """How lines become token ids.

  Attributes:
    vocab_size: token ids are below it.
    max_positions: longest sequence of the model; 0 has no limit.
    tokenizer: None if the model's folder has none.
    eos_ids: tokens that end a completion and are not reasoning.
    elicitation: tokens that ask for the answer; empty without a tokenizer.
    form: the format of texts.
    chat: whether a text prompt is a user's message in the chat template.
    date: today's date for chat templates, YYYY-MM-DD.
    arguments: further arguments of the chat template.
    system: text of the system message before a user's message; empty for none.
  """

  vocab_size: int
  max_positions: int
  tokenizer: Any | None
  eos_ids: tuple[int, ...]
  elicitation: tuple[int, ...]
  form: FormatConfig
  chat: bool = False
  date: str = "2026-01-01"
  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  system: str = ""


def read(path: pathlib.Path, rules: Rules) -> tuple[list[Line], list[Item]]:
  """Returns the lines of a file, one JSON object each, and their items.

  Empty lines are skipped.

  Raises:
    ConfigError: if the file cannot be read, or for the first line that breaks a
      rule.
  """
  lines, items = [], []
  try:
    with path.open(encoding="utf-8") as file:
      for number, row in enumerate(file, 1):
        if row.strip():
          where = f"{path}:{number}"
          lines.append(_parse(row, where))
          items.append(placed(lines[-1], rules, where))
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
    json.dumps(line, allow_nan=False)  # 1e999 is read as infinity
  except (ValueError, RecursionError) as error:
    raise ConfigError(f"{where}: is not JSON ({error})") from error
  if not isinstance(line, dict):
    raise ConfigError(f"{where}: must be a JSON object")
  return line


def _no_constant(name: str) -> NoReturn:
  raise ValueError(f"{name} is not a number in JSON")


def placed(line: Line, rules: Rules, where: str) -> Item:
  """Returns the item of a line; errors begin with `where`.

  Raises:
    ConfigError: if the line breaks a rule.
  """
  try:
    return _item(line, rules)
  except ConfigError as error:
    raise ConfigError(f"{where}: {error}") from error


def tell_unknown(items: Sequence[Item], rules: Rules) -> None:
  """Prints a warning if the tokenizer does not know most of some texts."""
  if rules.tokenizer is not None:
    unknown.warn(
        rules.tokenizer,
        [ids for item in items for ids in (item.prompt, item.completion)],
        "prompts and completions",
        "their scores say little; name the model's tokenizer with --tokenizer",
    )


def _item(line: Line, rules: Rules) -> Item:
  for name in _SCORES:
    if name in line:
      raise ConfigError(f"{name}: is a field of the output; rename it")
  has_text, has_ids = (
      any(name in line for name in names) for names in (_TEXT, _IDS)
  )
  if has_text == has_ids:
    raise ConfigError(
        "must have either prompt and completion, or prompt_ids and"
        " completion_ids"
    )
  for name in _IDS if has_ids else _TEXT:
    if name not in line:
      raise ConfigError(f"has no {name}")
  if has_text and "postfix_ids" in line:
    rule = "must come with prompt_ids; with prompt, use --elicitation"
    raise ConfigError(f"postfix_ids: {rule}")
  read_line = _item_of_ids if has_ids else _item_of_text
  item = read_line(line, rules)
  if rules.max_positions and item.positions > rules.max_positions:
    raise ConfigError(
        f"prompt, completion and elicitation have {item.positions} tokens; the"
        f" model takes at most {rules.max_positions}"
    )
  return item


def _item_of_ids(line: Line, rules: Rules) -> Item:
  prompt, completion = (_ids(line, name, rules) for name in _IDS)
  if "postfix_ids" in line:
    postfix = _ids(line, "postfix_ids", rules)
  else:
    _tokenizer(rules, "has no postfix_ids")
    postfix = rules.elicitation
  for name, ids in (("prompt_ids", prompt), ("postfix_ids", postfix)):
    if not ids:
      raise ConfigError(f"{name}: must have at least one token")
  return Item(prompt, completion, postfix, reasoning=len(completion))


def _item_of_text(line: Line, rules: Rules) -> Item:
  tok = _tokenizer(rules, "is text")
  for name in _TEXT:
    try:
      json.dumps(line[name], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
      rule = "must not contain half a surrogate pair"
      raise ConfigError(f"{name}: {rule}") from error
  prompt, completion = line["prompt"], line["completion"]
  if not isinstance(completion, str):
    _fail("completion", completion, "must be text")
  messages = prompt
  if rules.chat and isinstance(prompt, str):
    messages = prompts.with_system(
        [prompts.said("user", prompt)], rules.system
    )
  if isinstance(messages, str):
    opener = rules.form.opener
    if _without_opening(messages, completion, opener) != messages:
      rule = f"begins with {opener}, as the prompt ends; leave one out"
      _fail("completion", completion, rule)
    begin = tokenizer_lib.encode_prompt(tok, messages)
  elif isinstance(messages, list) and all(
      isinstance(message, dict) for message in messages
  ):
    rendered = tokenizer_lib.render_chat(
        tok, messages, date=rules.date, arguments=rules.arguments
    )
    rendered = _without_opening(rendered, completion, rules.form.opener)
    begin = tokenizer_lib.encode_rendered(tok, rendered)
  else:
    _fail("prompt", prompt, "must be text, or a list of messages")
  ids = tokenizer_lib.encode(tok, completion)
  if not begin:
    _fail("prompt", prompt, "must have at least one token")
  for name, found in (("prompt", begin), ("completion", ids)):
    if max(found, default=0) >= rules.vocab_size:
      rule = f"has token {max(found)}; must be below {rules.vocab_size}"
      raise ConfigError(f"{name}: {rule}")
  ended = bool(ids) and ids[-1] in rules.eos_ids
  own = ids[:-1] if ended else ids
  decode = functools.partial(tokenizer_lib.decode, tok)
  reasoning = text.reasoning_length(own, decode, rules.form)
  answer = endings.answer_lengths(len(ids), ended, reasoning)
  return Item(tuple(begin), tuple(ids), rules.elicitation, reasoning, answer)


def _without_opening(prompt: str, completion: str, opener: str) -> str:
  """Leaves `<think>` at the end of a prompt to a completion that has it."""
  if completion.lstrip().startswith(opener):
    body = prompt.rstrip()
    if body.endswith(opener):
      return body.removesuffix(opener)
  return prompt


def _tokenizer(rules: Rules, what: str) -> Any:
  if rules.tokenizer is None:
    raise ConfigError(
        f"{what}, but the model's folder has no tokenizer.json; name a"
        " tokenizer with --tokenizer"
    )
  return rules.tokenizer


def _ids(line: Line, name: str, rules: Rules) -> tuple[int, ...]:
  ids = line[name]
  if not isinstance(ids, list) or not all(type(i) is int for i in ids):
    _fail(name, ids, "must be a list of whole numbers")
  for i in ids:
    if not 0 <= i < rules.vocab_size:
      _fail(name, i, f"must be a token id from 0 to {rules.vocab_size - 1}")
  return tuple(ids)


def _fail(name: str, value: Any, rule: str) -> NoReturn:
  shown = repr(value)
  shown = shown if len(shown) < 60 else shown[:57] + "..."
  raise ConfigError(f"{name} = {shown}: {rule}")


def scored(
    line: Line, item: Item, scores: Scores, tokenizer: Any | None
) -> Line:
  """Returns the line with its scores added.

  These are `reasoning_tokens`, `answer_tokens`, `logprobs` [t], `entropies`
  [t], `answer_entropies` [t + 1] (null after the reasoning, where no early
  answer exists), `mi` [t], and with a tokenizer the texts `tokens` [t].

  Raises:
    FloatingPointError: if a score is not finite.
  """
  for array in dataclasses.astuple(scores):
    if not np.isfinite(array).all():
      raise FloatingPointError(
          "scores are not finite; try --dtype=float32, or check the weights"
      )
  answers = _floats(scores.answer_entropies)
  rest = len(item.completion) - item.reasoning
  found = {
      "reasoning_tokens": item.reasoning,
      "answer_tokens": item.answer,
      "logprobs": _floats(scores.logprobs),
      "entropies": _floats(scores.entropies),
      "answer_entropies": [*answers, *[None] * rest],
      "mi": _floats(scores.information),
  }
  if tokenizer is not None:
    found["tokens"] = token_texts(list(item.completion), tokenizer)
  return line | found


def _floats(values: np.ndarray) -> list[float]:
  """Keeps nine digits, which preserve every bit of a float32."""
  return [float(f"{value:.9g}") for value in values]


class Partial:
  """Collects scored lines for a file, in the order of the input.

  Until all lines are scored they stay in OUTPUT.partial, below a line with the
  settings, and not in memory. A new process continues after the lines of an
  interrupted one. A lock admits one process at a time.

  Attributes:
    count: number of scored lines.
  """

  def __init__(
      self,
      output: pathlib.Path,
      lines: Sequence[Line],
      settings: Mapping[str, Any],
  ) -> None:
    """Opens OUTPUT.partial and counts the lines in it.

    Args:
      output: must not exist.
      lines: of the input.
      settings: everything else that the scores depend on.

    Raises:
      ConfigError: if OUTPUT.partial belongs to another input or other settings,
        or another process writes it.
    """
    self._output = output
    self._path = output.with_name(output.name + ".partial")
    self._file = self._path.open("a+b")
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      self._file.close()
      raise ConfigError(
          f"{self._path}: another command writes it; wait, or use another"
          " --output"
      ) from error
    head = (json.dumps(settings) + "\n").encode()
    self.count, end = self._left(head, lines)
    # An interruption may have cut the last line off.
    self._file.truncate(end)
    if not end:
      self._file.write(head)
      self._file.flush()

  def _left(self, head: bytes, lines: Sequence[Line]) -> tuple[int, int]:
    """Returns the number of whole lines and the byte at which they end."""
    rows = _whole_rows(self._file)
    first = next(rows, b"")
    fits, count, end = first in (b"", head), 0, len(first)
    for row in rows:
      known = lines[count].items() if count < len(lines) else None
      found = _parse(row.decode(), str(self._path))
      fits &= known is not None and known <= found.items()
      count, end = count + 1, end + len(row)
    if not fits:
      self._file.close()
      raise ConfigError(
          f"{self._path}: was left by another input or other flags; delete"
          " it, or use another --output"
      )
    return count, end

  def append(self, lines: Iterable[Line]) -> None:
    """Appends lines; if one fails, those before it are kept."""
    try:
      for line in lines:
        # json.dumps escapes to ASCII: half a surrogate pair has no UTF-8.
        self._file.write(json.dumps(line).encode() + b"\n")
        self.count += 1
    finally:
      self._file.flush()

  def first(self, most: int) -> list[Line]:
    """Returns up to `most` of the first scored lines."""
    rows = itertools.islice(_whole_rows(self._file), 1, most + 1)
    return [_parse(row.decode(), str(self._path)) for row in rows]

  def finish(self) -> None:
    """Writes the output, whole or not at all, and removes OUTPUT.partial."""
    draft = files.draft_of(self._output)
    with draft.open("xb") as file:
      rows = _whole_rows(self._file)
      next(rows)
      file.writelines(rows)
      file.flush()
      os.fsync(file.fileno())
    draft.rename(self._output)
    self._path.unlink()
    self._file.close()


def _whole_rows(file: BinaryIO) -> Iterator[bytes]:
  """Returns the lines of a file that are complete, from its beginning."""
  file.seek(0)
  return itertools.takewhile(lambda row: row.endswith(b"\n"), file)

"""Completions to score from lines of JSON, and their scores as lines of JSON.

What a line holds comes from anywhere: every rule is checked, of all lines,
before the first one is scored, and an error names the line.
"""

import dataclasses
import fcntl
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NoReturn

import numpy as np

from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import tokenizer as tokenizer_lib
from iapo_jax.rewards import text
from iapo_jax.run.samples import decoded, token_texts
from iapo_jax.tools.scoring import Item, Scores

Line = dict[str, Any]
_TEXT = ("prompt", "completion")
_IDS = ("prompt_ids", "completion_ids")
_SCORES = (
    "reasoning_tokens", "logprobs", "entropies", "answer_entropies", "mi",
    "tokens",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rules:
  """What lines are read by.

  Attributes:
    vocab_size: token ids are below it.
    max_positions: the longest sequence; 0 is any.
    tokenizer: of the model; None where its folder has none.
    eos_ids: tokens that end a completion and are no reasoning.
    elicitation: the tokens that ask for the answer; none without a tokenizer.
    chat: whether prompts are a user's messages in the chat template.
    date: that chat templates print.
  """

  vocab_size: int
  max_positions: int
  tokenizer: Any | None
  eos_ids: tuple[int, ...]
  elicitation: tuple[int, ...]
  chat: bool
  date: str


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
          items.append(_placed(lines[-1], rules, where))
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
  raise ValueError(f"{name} is no number of JSON")


def _placed(line: Line, rules: Rules, where: str) -> Item:
  """`_item`, whose errors all tell the line."""
  try:
    return _item(line, rules, where)
  except ConfigError as error:
    if str(error).startswith(where):
      raise
    raise ConfigError(f"{where}: {error}") from error


def _item(line: Line, rules: Rules, where: str) -> Item:
  for name in _SCORES:
    if name in line:
      raise ConfigError(f"{where} {name}: is a field of the output; rename it")
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
    _tokenizer(rules, where, "has no postfix_ids")
    postfix = rules.elicitation
  for name, ids in (("prompt_ids", prompt), ("postfix_ids", postfix)):
    if not ids:
      raise ConfigError(f"{where} {name}: must have at least one token")
  return Item(prompt, completion, postfix, reasoning=len(completion))


def _item_of_text(line: Line, rules: Rules, where: str) -> Item:
  tok = _tokenizer(rules, where, "is text")
  _check_unicode({name: line[name] for name in _TEXT}, where)
  prompt, completion = line["prompt"], line["completion"]
  if not isinstance(completion, str):
    _fail(where, "completion", completion, "must be text")
  if isinstance(prompt, list) or (rules.chat and isinstance(prompt, str)):
    messages = prompt
    if isinstance(prompt, str):
      messages = [{"role": "user", "content": prompt}]
    if not all(isinstance(message, dict) for message in messages):
      _fail(where, "prompt", prompt, "must be text, or a list of messages")
    rendered = tokenizer_lib.render_chat(tok, messages, date=rules.date)
    begin = tokenizer_lib.encode_rendered(tok, rendered)
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
      rules.elicitation,
      text.reasoning_length(own, lambda part: decoded(tok, part)),
  )


def _check_unicode(texts: Mapping[str, Any], where: str) -> None:
  for name, value in texts.items():
    try:
      json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
      rule = "holds half a surrogate pair, which is no text"
      raise ConfigError(f"{where} {name}: {rule}") from error


def _tokenizer(rules: Rules, where: str, what: str) -> Any:
  if rules.tokenizer is None:
    raise ConfigError(
        f"{where}: {what}, and there is no tokenizer (the model's folder has no"
        " tokenizer.json; --tokenizer names another)"
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


class Partial:
  """Scored lines on their way to a file, in the order of the input.

  They lie in OUTPUT.partial, after a line that tells what they were scored
  with, until all are there; none is kept in memory. What an interrupted command
  left is gone on with. One process at a time may have it.

  Attributes:
    count: how many lines are scored.
  """

  def __init__(
      self,
      output: pathlib.Path,
      lines: Sequence[Line],
      settings: Mapping[str, Any],
  ) -> None:
    """Looks for what was left.

    Args:
      output: that is not there yet.
      lines: of the input.
      settings: all that the scores depend on besides the lines.

    Raises:
      ConfigError: where what was left is of another input or other settings,
        or another process is writing it.
    """
    self._output = output
    self._path = output.with_name(output.name + ".partial")
    self._file = self._path.open("a+b")
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      self._file.close()
      raise ConfigError(
          f"{self._path}: is being written by another command"
      ) from error
    head = (json.dumps(settings) + "\n").encode()
    self.count, end = self._left(head, lines)
    # The last line may have been cut off while it was written.
    self._file.truncate(end)
    if not end:
      self._file.write(head)
      self._file.flush()

  def _left(self, head: bytes, lines: Sequence[Line]) -> tuple[int, int]:
    """How many whole lines there are, and where they end."""
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
          f"{self._path}: was left by another input or other flags; remove"
          " it, or use another --output"
      )
    return count, end

  def append(self, lines: Iterable[Line]) -> None:
    """Writes further lines; those before one that fails are kept."""
    try:
      for line in lines:
        # ASCII: half a surrogate pair has no UTF-8.
        self._file.write(json.dumps(line).encode() + b"\n")
        self.count += 1
    finally:
      self._file.flush()

  def first(self, most: int) -> list[Line]:
    """The first lines that are scored, so many at most."""
    rows = itertools.islice(_whole_rows(self._file), 1, most + 1)
    return [_parse(row.decode(), str(self._path)) for row in rows]

  def finish(self) -> None:
    """Writes the file, whole or not at all."""
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
  """The lines of a file from its beginning that have their end."""
  file.seek(0)
  return itertools.takewhile(lambda row: row.endswith(b"\n"), file)

"""Fast tokenizers: any pretrained one, and one of words for synthetic tasks.

The text that a chat template or a completion is made of is data: what it holds
of special tokens' names is read as those tokens.
"""

import datetime
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from iapo_jax.core.errors import ConfigError

_FILE = "tokenizer.json"


def word_tokenizer(
    words: Sequence[str], *, pad: str, eos: str, unknown: str
) -> PreTrainedTokenizerFast:
  """One token a word, words apart by white space.

  Args:
    words: the vocabulary in the order of its ids.
    pad: the padding word.
    eos: the word that ends a completion.
    unknown: what stands for any other word.

  Returns:
    A Hugging Face fast tokenizer; `save_pretrained` writes it.
  """
  ids = {word: i for i, word in enumerate(words)}
  backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=unknown))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(
      tokenizer_object=backend,
      pad_token=pad,
      eos_token=eos,
      unk_token=unknown,
      clean_up_tokenization_spaces=False,
  )


def load(folder: pathlib.Path) -> PreTrainedTokenizerFast:
  """The fast tokenizer of a Hugging Face folder, exactly as its file says.

  `AutoTokenizer` may build another one from parts of the file, going by the
  model's type; the file is what the model was trained with.

  Args:
    folder: with a tokenizer.json.

  Returns:
    The tokenizer.

  Raises:
    ConfigError: where there is no such file, or it cannot be read.
  """
  if not (folder / _FILE).is_file():
    raise ConfigError(f"{str(folder)!r}: has no {_FILE} (a fast tokenizer)")
  try:
    return PreTrainedTokenizerFast.from_pretrained(
        folder, local_files_only=True, clean_up_tokenization_spaces=False
    )
  except Exception as error:  # the tokenizers library raises plain exceptions
    text = " ".join(str(error).split())
    raise ConfigError(f"{folder / _FILE}: cannot be read ({text})") from error


@functools.lru_cache(maxsize=8)
def _continuing(tok: PreTrainedTokenizerFast) -> tokenizers.Tokenizer:
  """The tokenizer, but that it invents no blank before a text.

  Those that come from SentencePiece put one before every text, as if each
  began a sequence.
  """

  def visit(node: Any) -> Any:
    if isinstance(node, list):
      return [visit(entry) for entry in node]
    if not isinstance(node, dict):
      return node
    node = {name: visit(entry) for name, entry in node.items()}
    if node.get("type") == "Prepend":
      node["prepend"] = ""
    if node.get("type") == "Metaspace":
      node["prepend_scheme"] = "never"
    if node.get("type") == "ByteLevel":
      node["add_prefix_space"] = False
    return node

  parts = json.loads(tok.backend_tokenizer.to_str())
  for name in ("normalizer", "pre_tokenizer"):
    parts[name] = visit(parts[name])
  backend = tokenizers.Tokenizer.from_str(json.dumps(parts))
  backend.no_padding()
  backend.no_truncation()
  return backend


def encoding(tok: PreTrainedTokenizerFast, text: str) -> tokenizers.Encoding:
  """The tokens of a text that goes on another one: no BOS, no invented blank.

  Args:
    tok: the tokenizer.
    text: a completion, an elicitation, an answer.

  Returns:
    Ids and offsets.
  """
  return _continuing(tok).encode(text, add_special_tokens=False)


def encode(tok: PreTrainedTokenizerFast, text: str) -> list[int]:
  """The ids of `encoding`."""
  return encoding(tok, text).ids


def decode(tok: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
  """The text of tokens, as a grader reads it.

  Ids beyond the tokenizer (a padded embedding has them) have no text and would
  vanish; they stand for unknown text where the tokenizer has that.

  Args:
    tok: the tokenizer.
    ids: of a completion or an answer.

  Returns:
    The text, special tokens included.
  """
  size, unknown = len(tok), tok.unk_token_id
  if unknown is not None:
    ids = [i if i < size else unknown for i in ids]
  return tok.decode(
      ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
  )


def encode_rendered(tok: PreTrainedTokenizerFast, text: str) -> list[int]:
  """The tokens of a prompt that a chat template wrote, its BOS included."""
  return tok.encode(text, add_special_tokens=False)


def encode_prompt(tok: PreTrainedTokenizerFast, text: str) -> list[int]:
  """The tokens of a text that begins a sequence, after a BOS if there is one.

  Args:
    tok: the tokenizer.
    text: without a chat template; that writes its own BOS.

  Returns:
    The tokens.

  Raises:
    ConfigError: where the tokenizer also adds tokens after the text.
  """
  ids = tok.encode(text, add_special_tokens=True)
  plain = encode_rendered(tok, text)
  if ids[len(ids) - len(plain) :] != plain:
    raise ConfigError(
        f"tokenizer {tok.name_or_path!r}: ends texts with tokens of its own,"
        " which would end a prompt, too; use a chat template"
    )
  return ids


def _dated(template: str, date: str) -> str:
  """A template whose clock stands still.

  Functions cannot be handed to a template, but it may have macros.
  """
  if "strftime_now" not in template:
    return template
  day = datetime.datetime.fromisoformat(date)
  macro = "{%- macro strftime_now(format) -%}{{ format"
  for letter in "aAbBdHIjmMpSyY":
    macro += f".replace('%{letter}', '{day:%{letter}}')"
  return macro + " }}{%- endmacro -%}" + template


def render_chat(
    tok: PreTrainedTokenizerFast,
    messages: Sequence[Mapping[str, str]],
    *,
    date: str,
) -> str:
  """Messages by the tokenizer's chat template, up to where a reply begins.

  Args:
    tok: the tokenizer.
    messages: each with `role` and `content`.
    date: YYYY-MM-DD, which templates that print today's print instead: a
      prompt shall not change from day to day.

  Returns:
    The text.

  Raises:
    ConfigError: where there is no template, or it refuses the messages.
  """
  if not tok.chat_template:
    raise ConfigError(
        "config.data.chat_template = True: tokenizer"
        f" {tok.name_or_path!r} has no chat template"
    )
  try:
    return tok.apply_chat_template(
        list(messages),
        tokenize=False,
        add_generation_prompt=True,
        chat_template=_dated(tok.get_chat_template(), date),
    )
  except Exception as error:  # templates raise what they like
    text = " ".join(str(error).split())
    raise ConfigError(
        f"chat template of {tok.name_or_path!r}: {text} (where it knows no"
        " system message, set config.data.instructions=user)"
    ) from error

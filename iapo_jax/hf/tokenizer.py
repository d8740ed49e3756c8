"""Fast tokenizers: pretrained ones, and a word tokenizer for synthetic tasks.

The name of a special token in the text of a prompt or completion encodes to
that token.
"""

import datetime
import functools
import inspect
import json
import pathlib
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import tokenizers
from jinja2 import meta, nodes, sandbox
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import gguf

FILE = "tokenizer.json"
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
# What transformers gives to every template, besides special tokens.
_NAMES = ("messages", "raise_exception", "strftime_now")
_REPLY = "the reply that the template ends"


def word_tokenizer(
    words: Sequence[str], *, pad: str, eos: str, unknown: str
) -> PreTrainedTokenizerFast:
  """Makes a tokenizer with one token per word, split at white space.

  Args:
    words: the vocabulary in the order of its ids.
    pad: the padding word.
    eos: the word that ends a completion.
    unknown: the word that replaces any other.
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
  """Loads the fast tokenizer of a folder, exactly as in its tokenizer.json.

  For some model types `AutoTokenizer` builds a different one from parts of the
  file. The folder may be a GGUF file, which has the same content. Raises
  `ConfigError` if the file is missing or cannot be read.
  """
  if gguf.is_file(folder):
    try:
      with gguf.written(folder, only=gguf.OF_TOKENIZER) as made:
        tok = load(made)
    except ConfigError as error:
      if str(folder) in str(error):
        raise
      raise ConfigError(f"{str(folder)!r}: its tokenizer: {error}") from error
    tok.name_or_path = str(folder)
    return tok
  if not (folder / FILE).is_file():
    raise ConfigError(
        f"{str(folder)!r}: has no {FILE}; a fast tokenizer is needed"
    )
  try:
    return PreTrainedTokenizerFast.from_pretrained(
        folder, local_files_only=True, clean_up_tokenization_spaces=False
    )
  except Exception as error:  # the tokenizers library raises plain exceptions
    text = " ".join(str(error).split())
    raise ConfigError(f"{folder / FILE}: cannot be read ({text})") from error


@functools.lru_cache(maxsize=8)
def continuing(tok: PreTrainedTokenizerFast) -> tokenizers.Tokenizer:
  """Returns a tokenizer that neither adds nor removes a blank before a text.

  SentencePiece tokenizers add one when they encode and remove one when they
  decode, as if every text began a sequence.
  """

  def visit(node: Any) -> Any:
    match node:
      case list():
        visited = map(visit, node)
        return [entry for entry in visited if entry is not None]
      case {"type": "Prepend"}:
        return None  # with an empty text, the first offset would be wrong
      case {"type": "Metaspace"}:
        return node | {"prepend_scheme": "never"}
      case {"type": "ByteLevel"}:
        return node | {"add_prefix_space": False}
      case {"type": "Strip", "start": _}:
        return node | {"start": 0}
      case dict():
        return {name: visit(entry) for name, entry in node.items()}
    return node

  parts = json.loads(tok.backend_tokenizer.to_str())
  for name in ("normalizer", "pre_tokenizer", "decoder"):
    parts[name] = visit(parts[name])
  backend = tokenizers.Tokenizer.from_str(json.dumps(parts))
  backend.no_padding()
  backend.no_truncation()
  return backend


def encoding(tok: PreTrainedTokenizerFast, text: str) -> tokenizers.Encoding:
  """Encodes a text that continues another: no BOS, no added blank.

  For completions, elicitations and answers; gives ids and offsets.
  """
  return continuing(tok).encode(text, add_special_tokens=False)


def encode(tok: PreTrainedTokenizerFast, text: str) -> list[int]:
  """Returns the ids of `encoding`."""
  return encoding(tok, text).ids


def known(tok: PreTrainedTokenizerFast, ids: Sequence[int]) -> Sequence[int]:
  """Replaces ids beyond the tokenizer's tokens by its unknown token, if any.

  A padded embedding has rows for such ids.
  """
  size, unknown = len(tok), tok.unk_token_id
  if unknown is None or max(ids, default=0) < size:
    return ids
  # A vocabulary with gaps names some ids above its size.
  name = tok.backend_tokenizer.id_to_token
  return [i if i < size or name(i) is not None else unknown for i in ids]


def decode(tok: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
  """Decodes a completion or an answer, the inverse of `encode`.

  Keeps special tokens and all blanks. Ids that name no token decode to the
  unknown token if they are beyond the tokenizer's tokens and it has one, else
  to no text. `decoding.token_texts` gives the text of each token.
  """
  backend = continuing(tok)
  return backend.decode(known(tok, ids), skip_special_tokens=False)


def encode_rendered(tok: PreTrainedTokenizerFast, text: str) -> list[int]:
  """Encodes a prompt from a chat template, which already has its BOS."""
  return tok.encode(text, add_special_tokens=False)


def encode_prompt(tok: PreTrainedTokenizerFast, text: str) -> list[int]:
  """Encodes a prompt without a chat template, after the tokenizer's BOS if any.

  A text that begins with the BOS, such as a rendered template, gets no other.
  Raises `ConfigError` if the tokenizer also adds tokens after the text.
  """
  ids = tok.encode(text, add_special_tokens=True)
  plain = encode_rendered(tok, text)
  begin = ids[: len(ids) - len(plain)]
  if begin + plain != ids:
    raise ConfigError(
        f"tokenizer {tok.name_or_path!r}: adds tokens after a text, so they"
        " would end every prompt; use its chat template"
        " (config.data.chat_template, --chat)"
    )
  return plain if plain[: len(begin)] == begin else ids


def decode_prompt(tok: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
  """Decodes a prompt, with special tokens; it begins a sequence."""
  return tok.backend_tokenizer.decode(
      known(tok, ids), skip_special_tokens=False
  )


# Prints a format from a table of all directives of one day.
_STRFTIME = """\
{%- macro strftime_now(format) -%}
{%- set known = TABLE -%}
{%- set after = namespace(percent=false) -%}
{%- for part in format.split("%") -%}
{%- if loop.first or after.percent -%}
{%- set after.percent = false -%}{{ part }}
{%- elif not part -%}
{%- set after.percent = true -%}{{ "%" }}
{%- elif part[:1] in known -%}{{ known[part[:1]] ~ part[1:] }}
{%- elif part[:2] in known -%}{{ known[part[:2]] ~ part[2:] }}
{%- else -%}
{{ raise_exception("strftime_now cannot print %" ~ part[:2]) }}
{%- endif -%}
{%- endfor -%}
{%- endmacro -%}
"""


@functools.lru_cache(maxsize=8)
def _dated(template: str, date: str) -> str:
  """Fixes the date in a template that prints today's date.

  A macro replaces `strftime_now`, since templates accept no functions. It
  prints every directive of this platform but `%s`, which depends on the time
  zone, and refuses others.
  """
  if "strftime_now" not in template:
    return template
  day = datetime.datetime.fromisoformat(date)
  directives = [
      flag + letter
      for flag in ("", *"-_0^#")
      for letter in string.ascii_letters
      if letter != "s"
  ]
  table = {name: day.strftime(f"%{name}") for name in directives}
  known = {name: shown for name, shown in table.items() if shown != f"%{name}"}
  return _STRFTIME.replace("TABLE", json.dumps(known)) + template


def template_of(tok: PreTrainedTokenizerFast) -> str:
  """Returns the source of the chat template; empty if there is none."""
  try:
    return tok.get_chat_template() if tok.chat_template else ""
  except ValueError:  # several templates, none of which is the default
    return ""


def chat_variables(tok: PreTrainedTokenizerFast) -> frozenset[str]:
  """Returns the arguments that a user may give to the chat template.

  These are the names that it reads, but for those that transformers gives and
  those that the template sets itself without asking whether they are defined.
  """
  environment = sandbox.ImmutableSandboxedEnvironment(
      extensions=["jinja2.ext.loopcontrols"]
  )
  # A tag of transformers, which marks replies and changes no text.
  source = _GENERATION.sub("", template_of(tok))
  try:
    tree = environment.parse(source)
    names = meta.find_undeclared_variables(tree)
  except jinja2.TemplateError:  # `render_chat` tells
    return frozenset()
  own: dict[str, nodes.Node] = {}  # the first value of each
  for x in tree.find_all(nodes.Assign):
    if isinstance(x.target, nodes.Name):
      own.setdefault(x.target.name, x.node)
  asked = {
      x.node.name
      for x in tree.find_all(nodes.Test)
      if x.name in ("defined", "undefined") and isinstance(x.node, nodes.Name)
  }
  # As in {% set thinking = thinking | default(true) %}.
  asked |= {
      name
      for name, value in own.items()
      if name in {x.name for x in value.find_all(nodes.Name)}
  }
  given = {*inspect.signature(tok.apply_chat_template).parameters, *_NAMES}
  given |= (own.keys() - asked) | tok.special_tokens_map.keys()
  return frozenset(names - given)


def turn_end(tok: PreTrainedTokenizerFast) -> int | None:
  """Returns the special token after a reply in the chat template, if any."""
  turns = [
      {"role": "user", "content": "question"},
      {"role": "assistant", "content": _REPLY},
  ]
  try:
    rendered = tok.apply_chat_template(
        turns,
        tokenize=False,
        chat_template=_dated(tok.get_chat_template(), "2026-01-01"),
    )
  except Exception:  # no template, or one that has no replies
    return None
  ids = encode(tok, rendered.rpartition(_REPLY)[2].lstrip())
  special = {i for i, t in tok.added_tokens_decoder.items() if t.special}
  special |= set(tok.all_special_ids)
  return ids[0] if ids and ids[0] in special else None


def render_chat(
    tok: PreTrainedTokenizerFast,
    messages: Sequence[Mapping[str, str]],
    *,
    date: str,
    arguments: Mapping[str, Any] | None = None,
) -> str:
  """Renders messages with the chat template, up to the start of a reply.

  Args:
    tok: the tokenizer.
    messages: each with `role` and `content`.
    date: YYYY-MM-DD, used by templates that print today's date, so that
      prompts do not change from day to day.
    arguments: further arguments of the template, among `chat_variables`.

  Raises:
    ConfigError: if there is no template or it rejects the messages.
  """
  if not tok.chat_template:
    raise ConfigError(
        f"tokenizer {tok.name_or_path!r}: has no chat template; give prompts"
        " as text, without config.data.chat_template or --chat"
    )
  try:
    return tok.apply_chat_template(
        list(messages),
        tokenize=False,
        add_generation_prompt=True,
        chat_template=_dated(tok.get_chat_template(), date),
        **(arguments or {}),
    )
  except Exception as error:  # a template can raise any error
    text = " ".join(str(error).split())
    raise ConfigError(
        f"chat template of {tok.name_or_path!r}: {text} (if it supports no"
        " system message, put the instructions into the user's message:"
        " config.data.instructions=user)"
    ) from error

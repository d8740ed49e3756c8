"""The tokenizer that the metadata of a GGUF file stands for.

The file has the tokens, and merges or scores, but neither the regular
expression that splits text nor a normalizer: it names the kind of tokenizer
(`tokenizer.ggml.model`), and a pre-tokenizer (`tokenizer.ggml.pre`) that stands
for both. What is built here is the tokenizer.json of the models that the name
was made for.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from iapo_jax.hf.gguf_header import Header, Numbers

_GGML = "tokenizer.ggml."
# Types of tokens, in llama.cpp.
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # a blank in SentencePiece's tokens
_LONGEST = 1000  # letters of a token; the time for merges grows with the square
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_NORMAL_LETTER = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
)
_REST_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TRIPLES = rf"{_CONTRACTIONS}|{_NORMAL_LETTER}|\p{{N}}{{1,3}}|{_REST}"
_SINGLES = rf"{_CONTRACTIONS}|{_NORMAL_LETTER}|\p{{N}}|{_REST}"
_OPTIONAL = f"{_CONTRACTIONS}?"


@dataclasses.dataclass(frozen=True)
class Split:
  """How a byte-level tokenizer splits text before it merges.

  Attributes:
    pattern: regular expression of the pieces; "" is that of GPT-2.
    digits: whether each digit is cut off before that.
    composed: whether text is normalised to NFC.
    whole: whether a piece that is a token is that token, whatever the merges.
    begins: whether a BOS is added, if the file does not say so.
  """

  pattern: str = ""
  digits: bool = False
  composed: bool = False
  whole: bool = False
  begins: bool = False


_LLAMA3 = Split(_TRIPLES, whole=True, begins=True)
_SPLITS = {
    "gpt-2": Split(),
    "smollm": Split(digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smaug-bpe": Split(_TRIPLES),
    "dbrx": Split(_TRIPLES),
    "qwen2": Split(_SINGLES, composed=True),
    "deepseek-r1-qwen": Split(_SINGLES),
    "gpt-4o": Split(
        "|".join((_CASED % (_OPTIONAL, _OPTIONAL), r"\p{N}{1,3}", _REST_SLASH))
    ),
    "tekken": Split(
        "|".join((_CASED % ("", ""), r"\p{N}", _REST_SLASH)),
        whole=True, begins=True,
    ),
}  # fmt: skip
_MODELS = ("gpt2", "llama")
# Architectures whose merges are in the order of the tokens, not of the scores.
_BY_ORDER = ("gemma2", "gemma3")
# Special tokens of Phi-3 that leave the blanks after them.
_STRICT = ("<unk>", "<s>", "<|endoftext|>")


class Vocabulary:
  """The tokens of a file."""

  def __init__(self, header: Header) -> None:
    """Raises `ConfigError` if a list is missing, malformed or too short."""
    self._header = header
    self.model = self.get("model")
    if self.model not in _MODELS:
      self.fail("model", self.model, f"must be one of {', '.join(_MODELS)}")
    self.tokens = self.texts("tokens")
    self.kinds = self.numbers("token_type")
    for name in ("precompiled_charsmap", "remove_extra_whitespaces"):
      value = self.get(name)
      if value not in (None, False, 0):
        self.fail(name, value, "is not supported")
    self.ids = {token: i for i, token in enumerate(self.tokens)}
    if len(self.ids) < len(self.tokens):
      twice = next(t for i, t in enumerate(self.tokens) if self.ids[t] != i)
      self.fail("tokens", twice, "is in the list twice")

  def get(self, name: str) -> Any:
    """Returns a value, None if the key is missing."""
    return self._header.metadata.get(_GGML + name)

  def fail(self, name: str, value: Any, rule: str) -> NoReturn:
    """Raises a `ConfigError` about a key; says how to do without it."""
    self._header.fail(
        f"{_GGML}{name} = {value!r}: {rule}; you can name the folder of the"
        " model's tokenizer with --config.data.tokenizer=FOLDER (or"
        " --tokenizer=FOLDER)"
    )

  def texts(self, name: str) -> tuple[str, ...]:
    """Returns a list of texts that may not be missing."""
    found = self.get(name)
    if not isinstance(found, tuple) or not found:
      self.fail(name, found, "must be a list of texts")
    return found

  def numbers(self, name: str) -> list[float]:
    """Returns a number for each token."""
    found = self.get(name)
    if not isinstance(found, Numbers) or len(found.values) != len(self.tokens):
      self.fail(name, found, f"must have {len(self.tokens)} numbers")
    return found.values.tolist()

  def token(self, name: str) -> str | None:
    """Returns the token whose id a key gives, None if it is missing."""
    found = special_id(self._header, name, len(self.tokens))
    return None if found is None else self.tokens[found]

  def flag(self, name: str, default: bool) -> bool:
    """Returns a value that is true or false."""
    found = self.get(name)
    if found is not None and type(found) is not bool:
      self.fail(name, found, "must be true or false")
    return default if found is None else found


def special_id(header: Header, name: str, size: int) -> int | None:
  """Returns the token id that a key gives, None if it is missing.

  Raises `ConfigError` if it is not below `size`.
  """
  found = header.metadata.get(_GGML + name)
  if found is None:
    return None
  if type(found) is not int or not 0 <= found < size:
    header.fail(f"{_GGML}{name} = {found!r}: must be an id below {size}")
  return found


def settings(header: Header) -> dict[str, Any]:
  """Returns the settings of a tokenizer_config.json."""
  known = Vocabulary(header)
  found: dict[str, Any] = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "clean_up_tokenization_spaces": False,
  }
  for field, name in _SPECIAL.items():
    token = known.token(name)
    if token is not None:
      found[field] = token
  return found


def template(header: Header) -> str | None:
  """Returns the chat template, None if there is none."""
  found = header.metadata.get("tokenizer.chat_template")
  if found is not None and not isinstance(found, str):
    header.fail("tokenizer.chat_template: must be a text")
  return found


def build(header: Header, architecture: str) -> dict[str, Any]:
  """Returns the content of a tokenizer.json.

  Args:
    header: of the file.
    architecture: llama.cpp's name of it.

  Raises:
    ConfigError: if a part is missing, malformed or not known.
  """
  known = Vocabulary(header)
  if known.model == "gpt2":
    parts, begins = _byte_level(known)
  else:
    parts, begins = _sentence_pieces(known, architecture)
  strips = architecture == "phi3" and known.model == "llama"
  return {
      "version": "1.0",
      "truncation": None,
      "padding": None,
      "added_tokens": list(_added(known, strips)),
      **parts,
      "post_processor": _around(known, begins),
  }


def _added(known: Vocabulary, strips: bool) -> Iterator[dict[str, Any]]:
  """Yields the tokens that are found in a text before it is split."""
  for i, (token, kind) in enumerate(
      zip(known.tokens, known.kinds, strict=True)
  ):
    if kind in (_CONTROL, _USER) or (
        kind == _UNKNOWN and known.get("unknown_token_id") == i
    ):
      yield {
          "id": i,
          "content": token,
          "single_word": False,
          "lstrip": False,
          "rstrip": strips and kind == _CONTROL and token not in _STRICT,
          "normalized": False,
          "special": kind != _USER,
      }


def _around(known: Vocabulary, begins: bool) -> dict[str, Any] | None:
  """Returns what adds BOS and EOS to a text, None if nothing does."""
  around = [
      ("bos_token_id", known.flag("add_bos_token", begins)),
      ("eos_token_id", known.flag("add_eos_token", False)),
  ]
  if not any(adds for _, adds in around):
    return None
  text = [{"Sequence": {"id": "A", "type_id": 0}}]
  other = [{"Sequence": {"id": "B", "type_id": 1}}]
  tokens = {}
  for (name, adds), first in zip(around, (True, False), strict=True):
    if not adds:
      continue
    token = known.token(name)
    if token is None:
      known.fail(name, None, "is missing, but the file adds it to every text")
    tokens[token] = {
        "id": token, "ids": [known.ids[token]], "tokens": [token],
    }  # fmt: skip
    for pieces, type_id in ((text, 0), (other, 1)):
      piece = {"SpecialToken": {"id": token, "type_id": type_id}}
      pieces.insert(0 if first else len(pieces), piece)
  return {
      "type": "TemplateProcessing",
      "single": text,
      "pair": [*text, *other],
      "special_tokens": tokens,
  }


def _model(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    **options: Any,
) -> dict[str, Any]:
  return {
      "type": "BPE",
      "dropout": None,
      "unk_token": None,
      "continuing_subword_prefix": None,
      "end_of_word_suffix": None,
      "fuse_unk": False,
      "byte_fallback": False,
      "ignore_merges": False,
      "vocab": vocabulary,
      "merges": [list(pair) for pair in merges],
      **options,
  }


def _without_padding(known: Vocabulary) -> dict[str, int]:
  """Returns the tokens but those that fill up the rows of the embedding."""
  return {
      token: i
      for i, token in enumerate(known.tokens)
      if known.kinds[i] != _UNUSED or token != f"[PAD{i}]"
  }


def _byte_level(known: Vocabulary) -> tuple[dict[str, Any], bool]:
  """Returns the parts of a byte-level tokenizer, and whether it adds a BOS."""
  name = known.get("pre")
  if name not in _SPLITS:
    known.fail("pre", name, f"must be one of {', '.join(_SPLITS)}")
  split = _SPLITS[name]
  level = {
      "type": "ByteLevel",
      "add_prefix_space": known.flag("add_space_prefix", False),
      "trim_offsets": False,
      "use_regex": not split.pattern,
  }
  steps = [level]
  if split.pattern:
    steps.insert(0, {
        "type": "Split", "pattern": {"Regex": split.pattern},
        "behavior": "Isolated", "invert": False,
    })  # fmt: skip
  if split.digits:
    steps.insert(0, {"type": "Digits", "individual_digits": True})
  return {
      "normalizer": {"type": "NFC"} if split.composed else None,
      "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
      "decoder": level | {"use_regex": True},
      "model": _model(
          _without_padding(known), _merges(known), ignore_merges=split.whole
      ),
  }, split.begins


def _merges(known: Vocabulary) -> list[tuple[str, str]]:
  """Returns the merges that the file lists."""
  found = []
  for merge in known.texts("merges"):
    first, _, second = merge.partition(" ")
    if not {first, second, first + second} <= known.ids.keys():
      known.fail("merges", merge, "must join two tokens to a third")
    found.append((first, second))
  return found


def _sentence_pieces(
    known: Vocabulary, architecture: str
) -> tuple[dict[str, Any], bool]:
  """Returns the parts of a SentencePiece tokenizer; by default it adds a BOS.

  The blank before a text is a normalizer, as in the tokenizer.json of Llama 2
  and Phi-3: so a text that begins with a blank gets another one.
  """
  prefix = known.flag("add_space_prefix", True)
  replace = {"type": "Replace", "pattern": {"String": " "}, "content": _MARK}
  prepend = {"type": "Prepend", "prepend": _MARK}
  decode = [
      {"type": "Replace", "pattern": {"String": _MARK}, "content": " "},
      {"type": "ByteFallback"},
      {"type": "Fuse"},
  ]
  strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
  vocabulary = _marked(known)
  if known.get("merges") is not None:
    merges = _merges(known)
  else:
    ranks = -np.arange(len(known.tokens), dtype=float)
    if architecture not in _BY_ORDER:
      ranks = np.array(known.numbers("scores"), float)
    merges = implied_merges(vocabulary, ranks)
  bytes_known = all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
  return {
      "normalizer": {
          "type": "Sequence",
          "normalizers": [*([prepend] if prefix else []), replace],
      },
      "pre_tokenizer": None,
      "decoder": {
          "type": "Sequence",
          "decoders": [*decode, *([strip] if prefix else [])],
      },
      "model": _model(
          vocabulary, merges, unk_token=known.token("unknown_token_id"),
          fuse_unk=True, byte_fallback=bytes_known,
      ),
  }, True  # fmt: skip


def _marked(known: Vocabulary) -> dict[str, int]:
  """Returns the tokens with a mark for each blank.

  The converter writes the tokens of several blanks with blanks.
  """
  found = {}
  for token, i in _without_padding(known).items():
    only = token.strip(" ") == ""
    found[token.replace(" ", _MARK) if only else token] = i
    if len(token) > _LONGEST:
      known.fail("tokens", i, f"has more than {_LONGEST} letters")
  return found


def implied_merges(
    vocabulary: Mapping[str, int], ranks: np.ndarray
) -> list[tuple[str, str]]:
  """Returns every way to join two tokens to a third, the best token first.

  SentencePiece has no list of merges: it joins the pair whose token has the
  highest score.

  Args:
    vocabulary: ids by token.
    ranks: of each id; the highest is merged first.
  """
  found = []
  for token, i in vocabulary.items():
    for end in range(1, len(token)):
      first, second = token[:end], token[end:]
      if first in vocabulary and second in vocabulary:
        key = (-ranks[i], -len(first), -len(second))
        found.append((key, (first, second)))
  found.sort(key=lambda entry: entry[0])
  return [pair for _, pair in found]

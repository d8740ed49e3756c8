"""How tokens become text: which token adds which characters.

A tokenizer decodes tokens as a whole. A character may have several tokens, and
one broken byte may break all bytes beside it. So neither the texts of single
tokens nor those of prefixes join to the text. This module repeats the decoders
of tokenizer.json and keeps the token of every character, in linear time.
"""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from iapo_jax.hf import tokenizer

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN = re.compile(r"<0x(?:[0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")
# A character, or the longest part of one: each decodes to one character.
# Unicode, table 3-7.
_CHARACTER = re.compile(
    rb"[\xC2-\xDF][\x80-\xBF]?"
    rb"|(?:\xE0[\xA0-\xBF]|\xED[\x80-\x9F]|[\xE1-\xEC\xEE\xEF][\x80-\xBF])"
    rb"[\x80-\xBF]?"
    rb"|(?:\xF0[\x90-\xBF]|\xF4[\x80-\x8F]|[\xF1-\xF3][\x80-\xBF])"
    rb"(?:[\x80-\xBF][\x80-\xBF]?)?"
    rb"|[\x00-\xFF]"
)


@dataclasses.dataclass(frozen=True)
class _Piece:
  """A text between two steps of a decoder.

  Attributes:
    text: n characters.
    owners: n places of tokens, each the one that completes the character.
  """

  text: str
  owners: list[int]


class _UnknownDecoder(Exception):
  """This module does not repeat a decoder."""


def token_texts(
    ids: Sequence[int], tok: PreTrainedTokenizerFast
) -> list[str]:
  """Returns the text that each token adds.

  Joined, the texts are `tokenizer.decode(tok, ids)`. A token that ends inside a
  character adds nothing; the one that completes the character adds all of it.

  For a decoder that this module does not repeat (WordPiece, CTC, a regular
  expression), it decodes every prefix, in quadratic time.
  """
  whole = tokenizer.decode(tok, ids)
  try:
    pieces = _decoded(ids, tok)
  except _UnknownDecoder:
    pieces = []
  if "".join(piece.text for piece in pieces) != whole:
    return _from_prefixes(ids, tok, whole)
  texts = [""] * len(ids)
  owners = itertools.chain.from_iterable(piece.owners for piece in pieces)
  start = 0
  for owner, run in itertools.groupby(owners):
    end = start + sum(1 for _ in run)
    texts[owner], start = whole[start:end], end
  return texts


def _from_prefixes(
    ids: Sequence[int], tok: PreTrainedTokenizerFast, whole: str
) -> list[str]:
  """Returns by how much each prefix agrees longer with the whole text."""
  texts, end = [], 0
  for count in range(1, len(ids) + 1):
    start, prefix = end, tokenizer.decode(tok, ids[:count])
    if prefix.startswith(whole[:start]):
      while prefix[end : end + 1] == whole[end : end + 1] != "":
        end += 1
    texts.append(whole[start:end])
  return texts


def _decoded(
    ids: Sequence[int], tok: PreTrainedTokenizerFast
) -> list[_Piece]:
  """Decodes tokens as the tokenizer does. Ids that name no token have no piece.

  Raises:
    _UnknownDecoder: if the decoder has a step that is not repeated here.
  """
  backend = tokenizer.continuing(tok)
  names = enumerate(map(backend.id_to_token, tokenizer.known(tok, ids)))
  tokens = [(place, name) for place, name in names if name is not None]
  decoder = backend.decoder
  if decoder is None:  # a blank before each token but the first
    tokens = [
        (place, f" {name}" if i else name)
        for i, (place, name) in enumerate(tokens)
    ]
  pieces = [_Piece(name, [place] * len(name)) for place, name in tokens]
  if decoder is None:
    return pieces
  return _step(pieces, json.loads(decoder.__getstate__()))


def _step(pieces: list[_Piece], decoder: dict[str, Any]) -> list[_Piece]:
  """Applies a decoder of tokenizer.json, as `tokenizer.continuing` left it."""
  match decoder:
    case {"type": "Sequence", "decoders": decoders}:
      return functools.reduce(_step, decoders, pieces)
    case {"type": "Replace", "pattern": {"String": old}, "content": new}:
      return [_replaced(piece, old, new) for piece in pieces]
    case {"type": "Metaspace", "prepend_scheme": "never", "replacement": old}:
      return [_replaced(piece, old, " ") for piece in pieces]
    case {"type": "Strip", "start": 0, "stop": 0}:
      return pieces
    case {"type": "Fuse"}:
      return [_fused(pieces)]
    case {"type": "ByteFallback"}:
      return list(_with_byte_tokens(pieces))
    case {"type": "ByteLevel"}:
      return [_of_bytes(*_byte_level(pieces), "replace")]
  raise _UnknownDecoder


def _fused(pieces: Iterable[_Piece]) -> _Piece:
  owners = itertools.chain.from_iterable(piece.owners for piece in pieces)
  return _Piece("".join(piece.text for piece in pieces), list(owners))


def _replaced(piece: _Piece, old: str, new: str) -> _Piece:
  if old not in piece.text:
    return piece
  owners, start = [], 0
  for match in re.finditer(re.escape(old), piece.text):
    owners += piece.owners[start : match.start()]
    owners += [piece.owners[match.end() - 1]] * len(new)
    start = match.end()
  owners += piece.owners[start:]
  return _Piece(piece.text.replace(old, new), owners)


def _with_byte_tokens(pieces: Iterable[_Piece]) -> Iterator[_Piece]:
  """Decodes runs of tokens such as `<0xE4>`.

  A run that is not UTF-8 becomes one replacement character for every byte.
  """
  for is_bytes, run in itertools.groupby(
      pieces, lambda piece: bool(_BYTE_TOKEN.fullmatch(piece.text))
  ):
    if not is_bytes:
      yield from run
      continue
    run = list(run)
    raw = bytes(int(piece.text[3:5], 16) for piece in run)
    owners = [piece.owners[-1] for piece in run]
    try:
      yield _of_bytes(raw, owners, "strict")
    except UnicodeDecodeError:
      yield from (_Piece(_BROKEN, [owner]) for owner in owners)


def _byte_level(pieces: Iterable[_Piece]) -> tuple[bytes, list[int]]:
  """Returns n bytes and their n owners; a letter stands for each byte."""
  byte_of = _byte_of()
  raw, owners = bytearray(), []
  for piece in pieces:
    codes = list(map(byte_of.get, piece.text))
    if None not in codes:
      raw += bytes(codes)
      owners += piece.owners
    else:  # an added token
      for letter, owner in zip(piece.text, piece.owners, strict=True):
        raw += letter.encode()
        owners += [owner] * len(letter.encode())
  return bytes(raw), owners


@functools.cache
def _byte_of() -> dict[str, int]:
  """Returns the byte of each letter of GPT-2's alphabet."""
  shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
  rest = [byte for byte in range(256) if byte not in shown]
  letters = {chr(byte): byte for byte in shown}
  return letters | {chr(256 + i): byte for i, byte in enumerate(rest)}


def _of_bytes(raw: bytes, owners: list[int], errors: str) -> _Piece:
  """Decodes bytes; a character belongs to the owner of its last byte."""
  ends = (match.end() for match in _CHARACTER.finditer(raw))
  return _Piece(raw.decode(errors=errors), [owners[end - 1] for end in ends])

"""Small tokenizers of every kind that decodes in its own way.

All but `words` and `word_pieces` give each text back. Their vocabularies merge
`.</` and `</th`, so `</think>` seldom begins or ends a token.
"""

import functools

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_MERGES = (
    "s o", "i x", "s ix", "< /", ". </", "t h", "</ th", "n k", "i nk",
    "</th ink", "> \n", "a n", "e r", "w er", "- -",
)  # fmt: skip
_MARKED = ("▁ so", "▁ six", "▁ an", "▁ ▁", "▁▁ ▁▁")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,<>/-=+\n"
_SPECIAL = ("<unk>", "<s>", "</s>")
_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def _pair_encoding(letters, merges, **options):
  pairs = [tuple(merge.split(" ")) for merge in merges]
  tokens = [*_SPECIAL, *letters, *("".join(pair) for pair in pairs)]
  return models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=pairs,
      **options,
  )


def _byte_level(backend):
  """As in Qwen2; one added token has letters that stand for no byte."""
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_tokens([tokenizers.AddedToken("<tool 算>", normalized=False)])


def _prepended(backend):
  """As in Llama 2."""
  backend.normalizer = normalizers.Sequence([
      normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
  ])  # fmt: skip
  backend.decoder = decoders.Sequence([
      decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
  ])  # fmt: skip


def _replaced(backend):
  """As in Gemma."""
  backend.normalizer = normalizers.Replace(" ", "▁")
  backend.decoder = decoders.Sequence([
      decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
  ])  # fmt: skip


def _metaspace(backend):
  backend.pre_tokenizer = pre_tokenizers.Metaspace()
  backend.decoder = decoders.Sequence([
      decoders.ByteFallback(), decoders.Metaspace()
  ])  # fmt: skip


def _word_pieces(backend):
  backend.pre_tokenizer = pre_tokenizers.Whitespace()
  backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)


def _words(backend):
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()


_PARTS = {
    "byte_level": _byte_level,
    "prepended": _prepended,
    "replaced": _replaced,
    "metaspace": _metaspace,
    "word_pieces": _word_pieces,
    "words": _words,
}
KINDS = tuple(_PARTS)
# Have a token for every byte of a character that is no token.
BYTE_FALLBACK = ("prepended", "replaced", "metaspace")
LOSSLESS = ("byte_level", *BYTE_FALLBACK)


@functools.cache
def of(kind):
  """The tokenizer of a kind."""
  if kind == "byte_level":
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [merge.replace("\n", "Ċ") for merge in _MERGES]
    model = _pair_encoding(letters, [*merges, "ð Ł", "ðŁ Ļ", "ç ®"])
  elif kind in BYTE_FALLBACK:
    letters = [*_BYTE_TOKENS, *_LETTERS, "▁", "é", "七", "\ufffd"]
    model = _pair_encoding(
        letters, [*_MERGES, *_MARKED],
        unk_token="<unk>", byte_fallback=True, fuse_unk=True,
    )  # fmt: skip
  else:
    words = ["so", "six", "</think>", "##.", "算", "🙂", "e\u0301", "."]
    model = models.WordLevel(
        {word: i for i, word in enumerate([*_SPECIAL, *words])},
        unk_token="<unk>",
    )
  backend = tokenizers.Tokenizer(model)
  _PARTS[kind](backend)
  return PreTrainedTokenizerFast(
      tokenizer_object=backend,
      unk_token=None if kind == "byte_level" else "<unk>",
      bos_token="<s>",
      eos_token="</s>",
  )

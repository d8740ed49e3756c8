"""Which token adds which text, and how many end before `</think>`."""

import functools
import itertools
import os

import numpy as np
import pytest
import tokenizer_kinds
import tokenizers
from tokenizer_kinds import BYTE_FALLBACK, KINDS, LOSSLESS
from transformers import PreTrainedTokenizerFast

from iapo_jax.config.formats import FormatConfig
from iapo_jax.hf import decoding, tokenizer
from iapo_jax.rewards import text as text_lib
from iapo_jax.tools import score_lines
from iapo_jax.tools.scoring import Scores

TAGS = FormatConfig()

TAG = "</think>"
PARTS = (
    "six", " so", ".", " ", "   ", "\n", "</", "think>", "<", TAG, "<answer>",
    "算", "七", "🙂", "👩‍👩‍👧", "é", "e\u0301", "\ufffd", "<s>", "12",
    "<tool 算>",
)  # fmt: skip
# Those at which a character of UTF-8 may break off.
BYTES = np.frombuffer(
    b"a\x80\x8f\x90\x9f\xa0\xbf\xc1\xc2\xdf\xe0\xe1\xed\xef\xf0\xf1\xf4\xf5",
    np.uint8,
)
BROKEN = "\N{REPLACEMENT CHARACTER}"


def decoder_of(kind):
  return functools.partial(tokenizer.decode, tokenizer_kinds.of(kind))


def of_bytes(kind, raw):
  """The tokens of single bytes."""
  names = [f"<0x{byte:02X}>" for byte in raw]
  if kind == "byte_level":
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in shown]
    names = [
        chr(byte if byte in shown else 256 + rest.index(byte)) for byte in raw
    ]
  ids = tokenizer_kinds.of(kind).convert_tokens_to_ids(names)
  assert None not in ids
  return ids


def random_text(rng, most=8):
  return "".join(rng.choice(PARTS, rng.integers(1, most)))


def random_ids(rng, kind):
  """Texts, bytes that may break off, any ids, and ids beyond all tokens."""
  tok = tokenizer_kinds.of(kind)
  ids = []
  for _ in range(rng.integers(1, 7)):
    text = random_text(rng, 3)
    choice = rng.integers(5)
    if choice == 0 and kind in LOSSLESS:
      raw = text.encode()
      ids += of_bytes(kind, raw[: rng.integers(1, len(raw) + 1)])
    elif choice == 1 and kind in LOSSLESS:
      ids += of_bytes(kind, rng.choice(BYTES, 4))
    elif choice == 2:
      beyond = len(tok) + 3
      ids += rng.integers(0, beyond, rng.integers(1, 4)).tolist()
    else:
      ids += tokenizer.encode(tok, text)
  return ids


def reasoning_by_prefixes(ids, decode):
  """The definition, in quadratic time.

  A token ends where its text, or that of tokens before it, agrees longest with
  the whole.
  """
  whole = decode(ids)
  boundary = whole.find(TAG)
  end, count = 0, 0
  for i in range(1, len(ids) + 1):
    same = os.path.commonprefix([decode(ids[:i]), whole])  # noqa: RUF071
    end = max(end, len(same))
    count += boundary < 0 or end <= boundary
  return count


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_and_texts_of_any_tokens(kind):
  tok, decode = tokenizer_kinds.of(kind), decoder_of(kind)
  tag = tokenizer.encode(tok, f" {TAG} ")
  rng = np.random.default_rng(0)
  for i in range(120):
    ids = random_ids(rng, kind)
    if i % 2:
      ids += tag + random_ids(rng, kind)
    expected = reasoning_by_prefixes(ids, decode)
    assert text_lib.reasoning_length(ids, decode, TAGS) == expected, ids
    # Also for a decoder that takes every text for the start of a sequence.
    began = functools.partial(tokenizer.decode_prompt, tok)
    found = text_lib.reasoning_length(ids, began, TAGS)
    assert found == reasoning_by_prefixes(ids, began), ids
    texts = decoding.token_texts(ids, tok)
    assert "".join(texts) == decode(ids)
    assert len(texts) == len(ids)
    ends = np.cumsum([len(text) for text in texts])
    boundary = decode(ids).find(TAG)
    if boundary >= 0:
      assert np.sum(ends <= boundary) == expected, ids


@pytest.mark.parametrize("kind", LOSSLESS)
def test_token_texts_agree_with_the_offsets_of_encoding(kind):
  """Tokens of one character have its offsets; the last one adds it."""
  tok = tokenizer_kinds.of(kind)
  rng = np.random.default_rng(1)
  for _ in range(150):
    text = random_text(rng)
    encoded = tokenizer.encoding(tok, text)
    starts = [*(start for start, _ in encoded.offsets), len(text)]
    expected = [text[a:b] for a, b in itertools.pairwise(starts)]
    assert decoding.token_texts(encoded.ids, tok) == expected
    assert decoder_of(kind)(encoded.ids) == text


@pytest.mark.parametrize("kind", LOSSLESS)
def test_the_first_offset_is_that_of_the_first_character(kind):
  """Also after a special token, where a new part of the text begins."""
  encoded = tokenizer.encoding(tokenizer_kinds.of(kind), "e <s>x")
  assert encoded.offsets == [(0, 1), (1, 2), (2, 5), (5, 6)]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_characters_of_several_tokens(kind):
  tok = tokenizer_kinds.of(kind)
  character, x = of_bytes(kind, "🙂".encode()), tokenizer.encode(tok, "x")
  texts = functools.partial(decoding.token_texts, tok=tok)
  assert texts(character) == ["", "", "", "🙂"]
  broken = texts([*character[:2], *x]), texts([*character, character[0]])
  if kind == "byte_level":
    assert broken == (["", BROKEN, "x"], ["", "", "", "🙂", BROKEN])
  else:  # each byte is broken, and breaks all bytes beside it
    assert broken == ([BROKEN, BROKEN, "x"], [BROKEN] * 5)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_the_tag_in_bytes_before_unfinished_characters(kind):
  """Each number of tokens makes the search look at other places."""
  decode = decoder_of(kind)
  for count in range(60):
    before = of_bytes(kind, f"{'x' * (count % 4)}算".encode())
    after = "🙂" * (count // 4)
    ids = [*before, *of_bytes(kind, f"{TAG}{after}".encode())]
    assert text_lib.reasoning_length(ids, decode, TAGS) == len(before)
    assert reasoning_by_prefixes(ids, decode) == len(before)


@pytest.mark.parametrize("kind", BYTE_FALLBACK)
def test_tokens_without_text_inside_a_character(kind):
  """More of them than a character has bytes."""
  backend = tokenizer_kinds.of(kind).backend_tokenizer
  tok = PreTrainedTokenizerFast(tokenizer_object=backend)  # no unknown token
  decode = functools.partial(tokenizer.decode, tok)
  beyond = [len(tok) + 5] * 9
  text = f"七{TAG}{'🙂' * 9}"
  ids = [
      token
      for byte in of_bytes(kind, text.encode())
      for token in [byte, *beyond]
  ]
  assert decode(ids) == text
  # Three tokens of 七, and the ones without text after each.
  found = text_lib.reasoning_length(ids, decode, TAGS)
  assert found == 3 + 3 * len(beyond)
  assert found == reasoning_by_prefixes(ids, decode)
  assert "".join(decoding.token_texts(ids, tok)) == text


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("raw", ["算", b"\xf0", b"six \xf0", b"\x80\xf0\x9f"])
def test_long_completions_finish(kind, raw):
  """Quadratic rules would take minutes."""
  raw = raw.encode() if isinstance(raw, str) else raw
  tok, decode = tokenizer_kinds.of(kind), decoder_of(kind)
  half = of_bytes(kind, raw * (6000 // len(raw)))
  space = tokenizer.encode(tok, " ")
  ids = half + space + tokenizer.encode(tok, TAG) + half
  assert text_lib.reasoning_length(ids, decode, TAGS) == len(half + space)
  texts = decoding.token_texts(ids, tok)
  assert "".join(texts) == decode(ids)
  assert "".join(texts[: len(half + space)]) + TAG in decode(ids)


def test_a_gap_in_the_vocabulary():
  """Ids above the number of tokens may be tokens; the others are unknown."""
  tok = tokenizer.word_tokenizer(
      ["<unk>", "a"], pad="<unk>", eos="<unk>", unknown="<unk>"
  )
  parts = tok.backend_tokenizer.to_str().replace('"a":1', '"a":7')
  tok = PreTrainedTokenizerFast(
      tokenizer_object=tokenizers.Tokenizer.from_str(parts), unk_token="<unk>"
  )
  assert len(tok) == 2
  assert tokenizer.decode(tok, [7, 9, 7]) == "a <unk> a"
  assert decoding.token_texts([7, 9, 7], tok) == ["a", " <unk>", " a"]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_prompt_is_decoded_as_it_was_encoded(kind):
  tok = tokenizer_kinds.of(kind)
  ids = tokenizer.encode_prompt(tok, "so 算 \n")
  assert tokenizer.decode_prompt(tok, ids) == "so 算 \n"


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("completion", [" 算 six.</think> 🙂", "七</think>"])
def test_scored_lines_give_the_completion_back(kind, completion):
  tok = tokenizer_kinds.of(kind)
  rules = score_lines.Rules(
      vocab_size=len(tok),
      max_positions=0,
      tokenizer=tok,
      eos_ids=(),
      elicitation=(5,),
      form=TAGS,
  )
  line = {"prompt": "so", "completion": completion}
  item = score_lines.placed(line, rules, "here")
  zeros, answers = np.zeros(len(item.completion)), np.zeros(item.reasoning + 1)
  scores = Scores(zeros, zeros, answers, zeros)
  scored = score_lines.scored(line, item, scores, tok)
  assert "".join(scored["tokens"]) == completion
  expected = reasoning_by_prefixes(item.completion, decoder_of(kind))
  assert scored["reasoning_tokens"] == expected > 0

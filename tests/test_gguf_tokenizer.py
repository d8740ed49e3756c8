"""The tokenizer of a GGUF file encodes as the one that it was made from."""

import json
import pathlib

import ggufs
import pytest
import tiny
import tokenizer_kinds
from tokenizers import AddedToken

from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import folder, gguf_tokenizer, tokenizer
from iapo_jax.hf import gguf as gguf_lib

GOLDEN = pathlib.Path(__file__).parent / "golden"
HARD = (
    "", " ", "   ", "so six", " so  six", "so   six\n\n  six", "é七算🙂",
    "</think>", "so.</think>\n<answer>1,234</answer>", "\ufffd\x00\x7f",
    "e\u0301 é", "12345 6 789", "a  12 b\t3", "I'LL we'll DON'T",
    "<s>so</s>six", "so</s>  six", "<unk>", "▁so ▁▁", "\r\n x\r\n",
    "<tool 算>so", "--er---", "  </think>  ", "x" * 40, "²³½ ٣٤ ⅷ", "Ünïcödé ǅ",
    "ﬁ \u2028 \u00a0x\u3000y",
)  # fmt: skip
# Kinds that a GGUF file can tell, the model that has such a tokenizer, and
# whether it puts a blank before a text.
KINDS = {
    "byte_level": ("llama", False),
    "prepended": ("llama", True),
    "replaced": ("gemma2", False),
}


def assert_alike(ours, theirs, text):
  """Tokens, and the text that they stand for, wherever it stands."""
  ids = theirs.encode(text, add_special_tokens=False)
  assert ours.encode(text, add_special_tokens=False) == ids, text
  assert tokenizer.encode(ours, text) == tokenizer.encode(theirs, text), text
  assert tokenizer.decode(ours, ids) == tokenizer.decode(theirs, ids), text
  shown = tokenizer.decode_prompt(theirs, ids)
  assert tokenizer.decode_prompt(ours, ids) == shown, text


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back(kind, tmp_path):
  model, prefix = KINDS[kind]
  theirs = tokenizer_kinds.of(kind)
  place = ggufs.write(
      tmp_path / "m.gguf", GOLDEN / model, tok=theirs,
      spm=kind != "byte_level",
      more={
          "tokenizer.ggml.add_space_prefix": prefix,
          "tokenizer.ggml.add_bos_token": False,
      },
  )  # fmt: skip
  ours = tokenizer.load(place)
  for text in HARD:
    assert_alike(ours, theirs, text)
  assert ours.name_or_path == str(place)
  for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
    assert getattr(ours, name) == getattr(theirs, name), name
  assert tokenizer.encode_prompt(ours, "so six") == ours.encode("so six")
  # Without the rows that have no token.
  assert ours.get_vocab() == theirs.get_vocab()


def test_what_stands_around_a_text(tmp_path):
  """By default SentencePiece's add a BOS, byte-level ones do not."""

  def ids(kind, text="so", **flags):
    theirs = tokenizer_kinds.of(kind)
    more = {f"tokenizer.ggml.{k}": v for k, v in flags.items()}
    place = ggufs.write(
        tmp_path / "m.gguf", GOLDEN / KINDS[kind][0], tok=theirs,
        spm=kind != "byte_level", more=more,
    )  # fmt: skip
    tok = tokenizer.load(place)
    bare = tok.encode(text, add_special_tokens=False)
    return tok, tok.encode(text), bare

  tok, found, bare = ids("prepended")
  assert found == [tok.bos_token_id, *bare]
  tok, found, bare = ids("byte_level")
  assert found == bare
  tok, found, bare = ids("byte_level", add_bos_token=True)
  assert found == [tok.bos_token_id, *bare]
  tok, found, bare = ids("prepended", add_bos_token=False, add_eos_token=True)
  assert found == [*bare, tok.eos_token_id]
  with pytest.raises(ConfigError, match="bos_token_id = None: is missing"):
    ids("prepended", bos_token_id=None)


def test_the_chat_template_and_every_end(tmp_path):
  tok = tokenizer_kinds.of("byte_level")
  template = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
  place = ggufs.write(
      tmp_path / "m.gguf", GOLDEN / "llama", tok=tok,
      more={
          "tokenizer.chat_template": template,
          "tokenizer.ggml.eot_token_id": 4, "tokenizer.ggml.eom_token_id": 2,
      },
  )  # fmt: skip
  ours = tokenizer.load(place)
  messages = [{"role": "user", "content": "six"}]
  shown = tokenizer.render_chat(ours, messages, date="2026-01-01")
  assert shown == "six</s>"
  assert folder.read_tokens(place).eos_ids == (tok.eos_token_id, 4)
  assert folder.named_ends(place)["config.json"] == (tok.eos_token_id,)


def test_special_tokens_of_phi3_take_the_blanks_after_them(tmp_path):
  tok = tokenizer_kinds.of("prepended")
  place = ggufs.write(
      tmp_path / "m.gguf", GOLDEN / "phi3", tok=tok, spm=True
  )
  added = json.loads(tokenizer.load(place).backend_tokenizer.to_str())
  assert {x["content"]: x["rstrip"] for x in added["added_tokens"]} == {
      "<unk>": False, "<s>": False, "</s>": True,
  }  # fmt: skip


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "a  12 I'LL", ["a", " ", " 12", " I", "'", "LL"]),
        ("smollm", "a  12 I'LL", ["a", "  ", "1", "2", " I", "'", "LL"]),
        ("qwen2", "a  12 I'LL", ["a", " ", " ", "1", "2", " I", "'LL"]),
        ("llama-bpe", "a  12345 I'LL",
         ["a", " ", " ", "123", "45", " I", "'LL"]),
        ("gpt-4o", "aBc 1234 I'LL/\n",
         ["a", "Bc", " ", "123", "4", " I'LL", "/\n"]),
        ("tekken", "aBc 12 I'LL/\n",
         ["a", "Bc", " ", "1", "2", " I", "'LL", "/\n"]),
    ],
)  # fmt: skip
def test_where_a_pre_tokenizer_splits(pre, text, pieces, tmp_path):
  """By hand, from the regular expressions of the published tokenizers."""
  tok = tokenizer_kinds.of("byte_level")
  place = ggufs.write(
      tmp_path / "m.gguf", GOLDEN / "llama", tok=tok, pre=pre
  )
  split = tokenizer.load(place).backend_tokenizer.pre_tokenizer
  found = split.pre_tokenize_str(text)
  assert [text[start:end] for _, (start, end) in found] == pieces


def test_a_piece_that_is_a_token_needs_no_merges(tmp_path):
  """With Llama 3's; the same token of others comes from merges alone."""
  tok = tokenizer_kinds.of("byte_level")
  merges = json.loads(tok.backend_tokenizer.to_str())["model"]["merges"]
  merges = [" ".join(m) for m in merges if m != ["s", "ix"]]
  found = {}
  for pre in ("llama-bpe", "dbrx"):
    place = ggufs.write(
        tmp_path / "m.gguf", GOLDEN / "llama", tok=tok, pre=pre,
        more={"tokenizer.ggml.merges": merges},
    )  # fmt: skip
    ours = tokenizer.load(place)
    found[pre] = ours.convert_ids_to_tokens(tokenizer.encode(ours, "six"))
  assert found == {"llama-bpe": ["six"], "dbrx": ["s", "ix"]}


def test_implied_merges_have_the_order_of_ranks():
  vocabulary = {"a": 0, "b": 1, "ab": 2, "ba": 3, "aba": 4}
  ranks = [0.0, 0.0, -2.0, -1.0, -3.0]
  assert gguf_tokenizer.implied_merges(vocabulary, ranks) == [
      ("b", "a"), ("a", "b"), ("ab", "a"), ("a", "ba"),
  ]  # fmt: skip


# Metadata of a byte-level or SentencePiece tokenizer that is refused.
REFUSED = {
    "another model": ({"model": "bert"}, "model = 'bert': must be one of gpt2"),
    "no model": ({"model": None}, "model = None: must be one of gpt2, llama;"),
    "another pre-tokenizer": (
        {"pre": "viking"}, "pre = 'viking': must be one of gpt-2, smollm, lla",
    ),
    "no pre-tokenizer": ({"pre": None}, "pre = None: must be one of gpt-2"),
    "no tokens": ({"tokens": None}, "tokens = None: must be a list of texts"),
    "numbers": ({"tokens": [1, 2]}, "tokens = [1, 2]: must be a list of te"),
    "no types": ({"token_type": None}, "token_type = None: must have "),
    "few types": ({"token_type": [1, 1]}, "token_type = [1, 1]: must have "),
    "no merges": ({"merges": None}, "merges = None: must be a list of texts"),
    "a merge": ({"merges": ["s o x"]}, "merges = 's o x': must join two"),
    "merges of none": ({"merges": ["q z"]}, "merges = 'q z': must join two"),
    "a flag": ({"add_bos_token": 3}, "add_bos_token = 3: must be true or fal"),
    "an id": ({"bos_token_id": 10**6}, "bos_token_id = 1000000: must be an"),
    "a normalizer": (
        {"precompiled_charsmap": [1, 2]}, "precompiled_charsmap = [1, 2]: is n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_is_refused_by_name(case, tmp_path):
  more, told = REFUSED[case]
  place = ggufs.write(
      tmp_path / "m.gguf", GOLDEN / "llama",
      tok=tokenizer_kinds.of("byte_level"),
      more={f"tokenizer.ggml.{key}": value for key, value in more.items()},
  )  # fmt: skip
  with pytest.raises(ConfigError) as error:
    tokenizer.load(place)
  assert str(error.value).startswith(f"{str(place)!r}: tokenizer.ggml.{told}")


def test_tokens_that_are_refused(tmp_path):
  def refusal(tokens, **more):
    tok = tokenizer_kinds.of("prepended")
    listed = ggufs.tokens(tok, 61, "", True)["tokenizer.ggml.tokens"]
    more = {f"tokenizer.ggml.{key}": value for key, value in more.items()}
    more["tokenizer.ggml.tokens"] = [*tokens, *listed[len(tokens) :]]
    place = ggufs.write(
        tmp_path / "m.gguf", GOLDEN / "llama", tok=tok, spm=True, more=more
    )
    with pytest.raises(ConfigError) as error:
      tokenizer.load(place)
    return str(error.value)

  assert "tokens = '<s>': is in the list twice" in refusal(["<s>"])
  assert "tokens = 0: has more than 1000 letters" in refusal(["x" * 1001])
  assert "scores = [1.0]: must have" in refusal([], scores=[1.0])


def test_a_run_with_another_tokenizer_needs_no_known_one(tmp_path):
  """Only its own is written then."""
  place = ggufs.write(tmp_path / "m.gguf", GOLDEN / "llama", pre="viking")
  with pytest.raises(ConfigError, match=r"with --config\.data\.tokenizer=FOL"):
    folder.copy_all_but_weights(place, tmp_path / "out")
  folder.copy_all_but_weights(
      place, tmp_path / "new", skip=gguf_lib.OF_TOKENIZER
  )
  assert {path.name for path in (tmp_path / "new").iterdir()} == {
      "config.json", "generation_config.json",
  }  # fmt: skip


@pytest.mark.full
@pytest.mark.skipif(
    not (tiny.SHARED / "qwen2_tokenizer").is_dir(),
    reason="Qwen2's tokenizer is not beside the repository",
)
def test_qwen2s_tokenizer_comes_back(tmp_path):
  theirs = tokenizer.load(tiny.SHARED / "qwen2_tokenizer")
  theirs.add_tokens([AddedToken("<think>", normalized=False)])
  place = ggufs.write(
      tmp_path / "m.gguf", GOLDEN / "qwen2", tok=theirs, pre="qwen2"
  )
  ours = tokenizer.load(place)
  for text in (*HARD, "<|im_start|>user\nso<|im_end|>", "a<think>b"):
    assert_alike(ours, theirs, text)
  assert ours.chat_template == theirs.chat_template
  assert len(ours) == len(theirs)

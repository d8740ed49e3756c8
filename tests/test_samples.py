import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from iapo_jax.core.types import Prompts, Samples
from iapo_jax.hf import tokenizer as tokenizer_lib
from iapo_jax.run import samples

TEXTS = [
    "hello world, 12 + 3 = 15",
    "naïve café — 日本語 🤖🎉 </think>\n<answer> 7 </answer>",
    "a" * 60 + "  two  spaces\n\n\ttab",
    "🤖" * 40,
    "",
]


@pytest.fixture(scope="module")
def byte_level():
  """A byte-level BPE tokenizer: characters are cut into several tokens."""
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
      vocab_size=300,
      special_tokens=["<pad>", "<eos>"],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )
  backend.train_from_iterator(TEXTS[:1] * 3, trainer)
  return PreTrainedTokenizerFast(
      tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>"
  )


@pytest.mark.parametrize("text", TEXTS)
def test_token_texts_join_to_the_text(byte_level, text):
  ids = byte_level.encode(text)
  pieces = samples.token_texts(ids, byte_level)
  assert len(pieces) == len(ids)
  assert "".join(pieces) == text


def test_a_character_of_several_tokens_belongs_to_the_last(byte_level):
  ids = byte_level.encode("é")
  assert len(ids) == 2
  assert samples.token_texts(ids, byte_level) == ["", "é"]


def test_bytes_that_are_no_character(byte_level):
  """A completion may end, or go on, in the middle of one."""
  first = byte_level.encode("é")[0]
  pieces = samples.token_texts([first] * 200, byte_level)
  assert len(pieces) == 200
  assert set("".join(pieces)) == {"\N{REPLACEMENT CHARACTER}"}


def test_words_keep_the_space_before_them():
  words = tokenizer_lib.word_tokenizer(
      ["<pad>", "<eos>", "<unk>", "a", "b"],
      pad="<pad>", eos="<eos>", unknown="<unk>",
  )  # fmt: skip
  pieces = samples.token_texts([3, 4, 3] * 7, words)
  assert pieces == ["a", *(f" {x}" for x in ("ba" + "aba" * 6))]


def test_records_of_a_step():
  words = tokenizer_lib.word_tokenizer(
      ["<pad>", "<eos>", "<unk>", "a", "b", "c"],
      pad="<pad>", eos="<eos>", unknown="<unk>",
  )  # fmt: skip
  prompts = Prompts(
      tokens=jnp.array([[3, 4, 0], [5, 0, 0]]),
      lengths=jnp.array([2, 1]),
      gold=jnp.array([[3], [4]]),
      gold_lengths=jnp.array([1, 1]),
      rows=jnp.array([0, 1]),
  )
  table = jnp.arange(16.0).reshape(4, 4)
  step = Samples(
      tokens=jnp.array([
          [3, 4, 1, 0],
          [5, 1, 0, 0],
          [3, 3, 3, 3],
          [4, 1, 0, 0],
      ]),
      lengths=jnp.array([3, 2, 4, 2]),
      ended=jnp.array([True, True, False, True]),
      reasoning_lengths=jnp.array([2, 1, 4, 0]),
      correct=jnp.array([True, False, True, False]),
      well_formed=jnp.array([True, True, False, False]),
      rewards=jnp.array([1.5, -0.5, 0.5, -1.5]),
      entropies=table,
      answer_entropies=jnp.arange(20.0).reshape(4, 5),
      information=-table,
      group_advantages=jnp.array([0.25, -0.5, 1 / 3, 0.0]),
      advantages=table / 3,
      learned=table > 0,
  )

  def records(count, probed=True):
    rows = samples.fetch(prompts, step, count)
    return list(
        samples.records(7, *rows, words, group_size=2, probed=probed)
    )

  blind = records(1, probed=False)[0]
  unknown = {"information": [], "answer_entropies": []}
  assert blind == records(1)[0] | unknown

  first, _, third = records(3)
  assert first == {
      "step": 7,
      "prompt": "a b",
      "gold": "a",
      "tokens": ["a", " b", " <eos>"],
      "reasoning_tokens": 2,
      "answer_tokens": 0,
      "ended": True,
      "correct": True,
      "well_formed": True,
      "reward": 1.5,
      "entropies": [0.0, 1.0, 2.0],
      "answer_entropies": [0.0, 1.0, 2.0],
      "information": [0.0, -1.0],
      "group_advantage": 0.25,
      "advantages": [0.0, 0.333333, 0.666667],
  }
  assert third["group_advantage"] == 0.333333
  # Row 4: `b` is said after no reasoning at all.
  assert [x["answer_tokens"] for x in records(9)] == [0, 0, 0, 1]
  assert [x["ended"] for x in records(9)] == [True, True, False, True]
  # The third completion belongs to the second prompt of groups of two.
  assert (third["prompt"], third["gold"]) == ("c", "b")
  assert len(third["information"]) == len(third["tokens"]) == 4
  assert len(third["answer_entropies"]) == 5
  # More than there are is all there are.
  assert len(records(9)) == 4
  assert np.isfinite(first["entropies"]).all()

"""Grading: the rules on text, and both graders against them."""

import dataclasses
import functools
import subprocess
import sys
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from absl.testing import parameterized
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from iapo_jax.config import data as data_config
from iapo_jax.config import parsing as config
from iapo_jax.config.formats import FormatConfig
from iapo_jax.config.schema import MeshConfig
from iapo_jax.core import sharding
from iapo_jax.core.errors import ConfigError
from iapo_jax.core.types import Grades, Prompts, Rollout
from iapo_jax.data import arithmetic
from iapo_jax.hf import tokenizer
from iapo_jax.rewards import Graded, host, text, token_match
from iapo_jax.rewards.completions import Asked
from iapo_jax.rewards.reward import combine
from iapo_jax.run import assembly

FORM = FormatConfig()

WELL_FORMED = (
    "5 + 1 = 6 </think> <answer> 6 </answer>",
    "5 + 1 = 6</think><answer>6</answer>",
    "5 + 1 = 6\n</think>\n\n<answer>\n6\n</answer>\n",
    # The authors' check fails on a newline inside the reasoning.
    "first 5\nthen 1\n\nso 6</think>\n<answer>6</answer>",
    "x</think><answer>two words, <b>bold</b></answer>",
    "x</think><answer>\\boxed{\\frac{1}{2}}</answer>",
    # Not tags: other case, or with a blank.
    "a <Think> < answer> b</think><answer>6</answer>",
    "ends in < </think><answer>6</answer>",
)
MALFORMED = (
    "",
    "just words",
    # One tag missing.
    "x <answer>6</answer>",
    "x </think> 6</answer>",
    "x </think><answer>6",
    # One tag too many.
    "<think> x </think><answer>6</answer>",
    "x </think></think><answer>6</answer>",
    "x </think><answer><answer>6</answer>",
    "x </think><answer>6</answer></answer>",
    "x </think><answer>6</answer><answer>7</answer>",
    "x <think> y </think> z </think><answer>6</answer>",
    # Nested or in another order.
    "x <answer>6</answer></think>",
    "x </think></answer>6<answer>",
    "x <answer></think>6</answer>",
    "x </think><answer>6<think></answer>",
    # Text where only white space may stand.
    "x </think> so <answer>6</answer>",
    "x </think><answer>6</answer> done",
    "x </think><answer>6</answer>.",
    # A blank part.
    "</think><answer>6</answer>",
    " \n\t</think><answer>6</answer>",
    "x </think><answer></answer>",
    "x </think><answer> \n </answer>",
)
ANSWERS = (
    ("x </think> <answer> 6 </answer>", "6"),
    ("<answer>\n two words \n</answer>", "two words"),
    ("<answer></answer>", ""),
    ("<answer>  \n</answer>", ""),
    # Malformed completions may still answer.
    ("<answer>6</answer></think> and more", "6"),
    ("<answer>a <b>6</b></answer>", "a <b>6</b>"),
    # The last complete one counts.
    ("<answer>6</answer> or <answer>7</answer>", "7"),
    ("<answer>6</answer> or <answer>7", "6"),
    ("<answer>6</answer> or 7</answer>", "6"),
    ("<answer>6</answer><answer></answer>", ""),
    # From the nearest opening tag.
    ("<answer>6<answer>7</answer>", "7"),
    ("<answer>6<answer>7</answer></answer>", "7"),
    ("</answer>5<answer>6</answer>", "6"),
    # Tags of the reasoning do not end an answer.
    ("<answer>6</think>7</answer>", "6</think>7"),
)
NO_ANSWER = (
    "",
    "6",
    "x </think> 6",
    "<answer>6",
    "6</answer>",
    "</answer>6<answer>",
    "<Answer>6</Answer>",
    "< answer>6< /answer>",
)


class TextTest(parameterized.TestCase):

  @parameterized.parameters(*((x,) for x in WELL_FORMED))
  def test_well_formed(self, completion):
    self.assertIs(text.is_well_formed(completion, FORM), True)

  @parameterized.parameters(*((x,) for x in MALFORMED))
  def test_malformed(self, completion):
    self.assertIs(text.is_well_formed(completion, FORM), False)

  @parameterized.parameters(*ANSWERS)
  def test_answer(self, completion, answer):
    self.assertEqual(text.extract_answer(completion, FORM), answer)

  @parameterized.parameters(*((x,) for x in NO_ANSWER))
  def test_no_answer(self, completion):
    self.assertIsNone(text.extract_answer(completion, FORM))

  @parameterized.parameters(
      "<answer>", "</answer>", "<answer></answer>", "<answer", "<", "</think>"
  )
  def test_long_repetitions_finish(self, piece):
    # Quadratic rules would take minutes on each.
    completion = piece * (200_000 // len(piece))
    self.assertFalse(text.is_well_formed(completion, FORM))
    complete = piece == "<answer></answer>"
    found = text.extract_answer(completion, FORM)
    self.assertEqual(found, "" if complete else None)


@functools.cache
def word_level():
  """The arithmetic task's tokenizer."""
  return tokenizer.word_tokenizer(
      arithmetic.vocabulary(data_config.ArithmeticConfig()),
      pad=arithmetic.PAD,
      eos=arithmetic.EOS,
      unknown=arithmetic.UNKNOWN,
  )


@functools.cache
def byte_level():
  """A byte-pair tokenizer that merges `.</`: the tag is in no token alone."""
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
      vocab_size=300,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
  )
  corpus = ["so it is six.</think>\n<answer>6</answer>"] * 50
  backend.train_from_iterator(corpus, trainer)
  return PreTrainedTokenizerFast(tokenizer_object=backend)


def decoder_of(tok):
  return functools.partial(
      tok.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False
  )


def encode(tok, completion):
  return tok.encode(completion, add_special_tokens=False)


class ReasoningLengthTest(parameterized.TestCase):

  @parameterized.parameters(
      ("b 5 + 1 = 6 </think> <answer> 6 </answer>", 6),
      ("</think> <answer> 6 </answer>", 0),
      # Without the tag: every token.
      ("b 5 + 1 = 6", 6),
      ("b <answer> 6 </answer>", 4),
      ("", 0),
      # The first tag counts.
      ("b </think> 5 </think>", 1),
      # Other tags and unknown words are reasoning like any.
      ("<think> unheard <pad> </think>", 3),
  )
  def test_words(self, completion, expected):
    tok = word_level()
    got = text.reasoning_length(encode(tok, completion), decoder_of(tok), FORM)
    self.assertEqual(got, expected)

  def test_straddling_token_is_not_reasoning(self):
    tok = byte_level()
    ids = encode(tok, "six.</think>\n<answer>6</answer>")
    tokens = tok.convert_ids_to_tokens(ids)
    # The premise: one token holds the reasoning's last and the tag's first
    # characters.
    self.assertIn(".</", tokens)
    got = text.reasoning_length(ids, decoder_of(tok), FORM)
    self.assertEqual(got, tokens.index(".</"))
    self.assertEqual(tok.decode(ids[:got]), "six")

  def test_emoji_before_the_boundary(self):
    tok = byte_level()
    # Four bytes that were never merged: four tokens, one character.
    self.assertLen(encode(tok, "🙂"), 4)
    for before in ("🙂🙂 six", "🙂🙂", "six 🙂"):
      ids = encode(tok, f"{before}</think>\n<answer>🙂</answer>")
      got = text.reasoning_length(ids, decoder_of(tok), FORM)
      # No full stop, so the tag begins a token: all tokens of what is before.
      self.assertEqual(got, len(encode(tok, before)))
      self.assertEqual(tok.decode(ids[:got]), before)

  def test_emoji_and_straddling(self):
    tok = byte_level()
    ids = encode(tok, "🙂 six 🙂.</think>")
    got = text.reasoning_length(ids, decoder_of(tok), FORM)
    self.assertEqual(tok.decode(ids[:got]), "🙂 six 🙂")
    self.assertEqual(tok.convert_ids_to_tokens(ids)[got], ".</")

  def test_broken_bytes(self):
    tok = byte_level()
    # The first three of an emoji's four bytes, as a sampler may leave them.
    broken = encode(tok, "🙂")[:3]
    ids = [*encode(tok, "six"), *broken, *encode(tok, "</think>")]
    got = text.reasoning_length(ids, decoder_of(tok), FORM)
    self.assertEqual(got, len(encode(tok, "six")) + 3)

  def test_against_offsets(self):
    tok = byte_level()
    rng = np.random.default_rng(0)
    pieces = ("six", ".", "</", "think", ">", " ", "🙂", "é", "<answer>", "\n")
    found = 0
    for _ in range(300):
      before = "".join(rng.choice(pieces, rng.integers(1, 12)))
      completion = before + "</think>" + "".join(rng.choice(pieces, 3))
      encoded = tok(completion, return_offsets_mapping=True)
      boundary = completion.find("</think>")
      ends = [end for _, end in encoded["offset_mapping"]]
      expected = sum(end <= boundary for end in ends)
      got = text.reasoning_length(encoded["input_ids"], decoder_of(tok), FORM)
      self.assertEqual(got, expected, completion)
      found += boundary not in [0, *ends]
    # Rows in which a token straddles the boundary.
    self.assertGreater(found, 20)


class CombineTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    combined = self.variant(
        functools.partial(
            combine,
            correct=1.0,
            wrong=-1.0,
            well_formed=0.5,
            malformed=-0.25,
        )
    )
    grades = Grades(
        correct=jnp.array([True, True, False, False]),
        well_formed=jnp.array([True, False, True, False]),
        reasoning_lengths=jnp.zeros(4, jnp.int32),
        timed_out=jnp.zeros(4, bool),
    )
    correctness, form = combined(grades)
    np.testing.assert_array_equal(correctness, [1.0, 1.0, -1.0, -1.0])
    np.testing.assert_array_equal(form, [0.5, -0.25, 0.5, -0.25])
    self.assertEqual(correctness.dtype, jnp.float32)
    self.assertEqual(form.dtype, jnp.float32)
    # Partial scores lie between.
    scores = jnp.array([1.0, 0.75, 0.5, 0.0])
    partly, _ = combined(grades.replace(scores=scores))
    np.testing.assert_array_equal(partly, [1.0, 0.5, 0.0, -1.0])


def word_ids(words):
  return word_level().convert_tokens_to_ids(words.split())


def random_completion(rng, gold):
  """Ids: from near misses of a perfect completion to pure noise."""
  tags = word_ids("<think> </think> <answer> </answer>")
  likely = [*tags, *tags, *gold, *word_ids("5 12 <pad> <unk> so = b")]
  if rng.random() < 0.2:
    return rng.choice(likely, rng.integers(0, 14)).tolist()
  reasoning = rng.choice(word_ids("5 + 1 so total . <pad>"), rng.integers(0, 6))
  ids = [*reasoning.tolist(), tags[1], tags[2], *gold, tags[3]]
  for _ in range(rng.integers(0, 4)):
    at = int(rng.integers(0, len(ids) + 1))
    kind = rng.integers(4)
    if kind == 0:
      ids.insert(at, int(rng.choice(likely)))
    elif kind == 1:
      del ids[at : at + 1]
    elif kind == 2 and at < len(ids):
      ids[at] = int(rng.choice(likely))
    else:
      ids[at : at + 2] = ids[at : at + 2][::-1]
  return ids


def make_batch(completions, ended, golds, rng):
  """Arrays of `host.grade_tokens`; what follows a row's end is noise."""
  eos = word_level().eos_token_id
  rows = [
      [*ids, eos] if end else ids
      for ids, end in zip(completions, ended, strict=True)
  ]
  lengths = np.array([len(row) for row in rows], np.int32)
  # Nothing may be read there, so tags lie there.
  noise = rng.choice(word_ids("</think> <answer> </answer> 5"), (len(rows), 24))
  tokens = noise.astype(np.int32)
  for out, row in zip(tokens, rows, strict=True):
    out[: len(row)] = row
  gold = rng.choice(word_ids("5 7"), (len(golds), 2)).astype(np.int32)
  for out, row in zip(gold, golds, strict=True):
    out[: len(row)] = row
  gold_lengths = np.array([len(g) for g in golds], np.int32)
  return tokens, lengths, np.asarray(ended, bool), gold, gold_lengths


def random_batch(prompts, group, seed=0):
  rng = np.random.default_rng(seed)
  numbers = word_ids("5 7 12")
  golds = [
      rng.choice(numbers, rng.integers(1, 3)).tolist() for _ in range(prompts)
  ]
  completions = [
      random_completion(rng, gold) for gold in golds for _ in range(group)
  ]
  ended = rng.random(len(completions)) < 0.5
  return make_batch(completions, ended, golds, rng)


def match_fn():
  tags = token_match.tags_of(word_level(), FORM)
  return functools.partial(token_match.grade_tokens, tags=tags)


def match(grade, tokens, lengths, ended, gold, gold_lengths):
  """`token_match.grade_tokens` on the arguments of the host's."""
  group = len(tokens) // len(gold)
  return grade(
      tokens,
      lengths - ended,
      np.repeat(gold, group, axis=0),
      np.repeat(gold_lengths, group, axis=0),
  )


# Completion, gold, whether correct, whether well formed, reasoning tokens.
WORD_CASES = (
    ("5 + 1 </think> <answer> 6 </answer>", "6", True, True, 3),
    ("5 </think> <answer> 6 </answer>", "7", False, True, 1),
    ("5 </think> <answer> 1 2 </answer>", "1 2", True, True, 1),
    # Tokens, not digits: twelve is not one and two.
    ("5 </think> <answer> 1 2 </answer>", "12", False, True, 1),
    ("5 </think> <answer> 1 </answer>", "1 2", False, True, 1),
    ("5 </think> <answer> 1 2 3 </answer>", "1 2", False, True, 1),
    ("</think> <answer> 6 </answer>", "6", True, False, 0),
    ("5 </think> <answer> </answer>", "6", False, False, 1),
    ("5 </think> <answer> 6", "6", False, False, 1),
    ("5 </think> <answer> 6 </answer> 6", "6", True, False, 1),
    ("5 </think> so <answer> 6 </answer>", "6", True, False, 1),
    ("<think> 5 </think> <answer> 6 </answer>", "6", True, False, 2),
    ("5 <answer> 6 </answer> </think>", "6", True, False, 4),
    ("5 <answer> 6 </answer>", "6", True, False, 4),
    ("<answer> 7 </answer> <answer> 6 </answer>", "6", True, False, 6),
    ("<answer> 6 </answer> <answer> 7 </answer>", "6", False, False, 6),
    ("5 </think> <answer> 6 </answer> <answer> 7", "6", True, False, 1),
    ("5 </think> <answer> 6 </answer> 7 </answer>", "6", True, False, 1),
    ("5 </think> <answer> 7 <answer> 6 </answer>", "6", True, False, 1),
    ("5 </think> <answer> </think> 6 </answer>", "6", False, False, 1),
    ("</answer> 6 <answer>", "6", False, False, 3),
    ("", "6", False, False, 0),
)


def exactly(completions, golds, *, form, lenient):
  """Right answers are the gold ones, character by character."""
  assert form == FORM and not lenient
  return [
      Graded(text.extract_answer(completion, FORM) == gold, None, False)
      for completion, gold in zip(completions, golds, strict=True)
  ]


def grade_exactly(*batch):
  """`host.grade_tokens`, by `exactly`."""
  with mock.patch.object(host.grading, "grade", exactly):
    return host.grade_tokens(word_level(), *batch, form=FORM)


class TokenMatchTest(chex.TestCase):

  def cases(self):
    completions = [word_ids(case[0]) for case in WORD_CASES]
    golds = [word_ids(case[1]) for case in WORD_CASES]
    rng = np.random.default_rng(0)
    for ended in (np.zeros(len(golds), bool), np.ones(len(golds), bool)):
      yield make_batch(completions, ended, golds, rng)

  def check_cases(self, grades):
    for got, expected in zip(
        grades, list(zip(*WORD_CASES, strict=True))[2:], strict=True
    ):
      np.testing.assert_array_equal(got, expected)

  def test_host_by_hand(self):
    for batch in self.cases():
      columns = grade_exactly(*batch)
      self.check_cases(columns[:3])
      self.assertFalse(columns[3].any())

  @chex.variants(with_jit=True, without_jit=True)
  def test_tokens_by_hand(self):
    grade = self.variant(match_fn())
    for batch in self.cases():
      grades = match(grade, *batch)
      self.check_cases(
          (grades.correct, grades.well_formed, grades.reasoning_lengths)
      )

  @chex.variants(with_jit=True, without_jit=True)
  def test_same_as_the_host(self):
    batch = random_batch(prompts=1200, group=3)
    columns = grade_exactly(*batch)
    correct, well_formed, lengths, _ = columns
    grades = match(self.variant(match_fn()), *batch)
    np.testing.assert_array_equal(grades.correct, correct)
    np.testing.assert_array_equal(grades.well_formed, well_formed)
    np.testing.assert_array_equal(grades.reasoning_lengths, lengths)
    # The four combinations all occur often, so agreement says something.
    for a in (correct, ~correct):
      for b in (well_formed, ~well_formed):
        self.assertGreater((a & b).sum(), 100)
    self.assertGreater(len(set(lengths.tolist())), 8)


def rollout_of(tokens, lengths, ended):
  zeros = jnp.zeros(tokens.shape, jnp.float32)
  return Rollout(tokens, lengths, ended, zeros, zeros, context=())


def prompts_of(gold, gold_lengths):
  tokens = jnp.ones((len(gold), 3), jnp.int32)
  return Prompts(
      tokens,
      jnp.full(len(gold), 3, jnp.int32),
      gold,
      gold_lengths,
      jnp.arange(len(gold)),
  )


class MakeGraderTest(chex.TestCase):

  @parameterized.parameters(1, 8)
  def test_both_graders_agree_in_a_compiled_program(self, devices):
    cfg = config.parse(config.default())
    layout = MeshConfig(data=-1, fsdp=min(devices, 2))
    mesh = assembly.make_mesh(
        dataclasses.replace(cfg, mesh=layout), jax.local_devices()[:devices]
    )
    self.assertLen(mesh.devices.flatten(), devices)
    # Rows that lie on another device or group give other grades.
    *rows, gold, gold_lengths = random_batch(prompts=16, group=4, seed=1)
    rollout, prompts = sharding.put_batch(
        (rollout_of(*rows), prompts_of(gold, gold_lengths)), mesh
    )
    grade = host.make_grader(word_level(), mesh, FORM)
    on_host = jax.jit(grade)(rollout, prompts)
    tags = token_match.tags_of(word_level(), FORM)
    on_device = jax.jit(token_match.make_grader(tags))(rollout, prompts)
    chex.assert_trees_all_equal(on_host, on_device)
    chex.assert_trees_all_equal_dtypes(on_host, on_device)
    self.assertBetween(int(on_host.correct.sum()), 10, 54)
    # A judge gets the rows of its own completions, 4 of each problem.
    asked = [Asked("", {"score": i / 16}) for i in range(17)]
    judge = host.make_grader(
        word_level(), mesh, FORM, asked=asked,
        judge=lambda given: [
            Graded(row["score"] == 1, None, False, score=row["score"])
            for row in given.rows
        ],
    )  # fmt: skip
    rows = sharding.put_batch(np.arange(16, 0, -1, dtype=np.int32), mesh)
    judged = jax.jit(judge)(rollout, prompts.replace(rows=rows))
    scores = np.repeat(np.arange(16, 0, -1) / 16, 4)
    np.testing.assert_array_equal(judged.scores, scores)
    np.testing.assert_array_equal(judged.correct, scores == 1)
    chex.assert_trees_all_equal(judged.well_formed, on_host.well_formed)

  @chex.variants(with_jit=True, without_jit=True)
  def test_the_eos_is_not_graded(self):
    grade = self.variant(
        token_match.make_grader(token_match.tags_of(word_level(), FORM))
    )
    completion = word_ids("5 </think> <answer> 6 </answer>")
    tokens = jnp.array([[*completion, word_level().eos_token_id]] * 2)
    # Counted as an EOS it is dropped; counted as text it follows the answer.
    grades = grade(
        rollout_of(tokens, jnp.array([6, 6]), jnp.array([True, False])),
        prompts_of(jnp.array([word_ids("6")]), jnp.array([1])),
    )
    np.testing.assert_array_equal(grades.correct, [True, True])
    np.testing.assert_array_equal(grades.well_formed, [True, False])
    np.testing.assert_array_equal(grades.reasoning_lengths, [1, 1])


TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def test_tags_of_the_word_tokenizer():
  tags = token_match.tags_of(word_level(), FORM)
  got = (tags.think_open, tags.think_close, tags.answer_open, tags.answer_close)
  # After <pad>, <eos> and <unk>.
  assert got == (3, 4, 5, 6)
  assert word_level().convert_ids_to_tokens(list(got)) == list(TAGS)


def test_byte_pairs_are_refused():
  message = r"encode '<think>' as one token, not .* use host"
  with pytest.raises(ConfigError, match=message):
    token_match.tags_of(byte_level(), FORM)


def test_byte_pairs_with_tag_tokens_are_refused():
  # The tags are tokens, but `<` is one as well: they can be spelled out.
  tok = PreTrainedTokenizerFast(
      tokenizer_object=byte_level().backend_tokenizer,
      additional_special_tokens=list(TAGS),
  )
  with pytest.raises(ConfigError, match=r"= '<' could spell.*use host"):
    token_match.tags_of(tok, FORM)


def test_tokens_not_joined_by_blanks_are_refused():
  words = ["<pad>", "<eos>", "<unk>", *TAGS, "5", "so"]
  tok = tokenizer.word_tokenizer(
      words, pad="<pad>", eos="<eos>", unknown="<unk>"
  )
  tok.backend_tokenizer.decoder = decoders.Fuse()
  with pytest.raises(ConfigError, match=r"join its tokens by.*use host"):
    token_match.tags_of(tok, FORM)


def test_words_that_the_tokenizer_does_not_have_must_be_seen():
  tok = tokenizer.word_tokenizer(
      ["<pad>", "<eos>", *TAGS, "5", "so"],
      pad="<pad>", eos="<eos>", unknown="so",
  )  # fmt: skip
  tok.unk_token = None
  with pytest.raises(ConfigError, match="have an unknown token; use host"):
    token_match.tags_of(tok, FORM)


_LARGE = """
import jax, numpy as np
from iapo_jax.config import parsing
from iapo_jax.core import sharding
from iapo_jax.core.types import Prompts, Rollout
from iapo_jax.data import task as task_lib
from iapo_jax.rewards import host
from iapo_jax.run import assembly
cfg = parsing.parse({"prompts_per_step": 8})
mesh = assembly.make_mesh(cfg)
task = task_lib.load(cfg, task_lib.read(cfg.data))
grade = jax.jit(host.make_grader(task.tokenizer, mesh, cfg.format))
b, t = 256, 2048
log = np.zeros((b, t), np.float32)
rolled = Rollout(
    np.full((b, t), 20, np.int32), np.full(b, t, np.int32),
    np.zeros(b, bool), log, log, ())
one = np.ones(8, np.int32)
prompts = Prompts(np.ones((8, 4), np.int32), one, one[:, None], one, 0 * one)
put = lambda tree: sharding.put_batch(tree, mesh)
grades = jax.device_get(grade(put(rolled), put(prompts)))
print("graded", int(grades.reasoning_lengths.sum()))
"""


def test_a_large_batch_on_several_devices_does_not_hang():
  """256 x 2048 tokens on 8 devices: whole, JAX 0.10 waits for ever."""
  result = subprocess.run(
      [sys.executable, "-c", _LARGE],
      capture_output=True,
      text=True,
      timeout=120,
      check=False,
  )
  assert f"graded {256 * 2048}" in result.stdout, result.stderr


def test_ids_beyond_the_tokenizer_are_unknown_text_to_both_graders():
  """A padded embedding can sample them; they must not vanish from the text."""
  tok = word_level()
  tags = token_match.tags_of(tok, FORM)
  open_, close = tags.answer_open, tags.answer_close
  think, word, beyond = tags.think_close, 20, len(tok) + 3
  tokens = np.array([
      [word, think, open_, word, beyond, close],  # answer "5 <unk>"
      [beyond, think, open_, word, close, 0],  # reasoning "<unk>"
  ])
  lengths = np.array([6, 5])
  gold, gold_lengths = np.array([[word], [word]]), np.array([1, 1])
  ended = np.zeros(2, bool)
  theirs = grade_exactly(tokens, lengths, ended, gold, gold_lengths)
  ours = token_match.grade_tokens(
      *map(jnp.asarray, (tokens, lengths, gold, gold_lengths)), tags=tags
  )
  np.testing.assert_array_equal(theirs[0], [False, True])
  np.testing.assert_array_equal(theirs[1], [True, True])
  np.testing.assert_array_equal(theirs[2], [1, 1])
  np.testing.assert_array_equal(ours.correct, theirs[0])
  np.testing.assert_array_equal(ours.well_formed, theirs[1])
  np.testing.assert_array_equal(ours.reasoning_lengths, theirs[2])

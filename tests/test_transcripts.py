"""Completions written by hand in every format: grade, form and lengths.

`grading/transcripts.jsonl` has a completion a line, cut into its tokens, with
its numbers of reasoning tokens and of tokens after them.
"""

import collections
import functools
import json
import pathlib

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from iapo_jax.config import formats, parsing
from iapo_jax.core import endings
from iapo_jax.rewards import host, text

PLACE = pathlib.Path(__file__).parent / "grading" / "transcripts.jsonl"
FORMATS = (*formats.PRESETS, "own")
OWN = {
    "opened_by": "model", "think_open": "[THINK]", "think_close": "[/THINK]",
    "answer_open": "[[", "answer_close": "]]",
}  # fmt: skip


@functools.cache
def transcripts():
  rows = [json.loads(line) for line in PLACE.read_text().splitlines()]
  return collections.OrderedDict(
      (f"{row['format']}: {row['case']}", row) for row in rows
  )


@functools.cache
def form_of(name):
  if name != "own":
    return formats.of(name)
  config = parsing.default()
  config.data.task = "gsm8k"
  config.reward.grader = "host"
  config.format.update(OWN)
  return parsing.parse(config).format


@functools.cache
def tokenizer():
  """One token for each piece; tokens are joined without blanks."""
  rows = transcripts().values()
  words = [x for row in rows for x in (*row["pieces"], row["gold"])]
  ids = {x: i for i, x in enumerate(dict.fromkeys(["<eos>", "<unk>", *words]))}
  backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
  backend.decoder = decoders.Fuse()
  return PreTrainedTokenizerFast(
      tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>"
  )


def graded(name, rows):
  """Grades the completions of a format at once, by column."""
  tok = tokenizer()
  ids = tok.convert_tokens_to_ids
  complete = [
      [*ids(row["pieces"]), *[tok.eos_token_id] * row["ended"]] for row in rows
  ]
  tokens = np.zeros((len(rows), max(map(len, complete))), np.int32)
  for row, found in enumerate(complete):
    tokens[row, : len(found)] = found
  lengths = np.array([len(x) for x in complete], np.int32)
  gold = np.array([[ids(row["gold"])] for row in rows], np.int32)
  columns = host.grade_tokens(
      tok,
      tokens,
      lengths,
      np.array([row["ended"] for row in rows]),
      gold,
      np.ones(len(rows), np.int32),
      form=form_of(name),
  )
  return [x.tolist() for x in columns]


@pytest.mark.parametrize("name", FORMATS)
def test_transcripts(name):
  rows = [row for row in transcripts().values() if row["format"] == name]
  assert len(rows) >= 12
  correct, formed, reasoning, late = graded(name, rows)
  ends = endings.of(
      *(
          np.array(x)
          for x in (
              [len(row["pieces"]) + row["ended"] for row in rows],
              [row["ended"] for row in rows], reasoning, formed,
          )
      )
  )  # fmt: skip
  for i, row in enumerate(rows):
    found = correct[i], formed[i], reasoning[i]
    expected = row["correct"], row["well_formed"], row["reasoning"]
    assert found == expected, row["case"]
    # What is said after the thinking, the closing mark included.
    assert len(row["pieces"]) - reasoning[i] == row["answer"], row["case"]
    for start, found in (
        ("cut", ends.cut), ("EOS inside the thinking", ends.in_reasoning),
        ("malformed", ends.malformed),
    ):  # fmt: skip
      if row["case"].startswith(start):
        assert found[i], row["case"]
    counts = ends.cut[i], ends.in_reasoning[i], ends.malformed[i]
    assert sum(counts) == (not row["ended"] or not row["well_formed"])
  assert not any(late)


@pytest.mark.parametrize("name", FORMATS)
def test_an_elicited_answer_is_well_formed_and_right(name):
  """The elicitation of a format asks for an answer where the format wants it.

  Whatever was written before, `4` after it must be found.
  """
  form = form_of(name)
  elicitation = parsing.parse({
      "format": OWN | {"preset": "think_answer"} if name == "own" else {
          "preset": name
      },
      "data": {"task": "gsm8k"},
      "reward": {"grader": "host"},
  }).probe.elicitation
  for reasoning in ("So it is 5. ", "Either \\boxed{5} or 6\n"):
    written = form.before_reasoning + reasoning + elicitation + "4"
    written += form.answer_close
    found = text.find_answer(written, form, lenient=False)
    assert found == text.Answer("4")
    formed = form.thinks or "boxed" not in reasoning
    assert text.is_well_formed(written, form) == formed


def test_a_lenient_format_guesses_after_the_thinking_and_says_so():
  def found(name, completion):
    return text.find_answer(completion, form_of(name), lenient=True)

  assert found("thinker", "so</think>\\boxed{4}") == text.Answer("4")
  told = found("thinker", "It is 5.</think>The answer is 4.")
  assert (told.text, told.asked) == ("4", False)
  assert told.prose == "The answer is 4."
  assert found("thinker", "The answer is 4.") is None  # still thinking
  assert found("boxed", "The answer is 4.").text == "4"
  boxed = found("think_answer", "so</think>\\boxed{4}")
  assert (boxed.text, boxed.asked, boxed.prose) == ("4", False, "")
  assert found("think_answer", "so</think><answer>4</answer>").asked
  assert found("think_answer", "so</think><answer>4") is None


def test_a_lenient_grader_counts_guesses():
  rows = [
      transcripts()[f"thinker: {case}"]
      for case in ("right", "malformed: no box", "EOS inside the thinking")
  ]
  lenient = parsing.parse({
      "format": {"preset": "thinker", "lenient": True},
      "data": {"task": "gsm8k"},
      "reward": {"grader": "host"},
  }).format
  tok = tokenizer()
  ids = [tok.convert_tokens_to_ids(row["pieces"]) for row in rows]
  tokens = np.zeros((3, max(map(len, ids))), np.int32)
  for row, found in enumerate(ids):
    tokens[row, : len(found)] = found
  lengths = np.array([len(x) for x in ids], np.int32)
  gold = np.full((3, 1), tok.convert_tokens_to_ids("4"), np.int32)
  correct, formed, _, _, guessed = host.grade_tokens(
      tok, tokens, lengths, np.zeros(3, bool), gold, np.ones(3, np.int32),
      form=lenient,
  )  # fmt: skip
  # "The answer is 4." is a guess; text that still thinks has no answer.
  assert correct.tolist() == [True, True, False]
  assert formed.tolist() == [True, False, False]
  assert guessed.tolist() == [False, True, False]

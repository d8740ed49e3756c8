"""Turns text into batches: tokenises within limits, then batches with Grain."""

import dataclasses
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from iapo_jax.config.data import DataConfig
from iapo_jax.config.schema import WarmStartConfig
from iapo_jax.core.errors import ConfigError, fail
from iapo_jax.core.types import Prompts, Vocabulary
from iapo_jax.hf import tokenizer as tokenizer_lib

Record = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Piece:
  """A part of a demonstration; carries the supervised loss if `learned`."""

  text: str
  learned: bool


def cut_early(
    words: Sequence[str], rng: np.random.Generator, stage: WarmStartConfig
) -> tuple[Sequence[str], bool]:
  """Cuts the share `early_share` of worked texts before a random word.

  Returns the words, and whether all tokens are learned (else only the answer).
  All are learned in texts that are not cut, and in the share `early_full_share`
  of texts that are cut.
  """
  if rng.random() >= stage.early_share:
    return words, True
  words = words[: rng.integers(len(words))]
  return words, bool(rng.random() < stage.early_full_share)


@dataclasses.dataclass(frozen=True)
class PromptTable:
  """Tokenised prompts of a split.

  Attributes:
    prompts: NumPy arrays [n, ...]; `rows` counts within the table until
      `numbered`.
    kept: int64[n], the index of each prompt among the problems of the split.
    skipped: number of prompts left out because they are too long.
    truncated: number of prompts that lost their beginning.
    levels: int64[n], the level of each, or a name; None if the task has no
      levels.
  """

  prompts: Prompts
  kept: np.ndarray
  skipped: int
  truncated: int
  levels: np.ndarray | None = None

  def numbered(self, first: int) -> "PromptTable":
    """Returns the table with rows from `first` on."""
    rows = np.arange(first, first + len(self.kept), dtype=np.int32)
    return dataclasses.replace(self, prompts=self.prompts.replace(rows=rows))

  def record(self, index: int) -> Record:
    """Returns one prompt, for a Grain source."""
    return {name: rows[index] for name, rows in vars(self.prompts).items()}

  def texts(self) -> list[np.ndarray]:
    """Returns the tokens of each prompt, without padding."""
    rows = zip(self.prompts.tokens, self.prompts.lengths, strict=True)
    return [tokens[:length] for tokens, length in rows]


def tokenise_prompts(
    tokenizer: Any,
    prompts: Sequence[str],
    golds: Sequence[str],
    data: DataConfig,
    *,
    pad_id: int,
    levels: Sequence[int] | Sequence[str] | None = None,
) -> PromptTable:
  """Tokenises prompts and gold answers within the limits of `data`.

  A truncated prompt keeps its BOS.

  Args:
    tokenizer: a Hugging Face tokenizer.
    prompts: n texts, after the chat template.
    golds: n texts.
    data: the limits, and what happens to longer prompts.
    pad_id: fills rows after their end.
    levels: n levels or names; None if the task has none.

  Raises:
    ConfigError: if there is no prompt; if a prompt or gold answer is empty; if
      a prompt exceeds its limit and `overlong` is `error`; if a gold answer
      exceeds its limit or changes when it is encoded and decoded.
  """
  limit = data.max_prompt_tokens
  begin = tokenizer_lib.encode_prompt
  if data.chat_template:
    begin = tokenizer_lib.encode_rendered
  added = len(begin(tokenizer, ""))  # 1 if the tokenizer adds a BOS
  kept, rows, gold_rows = [], [], []
  truncated = 0
  for i, (prompt, gold) in enumerate(zip(prompts, golds, strict=True)):
    ids = begin(tokenizer, prompt)
    excess = max(len(ids) - limit, 0)
    if excess and data.overlong == "skip":
      continue
    gold_ids = tokenizer_lib.encode(tokenizer, gold)
    _check_row(i, ids, gold_ids, data)
    _check_gold(i, gold, tokenizer_lib.decode(tokenizer, gold_ids))
    truncated += excess > 0
    kept.append(i)
    rows.append(ids[:added] + ids[added + excess :])
    gold_rows.append(gold_ids)
  if not rows:
    if not prompts:
      raise ConfigError("data: has no prompts; give other data")
    rule = f"none of {len(prompts)} prompts is within the limit; raise it"
    fail("data.max_prompt_tokens", limit, rule)
  return PromptTable(
      prompts=Prompts(
          *right_pad(rows, limit, pad_id),
          *right_pad(gold_rows, data.max_gold_tokens, pad_id),
          rows=np.arange(len(rows), dtype=np.int32),
      ),
      kept=np.array(kept),
      skipped=len(prompts) - len(rows),
      truncated=truncated,
      levels=None if levels is None else np.array(levels)[kept],
  )


def _check_row(
    i: int, ids: list[int], gold_ids: list[int], data: DataConfig
) -> None:
  if not ids or not gold_ids:
    raise ConfigError(
        f"data row {i}: the {'gold answer' if ids else 'prompt'} is empty"
    )
  if len(ids) > data.max_prompt_tokens and data.overlong == "error":
    rule = (
        f"the prompt of row {i} has {len(ids)} tokens; raise the limit or set"
        " config.data.overlong to skip or truncate_left"
    )
    fail("data.max_prompt_tokens", data.max_prompt_tokens, rule)
  if len(gold_ids) > data.max_gold_tokens:
    rule = (
        f"the gold answer of row {i} has {len(gold_ids)} tokens; raise the"
        " limit"
    )
    fail("data.max_gold_tokens", data.max_gold_tokens, rule)


def _check_gold(i: int, gold: str, read: str) -> None:
  """Raises ConfigError if tokens change a gold answer; graders decode them."""
  normal = unicodedata.normalize("NFC", gold)
  if "".join(read.split()) != "".join(normal.split()):
    raise ConfigError(
        f"data row {i}: the tokenizer turns the gold answer {gold!r} into"
        f" {read!r}; use another tokenizer"
    )


def right_pad(
    rows: Sequence[Sequence[int]], width: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Pads n rows, none longer than `width`.

  Returns:
    int32[n, width] and the lengths int32[n].
  """
  padded = np.full((len(rows), width), pad_id, np.int32)
  for i, row in enumerate(rows):
    padded[i, : len(row)] = row
  return padded, np.array([len(row) for row in rows], np.int32)


def tokenise_pieces(
    tokenizer: Any,
    pieces: Sequence[Piece],
    width: int,
    vocabulary: Vocabulary,
) -> Record:
  """Tokenises a demonstration and marks the tokens that carry loss.

  Tokenises the text as a whole, since a token may reach across pieces. A token
  is learned if it ends in a learned piece. The final EOS is learned if the last
  piece is.

  Args:
    tokenizer: a fast Hugging Face tokenizer.
    pieces: the parts, in order.
    width: t.
    vocabulary: the ids of the tokenizer.

  Returns:
    `completion` int32[t], right-padded, and `learned` bool[t].

  Raises:
    ConfigError: if the demonstration has more than `width` tokens.
  """
  text = "".join(piece.text for piece in pieces)
  ends = np.cumsum([len(piece.text) for piece in pieces])
  encoded = tokenizer_lib.encoding(tokenizer, text)
  learned = [
      pieces[np.searchsorted(ends, end)].learned for _, end in encoded.offsets
  ]
  ids = [*encoded.ids, vocabulary.eos_ids[0]]
  learned.append(pieces[-1].learned)
  if len(ids) > width:
    rule = f"a demonstration has {len(ids)} tokens; raise the limit"
    fail("rollout.max_tokens", width, rule)
  completion, _ = right_pad([ids], width, vocabulary.pad_id)
  mask = np.zeros(width, bool)
  mask[: len(learned)] = learned
  return {"completion": completion[0], "learned": mask}


def batches(
    size: int,
    record: Callable[[int], Record],
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    augment: Callable[[Record, np.random.Generator], Record] | None = None,
) -> grain.DatasetIterator:
  """Makes an endless iterator of shuffled batches, reshuffled every epoch.

  Rows do not depend on the process that reads them, so any number of processes
  sees the same data. Checkpoints store the position of the iterator, from its
  `get_state`; it is the same in all processes.

  Args:
    size: number of records.
    record: returns the record at an index.
    batch_size: rows over all processes.
    seed: seed of the order and of `augment`.
    rows: the rows of a batch that this process reads; None means all.
    augment: changes a record at random, with a generator for each row.

  Returns:
    An iterator of records stacked along a new first axis.
  """
  rows = range(batch_size) if rows is None else rows

  def read(indices: np.ndarray, rng: np.random.Generator) -> Record:
    seeds = rng.integers(2**63, size=batch_size)
    records = [record(int(indices[row])) for row in rows]
    if augment is not None:
      records = [
          augment(one, np.random.default_rng(seeds[row]))
          for one, row in zip(records, rows, strict=True)
      ]
    return {
        name: np.stack([one[name] for one in records]) for name in records[0]
    }

  order = grain.MapDataset.range(size).seed(seed).shuffle().repeat()
  dataset = order.batch(batch_size, drop_remainder=True).random_map(read)
  return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1)))


def as_prompts(batch: Record) -> Prompts:
  """Returns the prompts of a batch of records."""
  names = [field.name for field in dataclasses.fields(Prompts)]
  return Prompts(**{name: batch[name] for name in names})

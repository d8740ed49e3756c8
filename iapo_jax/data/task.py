"""A task: its tokenizer, its splits as arrays, its demonstrations."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from iapo_jax.config import Config
from iapo_jax.data import arithmetic, pipeline, tokenizer
from iapo_jax.data.pipeline import PromptTable, Record
from iapo_jax.errors import ConfigError
from iapo_jax.types import Vocabulary


@dataclasses.dataclass(frozen=True)
class Task:
  """What a run reads.

  Attributes:
    tokenizer: a Hugging Face tokenizer.
    vocabulary: what the compiled step must know of it.
    tables: the prompts of `train`, `validation` and `test`.
    problems: of the same splits, in the order of the tables.
  """

  tokenizer: Any
  vocabulary: Vocabulary
  tables: dict[str, PromptTable]
  problems: dict[str, Sequence[arithmetic.Problem]]

  def demonstration(
      self, index: int, rng: np.random.Generator, cfg: Config
  ) -> Record:
    """A train prompt with a written-out completion.

    Args:
      index: row of the train table.
      rng: decides everything random about the chain.
      cfg: the run's configuration.

    Returns:
      The prompt's record, `completion` int32[t] and `learned` bool[t].
    """
    pieces = arithmetic.demonstration(
        self.problems["train"][index],
        rng,
        redundancy=cfg.data.redundancy,
        early_share=cfg.warm_start.early_share,
        early_full_share=cfg.warm_start.early_full_share,
    )
    record = self.tables["train"].record(index)
    return record | pipeline.tokenise_pieces(
        self.tokenizer, pieces, cfg.rollout.max_tokens
    )


def load(cfg: Config) -> Task:
  """Loads the configured task.

  Args:
    cfg: the run's configuration.

  Returns:
    The task.

  Raises:
    ConfigError: for a limit its text exceeds, an empty split, or an
      elicitation without tokens.
  """
  longest = arithmetic.longest_demonstration(cfg.data)
  if cfg.warm_start.num_steps and longest > cfg.rollout.max_tokens:
    raise ConfigError(
        f"config.rollout.max_tokens = {cfg.rollout.max_tokens}: the longest"
        f" demonstration of the task has {longest} tokens"
    )
  tok = tokenizer.word_tokenizer(
      arithmetic.vocabulary(cfg.data),
      pad=arithmetic.PAD,
      eos=arithmetic.EOS,
      unknown=arithmetic.UNKNOWN,
  )
  problems, tables = {}, {}
  for name, split in arithmetic.make_splits(cfg.data).items():
    tables[name] = pipeline.tokenise_prompts(
        tok, [p.prompt for p in split], [p.answer for p in split], cfg.data
    )
    problems[name] = [split[i] for i in tables[name].kept]
  return Task(tok, vocabulary_of(tok, cfg.probe.elicitation), tables, problems)


def vocabulary_of(tok: Any, elicitation: str) -> Vocabulary:
  """The ids a compiled step needs.

  Args:
    tok: a Hugging Face tokenizer with a padding and an EOS token.
    elicitation: the text that asks for the answer.

  Returns:
    The ids.

  Raises:
    ConfigError: for an elicitation without tokens, or with unknown ones.
  """
  ids = tok.encode(elicitation, add_special_tokens=False)
  if not ids:
    raise ConfigError(
        f"config.probe.elicitation = {elicitation!r}: must have tokens"
    )
  if tok.unk_token_id in ids:
    raise ConfigError(
        f"config.probe.elicitation = {elicitation!r}: holds text the tokenizer"
        " does not know"
    )
  return Vocabulary((tok.eos_token_id,), tok.pad_token_id, tuple(ids))

"""A task: its tokenizer, its splits as arrays, its demonstrations."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from iapo_jax.config import Config
from iapo_jax.data import arithmetic, pipeline, tokenizer
from iapo_jax.data.pipeline import PromptTable, Record
from iapo_jax.errors import ConfigError
from iapo_jax.hf import folder
from iapo_jax.rewards import text
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
        self.tokenizer, pieces, cfg.rollout.max_tokens, self.vocabulary
    )


def load(
    cfg: Config,
    pretrained: pathlib.Path | None = None,
    tokenizer_folder: pathlib.Path | None = None,
) -> Task:
  """Loads the configured task.

  Args:
    cfg: the run's configuration.
    pretrained: folder of a model that says what ends a completion, and whose
      tokenizer is used unless another one is given.
    tokenizer_folder: of the tokenizer; by default without a model, too, the
      task's words are the vocabulary.

  Returns:
    The task.

  Raises:
    ConfigError: for a limit its text exceeds, an empty split, an elicitation
      without tokens, or a tokenizer that cannot be used.
  """
  tokens = folder.Tokens((), None)
  if place := pretrained or tokenizer_folder:
    tokens = folder.read_tokens(place)
  if place := tokenizer_folder or pretrained:
    tok = tokenizer.load(place)
  else:
    tok = tokenizer.word_tokenizer(
        arithmetic.vocabulary(cfg.data),
        pad=arithmetic.PAD,
        eos=arithmetic.EOS,
        unknown=arithmetic.UNKNOWN,
    )
  vocabulary = vocabulary_of(tok, cfg.probe.elicitation, tokens)
  if cfg.warm_start.num_steps:
    _check_longest(cfg, tok)
  problems, tables = {}, {}
  for name, split in arithmetic.make_splits(cfg.data).items():
    tables[name] = pipeline.tokenise_prompts(
        tok,
        [_prompt(problem, tok, cfg) for problem in split],
        [problem.answer for problem in split],
        cfg.data,
        pad_id=vocabulary.pad_id,
    )
    problems[name] = [split[i] for i in tables[name].kept]
  return Task(tok, vocabulary, tables, problems)


def _prompt(problem: arithmetic.Problem, tok: Any, cfg: Config) -> str:
  """The problem, put as configured, up to the opened reasoning."""
  if not cfg.data.chat_template:
    return problem.prompt
  question = problem.prompt.removesuffix(text.THINK_OPEN).rstrip()
  message = {"role": "user", "content": question}
  rendered = tokenizer.render_chat(tok, [message], date=cfg.data.chat_date)
  opened = rendered.rstrip().endswith(text.THINK_OPEN)
  return rendered if opened else rendered + text.THINK_OPEN


def _check_longest(cfg: Config, tok: Any) -> None:
  """Whether every demonstration fits, whatever its draw."""
  words = arithmetic.vocabulary(cfg.data)[len(arithmetic.SPECIAL) :]
  # A word by itself never has fewer tokens than within a text.
  most = max(len(tokenizer.encode(tok, f" {word}")) for word in words)
  longest = most * (arithmetic.longest_demonstration(cfg.data) - 1) + 1
  if longest > cfg.rollout.max_tokens:
    bound = f"up to {longest} tokens (counting {most} a word)"
    raise ConfigError(
        f"config.rollout.max_tokens = {cfg.rollout.max_tokens}: the longest"
        " demonstration of the task has"
        f" {f'{longest} tokens' if most == 1 else bound}"
    )


def vocabulary_of(
    tok: Any, elicitation: str, tokens: folder.Tokens
) -> Vocabulary:
  """The ids a compiled step needs.

  Args:
    tok: a Hugging Face tokenizer.
    elicitation: the text that asks for the answer.
    tokens: what the model's configuration says of ends and padding; where it
      is silent the tokenizer is asked. Which id pads does not matter: every
      mask is made from lengths.

  Returns:
    The ids.

  Raises:
    ConfigError: where nothing ends a completion, or for an elicitation without
      tokens, or with unknown ones.
  """
  ends = stop_ids(tok, tokens)
  if not ends:
    raise ConfigError(
        f"tokenizer {tok.name_or_path!r}: neither it nor generation_config.json"
        " names an EOS token"
    )
  pads = (tokens.pad_id, tok.pad_token_id, ends[0])
  pad_id = next(pad for pad in pads if pad is not None)
  return Vocabulary(ends, pad_id, elicitation_ids(tok, elicitation))


def stop_ids(tok: Any, tokens: folder.Tokens) -> tuple[int, ...]:
  """What ends a completion; the first of them ends demonstrations.

  Args:
    tok: a Hugging Face tokenizer.
    tokens: what the model's configuration says; it has the last word.

  Returns:
    The ids; none where nobody names one.
  """
  own = tok.eos_token_id
  ends = tokens.eos_ids or (() if own is None else (own,))
  return tuple(sorted(ends, key=lambda end: end != own))


def elicitation_ids(
    tok: Any, elicitation: str, field: str = "config.probe.elicitation"
) -> tuple[int, ...]:
  """The tokens of an elicitation.

  Args:
    tok: a Hugging Face tokenizer.
    elicitation: the text that asks for the answer.
    field: where the user gave it.

  Returns:
    At least one token.

  Raises:
    ConfigError: for an elicitation without tokens, or with unknown ones.
  """
  ids = tokenizer.encode(tok, elicitation)
  if not ids:
    raise ConfigError(f"{field} = {elicitation!r}: must have tokens")
  if tok.unk_token_id is not None and tok.unk_token_id in ids:
    raise ConfigError(
        f"{field} = {elicitation!r}: holds text the tokenizer does not know"
    )
  return tuple(ids)

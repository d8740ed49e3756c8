"""Reads a task and turns it into arrays: tokenizer, splits, demonstrations."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from iapo_jax.config.data import (
  ArithmeticConfig,
  DataConfig,
  chat_arguments,
)
from iapo_jax.config.schema import Config
from iapo_jax.core.errors import ConfigError, fail
from iapo_jax.core.types import Vocabulary
from iapo_jax.data import (
  arithmetic,
  examples,
  fitting,
  gym,
  pipeline,
  prompts,
  published,
  splits,
  unknown,
)
from iapo_jax.data.examples import Example
from iapo_jax.data.pipeline import PromptTable, Record
from iapo_jax.data.steps import StepTokens
from iapo_jax.hf import ends as ends_lib
from iapo_jax.hf import folder, tokenizer
from iapo_jax.rewards.completions import Asked
from iapo_jax.rl.planting import Planting

Problem = arithmetic.Problem | Example
Problems = Mapping[str, Sequence[Problem]]
_NUMBERED = ("train", "validation", "test")
_ADVICE = "set config.data.tokenizer to one that knows their words"


@dataclasses.dataclass(frozen=True)
class Task:
  """The data of a run.

  Attributes:
    tokenizer: a Hugging Face tokenizer.
    vocabulary: the token ids that the compiled step needs.
    tables: the prompts by split.
    problems: the problems by split, in the order of the tables.
    asked: all problems, in the order of `Prompts.rows`.
    demonstrable: int64[n], rows of the train table whose worked solution fits;
      empty without a warm start.
    fingerprint: SHA-256 of the problems by split; empty for the synthetic task.
    repeats: the counts of repeated problems by split; empty for the synthetic
      task.
    note: the line to print beside numbers on an unusual test split.
    steps: the tokens of steps; None if results do not slip.
    planting: how results slip in rollouts; None if they do not slip.
    described: lines for the plan on the prompt's end, the elicitation and the
      tokens that end completions.
  """

  tokenizer: Any
  vocabulary: Vocabulary
  tables: dict[str, PromptTable]
  problems: dict[str, Sequence[Problem]]
  asked: Sequence[Asked]
  demonstrable: np.ndarray
  fingerprint: dict[str, str]
  repeats: dict[str, splits.Repeats]
  note: str | None
  steps: StepTokens | None = None
  planting: Planting | None = None
  described: Sequence[str] = ()

  @property
  def columns(self) -> list[str]:
    """The columns of the data beside those that every problem has."""
    names = dict.fromkeys(x for row in self.asked for x in row.columns)
    return [name for name in names if name not in examples.READ]

  def demonstration(
      self, index: int, rng: np.random.Generator, cfg: Config
  ) -> Record:
    """Returns a demonstrable row of the train table with a completion.

    Adds `completion` int32[t] and `learned` bool[t] to the record of the
    prompt. `rng` is the only source of randomness.
    """
    problem, stage = self.problems["train"][index], cfg.warm_start
    if isinstance(problem, Example):
      pieces = examples.demonstration(
          problem, rng, stage, form=cfg.format,
          elicitation=cfg.probe.elicitation,
      )
    else:
      pieces = arithmetic.demonstration(
          problem, cfg.data.arithmetic, rng, stage
      )
    record = self.tables["train"].record(index)
    return record | pipeline.tokenise_pieces(
        self.tokenizer, pieces, cfg.rollout.max_tokens, self.vocabulary
    )


def read(
    data: DataConfig, scratch: pathlib.Path | None = None
) -> Problems:
  """Makes the problems of a task, or reads them from files; by split.

  Args:
    data: the task.
    scratch: folder to prepare in what `data.prepared_dir` lacks; None prepares
      there.

  Raises:
    ConfigError: if they cannot be made or read.
  """
  if data.task == "arithmetic":
    made = arithmetic.make_splits(data.arithmetic)
    return made | {"test": splits.first(made["test"], data, "test_problems")}
  if data.task == "reasoning_gym":
    return gym.make_splits(data)
  # TensorFlow Datasets takes long to import.
  from iapo_jax.data import builders

  rows = builders.load(
      data.task,
      source_dir=data.source_dir,
      prepared_dir=data.prepared_dir,
      scratch=scratch,
  )
  return splits.make_splits(rows, data)


def load(
    cfg: Config,
    problems: Problems,
    pretrained: pathlib.Path | None = None,
    tokenizer_folder: pathlib.Path | None = None,
) -> Task:
  """Tokenises problems and puts a task together.

  Args:
    cfg: the run's configuration.
    problems: from `read`.
    pretrained: folder of a model. Its EOS ids are used, and its tokenizer
      unless `tokenizer_folder` is given.
    tokenizer_folder: folder of the tokenizer. Without it and without a model
      the words of the synthetic task are the vocabulary.

  Raises:
    ConfigError: if text exceeds a limit, a split is empty, the elicitation has
      no tokens, or the tokenizer cannot be used.
  """
  tokens = folder.Tokens((), None)
  if place := pretrained or tokenizer_folder:
    tokens = folder.read_tokens(place)
  if words := tokenizer_folder or pretrained:
    tok = tokenizer.load(words)
  else:
    tok = _word_tokenizer(cfg.data)
  if problems:  # prompts are written
    fitting.check(tok, cfg.format, cfg.data)
  if cfg.data.task != "arithmetic" and (
      cfg.warm_start.num_steps
      or (cfg.data.prompt == "instructed" and cfg.format.example)
  ):
    examples.check(cfg.format, cfg.probe.elicitation)
  chat, size = cfg.data.chat_template, _rows(cfg, tok)
  vocabulary = vocabulary_of(
      tok, cfg.probe.elicitation, tokens, chat=chat, size=size
  )
  if cfg.probe.at == "sentences":
    ends = sentence_ends(tok, cfg.model.vocab_size)
    vocabulary = dataclasses.replace(vocabulary, sentence_ends=ends)
  sums, steps, planting = cfg.data.arithmetic, None, None
  if sums.slip_rate:
    steps = _step_tokens(tok, sums)
    planting = Planting(sums.slip_rate, steps.before_result, steps.numbers)
  made = cfg.data.task == "arithmetic"
  tables, asked = _tables(cfg, tok, problems, vocabulary.pad_id)
  kept = {
      name: [problems[name][i] for i in table.kept]
      for name, table in tables.items()
  }
  described = fitting.describe(
      tok, cfg.format, cfg.probe.elicitation, vocabulary,
      next(iter(tables.values()), None),
  )  # fmt: skip
  repeats = {} if made else splits.count_repeats(kept)
  return Task(
      tokenizer=tok,
      vocabulary=vocabulary,
      tables=tables,
      problems=kept,
      asked=asked,
      demonstrable=_demonstrable(cfg, tok, kept.get("train", ())),
      fingerprint={} if made else splits.fingerprint(problems),
      repeats=repeats,
      note=splits.note(cfg.data, repeats),
      steps=steps,
      planting=planting,
      described=[
          *described,
          *ends_lib.describe(tok, vocabulary.eos_ids, place, chat=chat),
      ],
  )


def _tables(
    cfg: Config, tok: Any, problems: Problems, pad_id: int
) -> tuple[dict[str, PromptTable], list[Asked]]:
  """Writes and tokenises the prompts of every split.

  Also returns the problems in the order of `Prompts.rows`.
  """
  tables, written, write = {}, {}, _prompt_writer(tok, cfg)
  for name, split in problems.items():
    try:
      written[name] = [write(problem) for problem in split]
      tables[name] = pipeline.tokenise_prompts(
          tok,
          written[name],
          [problem.answer for problem in split],
          cfg.data,
          pad_id=pad_id,
          levels=_levels(cfg.data, split),
      )
    except ConfigError as error:
      raise ConfigError(f"{error} ({name} problems)") from error
    unknown.warn(tok, tables[name].texts(), f"{name} prompts", _ADVICE)
  asked: list[Asked] = []
  for name in sorted(tables, key=_NUMBERED.index):
    tables[name] = tables[name].numbered(len(asked))
    asked += [
        Asked(written[name][i], problems[name][i].columns)
        for i in tables[name].kept
    ]
  return tables, asked


def _levels(data: DataConfig, split: Sequence[Problem]) -> list[Any] | None:
  """Returns the level of each problem, or its family; None for one of these."""
  if data.task == "reasoning_gym":
    names = [problem.row["family"] for problem in split]
    return names if len(set(names)) > 1 else None
  if data.arithmetic.min_operands:
    return [problem.level for problem in split]
  return None


def _rows(cfg: Config, tok: Any) -> int:
  """Returns the rows of a pretrained model; others have one for every token."""
  known = cfg.model.vocab_size if cfg.model.pretrained else None
  return known or len(tok)


def check_rows(tok: Any, ids: Any, size: int, where: str) -> None:
  """Raises ConfigError unless a model of `size` rows has all of some tokens."""
  largest = int(np.max(ids))
  if largest >= size:
    rule = (
        f"must be above {largest}, the token"
        f" {tok.convert_ids_to_tokens(largest)!r} of {where}; leave"
        " config.data.tokenizer out to use the model's tokenizer"
    )
    fail("model.vocab_size", size, rule)


def _step_tokens(tok: Any, sums: ArithmeticConfig) -> StepTokens:
  """Finds the tokens of steps; raises ConfigError unless a word is a token."""
  words = arithmetic.vocabulary(sums)[len(arithmetic.SPECIAL) :]
  encoded = tokenizer.encode(tok, " ".join(words))
  known = set(encoded) - {tok.unk_token_id}
  if not len(encoded) == len(known) == len(words):
    rule = (
        f"tokenizer {tok.name_or_path!r} must have a token for every word of"
        " the task; leave data.tokenizer and model.pretrained empty"
    )
    fail("data.arithmetic.slip_rate", sums.slip_rate, rule)
  ids = dict(zip(words, encoded, strict=True))
  return StepTokens(
      names=tuple(ids[name] for name in arithmetic.step_names(sums.operands)),
      numbers=tuple(ids[word] for word in arithmetic.number_words(sums)),
      plus=ids["+"],
      minus=ids["-"],
      equals=ids["="],
      check=ids["check"],
      max_total=sums.max_total,
  )


def _word_tokenizer(data: DataConfig) -> Any:
  """Makes a tokenizer of the synthetic task's words."""
  if data.task != "arithmetic":
    rule = (
        f"{data.task} needs a tokenizer; name a folder or a hub repository, or"
        " set model.pretrained"
    )
    fail("data.tokenizer", "", rule)
  return tokenizer.word_tokenizer(
      arithmetic.vocabulary(data.arithmetic),
      pad=arithmetic.PAD,
      eos=arithmetic.EOS,
      unknown=arithmetic.UNKNOWN,
  )


def _prompt_writer(tok: Any, cfg: Config) -> Callable[[Problem], str]:
  """Returns what writes the configured prompt of a problem."""
  render = functools.partial(
      tokenizer.render_chat,
      tok,
      date=cfg.data.chat_date,
      arguments=chat_arguments(cfg.data),
  )
  if cfg.data.task != "arithmetic":
    of_question = functools.partial(
        prompts.of,
        source=_kind(cfg.data.task),
        form=cfg.format,
        elicitation=cfg.probe.elicitation,
        data=cfg.data,
        render=render,
        other=fitting.other_preset(tok, cfg.format),
    )
    return lambda problem: of_question(problem.question)
  if not cfg.data.chat_template:
    return lambda problem: problem.prompt

  def write(problem: arithmetic.Problem) -> str:
    question = problem.prompt.removesuffix(cfg.format.opener).rstrip()
    return prompts.chat(question, cfg.format, cfg.data.system, render)

  return write


def _kind(task: str) -> published.Kind:
  return gym.KIND if task == gym.KIND.name else published.DATA_SETS[task]


def _demonstrable(
    cfg: Config, tok: Any, train: Sequence[Problem]
) -> np.ndarray:
  """Returns rows whose demonstrations fit; none without a warm start."""
  if not cfg.warm_start.num_steps:
    return np.arange(0)
  if cfg.data.task == "arithmetic":
    _check_longest(cfg, tok)
    return np.arange(len(train))
  if cfg.data.task == "reasoning_gym":
    gym.check_worked(cfg.data.gym, cfg.warm_start.num_steps)
  elif not published.DATA_SETS[cfg.data.task].has_solutions:
    rule = f"{cfg.data.task} has no worked solutions to learn from; set it to 0"
    fail("warm_start.num_steps", cfg.warm_start.num_steps, rule)
  worked = [i for i, problem in enumerate(train) if problem.solution]
  if not worked:
    rule = (
        f"none of {len(train)} train problems of {cfg.data.task} has a worked"
        " solution to learn from; give them a field solution, or set it to 0"
    )
    fail("warm_start.num_steps", cfg.warm_start.num_steps, rule)
  limit, encoded = cfg.rollout.max_tokens, []
  for i in worked:
    pieces = examples.written_out(
        train[i].solution, train[i].answer, cfg.format, cfg.probe.elicitation
    )
    whole = "".join(piece.text for piece in pieces)
    encoded.append(tokenizer.encode(tok, whole))
    check_rows(tok, encoded[-1], _rows(cfg, tok), "the worked solutions")
  unknown.warn(tok, encoded, "worked solutions", _ADVICE)
  lengths = [len(ids) + 1 for ids in encoded]  # and an EOS
  fits = np.array(lengths) <= limit
  if not fits.all() and cfg.data.overlong != "skip":
    rule = (
        f"{np.sum(~fits)} of {len(worked)} worked solutions are longer, up to"
        f" {max(lengths)} tokens; raise the limit or set config.data.overlong"
        " to skip"
    )
    fail("rollout.max_tokens", limit, rule)
  if not fits.any():
    rule = (
        f"no worked solution fits, the shortest has {min(lengths)} tokens;"
        " raise the limit"
    )
    fail("rollout.max_tokens", limit, rule)
  return np.array(worked)[fits]


def _check_longest(cfg: Config, tok: Any) -> None:
  """Raises ConfigError unless every possible demonstration fits."""
  sums = cfg.data.arithmetic
  words = arithmetic.vocabulary(sums)[len(arithmetic.SPECIAL) :]
  # A word alone never has fewer tokens than inside a text.
  encoded = [tokenizer.encode(tok, f" {word}") for word in words]
  used = max(encoded, key=max)
  check_rows(tok, used, _rows(cfg, tok), "the worked solutions")
  most = max(map(len, encoded))
  longest = most * (arithmetic.longest_demonstration(sums) - 1) + 1
  if longest > cfg.rollout.max_tokens:
    count = f"{longest} tokens"
    if most > 1:
      count = f"up to {count} (counting {most} per word)"
    rule = f"the longest demonstration of the task has {count}; raise the limit"
    fail("rollout.max_tokens", cfg.rollout.max_tokens, rule)


def vocabulary_of(
    tok: Any,
    elicitation: str,
    tokens: folder.Tokens,
    *,
    chat: bool = False,
    size: int | None = None,
) -> Vocabulary:
  """Returns the ids that the compiled step needs.

  Args:
    tok: a Hugging Face tokenizer.
    elicitation: the text that asks for the answer.
    tokens: EOS and padding ids of the model's configuration; `ends.find` adds
      those of the tokenizer. Any id with a row may pad, since masks come from
      lengths.
    chat: whether prompts go through the chat template.
    size: rows of the model; None if every id has a row.

  Raises:
    ConfigError: if there is no EOS id, or the elicitation has no tokens or
      unknown ones.
  """
  ends = ends_lib.find(tok, tokens.eos_ids, chat=chat, size=size)
  if not ends:
    below = "" if size is None else f" below {size}, the rows of the model"
    raise ConfigError(
        f"tokenizer {tok.name_or_path!r}: neither it nor generation_config.json"
        f" names an EOS token{below}; set eos_token_id in"
        " generation_config.json"
    )
  pads = (tokens.pad_id, tok.pad_token_id, ends[0])
  known = [pad for pad in pads if pad is not None]
  pad_id = next(pad for pad in known if size is None or pad < size)
  return Vocabulary(ends, pad_id, elicitation_ids(tok, elicitation))


def sentence_ends(tok: Any, vocab_size: int | None) -> tuple[int, ...]:
  """Returns the tokens that end a sentence or a line, at least one.

  Args:
    tok: a Hugging Face tokenizer.
    vocab_size: number of ids of the model, which may be smaller than that of
      the tokenizer; None means the tokenizer's.

  Raises:
    ConfigError: if there is no such token.
  """
  size = min(len(tok), vocab_size or len(tok))
  texts = tok.batch_decode(
      [[i] for i in range(size)], clean_up_tokenization_spaces=False
  )
  found = tuple(i for i, text in enumerate(texts) if _ends(text))
  if not found:
    rule = (
        f"tokenizer {tok.name_or_path!r} has no token that ends a sentence or a"
        " line; use stride"
    )
    fail("probe.at", "sentences", rule)
  return found


def _ends(text: str) -> bool:
  """Returns whether the text of a token ends a sentence or a line."""
  closed = text.rstrip(" \t\"')]}*»”’」』")
  return "\n" in text or closed.endswith((".", "!", "?", "…", "。", "！", "？"))


def elicitation_ids(
    tok: Any, elicitation: str, field: str = "config.probe.elicitation"
) -> tuple[int, ...]:
  """Returns the tokens of an elicitation, at least one.

  Raises:
    ConfigError: if it has no tokens, or unknown ones; names `field`.
  """
  ids = tokenizer.encode(tok, elicitation)
  if not ids:
    raise ConfigError(
        f"{field} = {elicitation!r}: must have at least one token"
    )
  if tok.unk_token_id is not None and tok.unk_token_id in ids:
    raise ConfigError(
        f"{field} = {elicitation!r}: has text that the tokenizer does not know"
    )
  return tuple(ids)

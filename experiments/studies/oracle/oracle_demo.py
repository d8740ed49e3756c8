"""Probes of the demo's policy compared with its sampled continuations.

Its completions are too many to enumerate. So the true distribution of final
answers is estimated: the sampler continues from a prefix of the reasoning many
times, and the answers are counted.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import continuations
import jax
import jax.numpy as jnp
import numpy as np
import oracle_encoding
import oracle_measures
from oracle_measures import ESTIMATORS

from iapo_jax.config.schema import Config
from iapo_jax.core import intervals
from iapo_jax.core.types import Array, Params, Prompts, Vocabulary
from iapo_jax.data import pipeline
from iapo_jax.data import task as task_lib
from iapo_jax.rewards import token_match
from iapo_jax.rl import rollout
from iapo_jax.run import assembly, sources
from iapo_jax.run import workdir as workdir_lib

_RESAMPLES = 2000  # of the bootstrap
_BATCH = 64  # prefixes that are continued at one time


@dataclasses.dataclass(frozen=True)
class Subject:
  """A policy of the synthetic task, and m prompts.

  Attributes:
    cfg: of its run; a step has every prompt once.
    params: its weights.
    prompts: m prompts in NumPy arrays.
    vocabulary: includes the tokens that end sentences.
    tags: of its tokenizer.
  """

  cfg: Config
  params: Params
  prompts: Prompts
  vocabulary: Vocabulary
  tags: token_match.Tags


def subject_of(run: pathlib.Path, problems: int) -> Subject:
  """Loads the last checkpoint of a run and its first validation problems."""
  cfg = dataclasses.replace(
      workdir_lib.load_config(run), prompts_per_step=problems, group_size=1
  )
  parts = assembly.assemble(cfg, jax.devices()[:1], home=run)
  tok = parts.task.tokenizer
  table = parts.task.tables["validation"].prompts
  return Subject(
      cfg=parts.cfg,
      params=sources.load(parts, sources.last(run)),
      prompts=jax.tree.map(lambda x: x[:problems], table),
      vocabulary=dataclasses.replace(
          parts.task.vocabulary,
          sentence_ends=task_lib.sentence_ends(tok, parts.cfg.model.vocab_size),
      ),
      tags=token_match.tags_of(tok, parts.cfg.format),
  )


@functools.partial(
    jax.jit, static_argnames=("cfg", "vocabulary", "tags", "count")
)
def _continued(
    params: Params,
    prefixes: Prompts,
    key: Array,
    begun: Array,
    written: Array,
    *,
    cfg: Config,
    vocabulary: Vocabulary,
    tags: token_match.Tags,
    count: int,
) -> Array:
  """Samples final answers int32[n, count]: 0 for none, else the token + 1.

  The n prefixes are prompts that end in i tokens of a reasoning: `begun`
  int32[n] is i and `written` int32[n, t] are these tokens.
  """
  longest = cfg.rollout.max_tokens
  rolled = rollout.sample(
      params, prefixes, key, cfg=cfg.model, group_size=count,
      max_tokens=longest, eos_ids=vocabulary.eos_ids, pad_id=vocabulary.pad_id,
      temperature=cfg.rollout.temperature,
  )  # fmt: skip
  begun, written = (jnp.repeat(x, count, axis=0) for x in (begun, written))
  slots = jnp.arange(longest)
  at = jnp.clip(slots - begun[:, None], 0)
  later = jnp.take_along_axis(rolled.tokens, at, axis=1)
  tokens = jnp.where(slots < begun[:, None], written, later)
  # A completion is cut at the length that the policy may use.
  text = begun + rolled.lengths - rolled.ended
  none = jnp.zeros((tokens.shape[0], 1), jnp.int32)
  grades = token_match.grade_tokens(
      tokens, jnp.minimum(text, longest), none, none[:, 0],
      tags=tags, answer_tokens=1,
  )  # fmt: skip
  given = jnp.where(grades.answer_lengths > 0, grades.answers[:, 0] + 1, 0)
  return given.reshape(-1, count)


def answer_counts(
    subject: Subject,
    prompts: Prompts,
    tokens: np.ndarray,
    ends: np.ndarray,
    key: Array,
    count: int,
) -> np.ndarray:
  """Counts final answers of `count` continuations: int64[m, v + 1].

  Column 0 counts continuations without an answer.

  Args:
    subject: the policy.
    prompts: m prompts.
    tokens: int[m, t], their completions.
    ends: int[m], where each completion is cut.
    key: of the samples.
    count: continuations of each prefix.
  """
  cfg = subject.cfg
  rows = [
      [*prompts.tokens[i, : prompts.lengths[i]], *tokens[i, :end]]
      for i, end in enumerate(ends)
  ]
  width = prompts.tokens.shape[1] + tokens.shape[1]
  padded, lengths = pipeline.right_pad(rows, width, cfg.model.vocab_size - 1)
  found = []
  size = min(_BATCH, len(rows))
  for start in range(0, len(rows), size):
    at = np.arange(start, start + size) % len(rows)
    prefixes = prompts.replace(tokens=padded, lengths=lengths)
    prefixes = jax.tree.map(lambda x, at=at: x[at], prefixes)
    found.append(
        _continued(
            subject.params, prefixes, jax.random.fold_in(key, start),
            ends[at].astype(np.int32), tokens[at], cfg=cfg,
            vocabulary=subject.vocabulary, tags=subject.tags, count=count,
        )
    )  # fmt: skip
  answers = np.concatenate(found)[: len(rows)]
  kinds = np.arange(cfg.model.vocab_size + 1)
  return np.sum(answers[:, :, None] == kinds, axis=1)


def study(
    run: pathlib.Path, problems: int, count: int, seed: int
) -> dict[str, Any]:
  """Measures gap, bias and rank correlation with their intervals, in nats.

  Uses one random token of the reasoning of each problem, since problems are
  independent but tokens of one completion are not.

  Args:
    run: folder of a finished run of the synthetic task.
    problems: number of problems of the validation split.
    count: continuations of each prefix.
    seed: of everything random.

  Returns:
    Numbers by name; [mean, low, high] where there is an interval.
  """
  subject = subject_of(run, problems)
  cfg, prompts = subject.cfg, subject.prompts
  sampling, before_key, after_key = jax.random.split(jax.random.key(seed), 3)
  found = jax.device_get(
      oracle_measures.run_pipeline(
          subject.params, prompts, sampling, cfg=cfg,
          vocabulary=subject.vocabulary, tags=subject.tags, answer_tokens=1,
      )
  )  # fmt: skip
  rng = np.random.default_rng(seed)
  chosen = np.flatnonzero(found["reasoning"] > 0)
  prompts, found = jax.tree.map(lambda x: x[chosen], (prompts, found))
  after = rng.integers(1, found["reasoning"] + 1)
  counts = [
      answer_counts(subject, prompts, found["tokens"], ends, key, count)
      for ends, key in ((after - 1, before_key), (after, after_key))
  ]
  own = np.where(found["answer_lengths"] > 0, found["answers"][:, 0] + 1, 0)
  true = _true(counts, prompts.gold[:, 0] + 1, own, count)
  rows = np.arange(len(chosen))
  estimators = {}
  for name in ESTIMATORS:
    ours = found["information"][name][rows, after - 1]
    estimators[name] = {
        "information": _interval(ours),
        "true": _interval(true[name]),
        "bias": _interval(ours - true[name]),
        "correlation": _bootstrap(ours, true[name], rng),
        "probe_tokens": float(np.mean(found["spent"][name])),
    }
  return {
      "problems": len(chosen),
      "continuations": count,
      "accuracy": float(np.mean(own == prompts.gold[:, 0] + 1)),
      "mean_reasoning_tokens": float(np.mean(found["reasoning"])),
      "gap": _gaps(subject, prompts, found["tokens"], after, counts[1]),
      "estimators": estimators,
  }


def _true(
    counts: list[np.ndarray], gold: np.ndarray, own: np.ndarray, draws: int
) -> dict[str, np.ndarray]:
  """Estimates what the chosen token really revealed, [m] by estimator."""
  rows = np.arange(len(gold))
  before, after = (continuations.entropy_of_counts(x) for x in counts)
  found = dict.fromkeys(ESTIMATORS, before - after)
  for name, answer in (("gold", gold), ("own", own)):
    before, after = (
        continuations.log_chance_of_counts(x[rows, answer], draws)
        for x in counts
    )
    found[name] = after - before
  return found


def _gaps(
    subject: Subject,
    prompts: Prompts,
    tokens: np.ndarray,
    ends: np.ndarray,
    counts: np.ndarray,
) -> dict[str, list[float]]:
  """Compares elicited with final answers, if there is one, at m texts.

  The cross entropy of KL is an unbiased mean over the draws, and the entropy
  is nearly unbiased (`continuations.entropy_of_counts`).
  """
  model = subject.cfg.model
  texts = [
      (*prompts.tokens[i, : prompts.lengths[i]].tolist(),
       *tokens[i, :end].tolist())
      for i, end in enumerate(ends)
  ]  # fmt: skip
  given = counts[:, 1:]
  there = np.sum(given, axis=1) > 0
  share = given[there] / np.sum(given[there], axis=1, keepdims=True)
  final = continuations.entropy_of_counts(given[there])
  found = {
      "no_answer": _interval(counts[:, 0] / np.sum(counts, axis=1)),
      "final_entropy": _interval(final),
  }
  layer = oracle_encoding.first_layer(subject.params, model)
  for name, (params, cfg) in (
      ("first", (subject.params, model)), ("one_layer", layer),
  ):  # fmt: skip
    asked = oracle_encoding.elicited_of(
        params, texts, subject.vocabulary.elicitation, 1, cfg
    )
    crossed = -np.sum(share * asked.first[there], axis=1)
    found[f"kl_{name}"] = _interval(crossed - final)
    found[f"elicited_entropy_{name}"] = _interval(asked.first_entropy)
    found[f"entropy_{name}"] = _interval(asked.first_entropy[there] - final)
  return found


def _interval(values: np.ndarray) -> list[float]:
  found = intervals.of_mean(values.tolist())
  return [found.mean, found.low, found.high]


def _bootstrap(
    ours: np.ndarray, theirs: np.ndarray, rng: np.random.Generator
) -> list[float]:
  """Returns Spearman's correlation and its bootstrapped 95 % interval."""
  drawn = rng.integers(len(ours), size=(_RESAMPLES, len(ours)))
  values = [
      oracle_measures.correlation(ours[at], theirs[at]) for at in drawn
  ]
  low, high = np.quantile(values, [0.025, 0.975])
  return [oracle_measures.correlation(ours, theirs), float(low), float(high)]

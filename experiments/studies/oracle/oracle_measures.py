"""Measures of one small policy: its probes compared with the truth."""

import dataclasses
import functools
from typing import Any

import continuations
import jax
import jax.numpy as jnp
import numpy as np
import oracle_encoding
import oracle_policies
from oracle_encoding import Elicited
from oracle_policies import (
  ANSWER_CLOSE,
  LONGEST,
  TAGS,
  THINK_CLOSE,
  VOCABULARY,
  Kind,
)
from scipy import stats

from iapo_jax.config.model import ModelConfig
from iapo_jax.config.schema import Config
from iapo_jax.core.types import Array, Params, Prompts, Vocabulary
from iapo_jax.rewards import token_match
from iapo_jax.rewards.token_match import Tags
from iapo_jax.rl import mi, train_step

# Changes to the defaults of `probe`.
ESTIMATORS: dict[str, dict[str, Any]] = {
    "entropy": {},
    "gold": {"estimator": "gold"},
    "own": {"estimator": "own"},
    "answer_entropy": {"estimator": "answer_entropy"},
    "stride 2": {"stride": 2},
    "sentences": {"at": "sentences"},
    "one layer": {"layers": 1},
}
_V = len(oracle_policies.WORDS)


def settings_of(cfg: Config, name: str, answer_tokens: int) -> Config:
  """Returns the configuration with the probe of an estimator."""
  probe = dataclasses.replace(
      cfg.probe, answer_tokens=answer_tokens, **ESTIMATORS[name]
  )
  return dataclasses.replace(cfg, probe=probe)


# Optimisation would take longer than these programs run.
_QUICK = {"xla_backend_optimization_level": 0}


@functools.partial(
    jax.jit,
    static_argnames=("cfg", "vocabulary", "tags", "answer_tokens"),
    compiler_options=_QUICK,
)
def run_pipeline(
    params: Params,
    prompts: Prompts,
    key: Array,
    *,
    cfg: Config,
    vocabulary: Vocabulary,
    tags: Tags,
    answer_tokens: int,
) -> dict[str, Any]:
  """Samples and grades a rollout, and probes it with every estimator.

  Returns:
    `tokens`, `lengths`, `logprobs`, `answers` and `answer_lengths` as in
    `Rollout` and `Grades`; `reasoning` lengths; by estimator `information`
    D [b, t] and `spent` probe tokens [b].
  """
  rolled = train_step.sample(params, prompts, key, cfg, vocabulary)
  grades = token_match.make_grader(tags, answer_tokens)(rolled, prompts)
  slots = jnp.arange(cfg.rollout.max_tokens)
  mask = slots < grades.reasoning_lengths[:, None]
  information, spent = {}, {}
  for name in ESTIMATORS:
    chosen = settings_of(cfg, name, answer_tokens)
    probe = train_step.run_probes(
        params, rolled, grades, prompts, chosen, vocabulary
    )
    uncertain = mi.uncertainty(probe, estimator=chosen.probe.estimator)
    information[name] = mi.realised_information(uncertain, mask)
    spent[name] = probe.spent
  return {
      "tokens": rolled.tokens,
      "lengths": rolled.lengths,
      "logprobs": rolled.logprobs,
      "reasoning": grades.reasoning_lengths,
      "answers": grades.answers,
      "answer_lengths": grades.answer_lengths,
      "information": information,
      "spent": spent,
  }


@dataclasses.dataclass(frozen=True)
class Ends:
  """The answers that texts give if they end there; policies share them.

  Attributes:
    numbers: int[n_i] for i = 0..t, the answer of each text; 0 is no answer.
    answers: the tokens of each answer; () for none.
  """

  numbers: list[np.ndarray]
  answers: list[tuple[int, ...]]


def ends_of(kind: Kind, longest: int = LONGEST) -> Ends:
  """Grades all texts of up to `longest` tokens with the grader of training."""
  levels = [continuations.texts(_V, i) for i in range(longest + 1)]
  tokens = np.concatenate([
      np.pad(texts, ((0, 0), (0, longest - texts.shape[1])))
      for texts in levels
  ])
  counts = [len(texts) for texts in levels]
  lengths = np.repeat(np.arange(longest + 1), counts)
  none = np.zeros((len(tokens), 1), np.int32)
  grades = _grade(
      tokens, lengths, none, none[:, 0],
      tags=TAGS, answer_tokens=kind.answer_tokens,
  )  # fmt: skip
  codes = _codes(grades.answers, grades.answer_lengths)
  found = np.split(codes, np.cumsum(counts)[:-1])
  known = np.unique(codes)
  return Ends(
      [np.searchsorted(known, codes) for codes in found],
      [_tokens_of(code) for code in known],
  )


_grade = jax.jit(
    token_match.grade_tokens, static_argnames=("tags", "answer_tokens")
)


def _codes(answers: Array, lengths: Array) -> np.ndarray:
  """Returns a number for each answer of up to two tokens; 0 for none."""
  answers, lengths = np.asarray(answers), np.asarray(lengths)
  codes = np.zeros(len(lengths), np.int64)
  for i in range(answers.shape[1]):
    digit = np.where(i < lengths, answers[:, i] + 1, 0)
    codes += digit * (_V + 1) ** i
  return codes


def _tokens_of(code: int) -> tuple[int, ...]:
  tokens = []
  while code:
    code, digit = divmod(int(code), _V + 1)
    tokens.append(digit - 1)
  return tuple(tokens)


@dataclasses.dataclass(frozen=True)
class Truth:
  """The true distributions of a policy after a prompt, by enumeration.

  Attributes:
    chances: float64[n_i, v], i < t, of the next token.
    answers: float64[n_i, a], of the final answer.
    information: float64[n_i], i < t, of the next token on the final answer.
  """

  chances: list[np.ndarray]
  answers: list[np.ndarray]
  information: list[np.ndarray]


def truth_of(
    params: Params, prompt: np.ndarray, ends: Ends, cfg: ModelConfig
) -> Truth:
  """Enumerates all texts of a policy after the prompt int[p]."""
  longest = len(ends.numbers) - 1
  texts = continuations.texts(_V, longest - 1)
  whole = np.concatenate([np.tile(prompt, (len(texts), 1)), texts], axis=1)
  logp = oracle_encoding.log_distributions(params, whole, cfg)
  logp = logp[:, len(prompt) - 1 :]
  # Texts with a common prefix share its chances; take those of the first.
  chances = [
      np.exp(logp[:: (_V - 1) ** (longest - 1 - i), i])
      for i in range(longest)
  ]
  answers = continuations.final_answers(
      chances, ends.numbers, count=len(ends.answers)
  )
  return Truth(
      chances, answers, continuations.next_information(chances, answers)
  )


def expected_by_position(truth: Truth) -> list[float]:
  """Returns E I(O_{i+1}; A | o_1..o_i), i < t, with 0 after reasoning."""
  reached = continuations.reached(truth.chances)
  found = []
  for i, information in enumerate(truth.information):
    thinking = np.all(continuations.texts(_V, i) != THINK_CLOSE, axis=1)
    found.append(float(np.sum(reached[i] * thinking * information)))
  return found


def correlation(ours: np.ndarray, theirs: np.ndarray) -> float:
  """Returns Spearman's rank correlation; 0 if one of them is constant."""
  if not np.ptp(ours) or not np.ptp(theirs):
    return 0.0
  return float(stats.spearmanr(ours, theirs).statistic)


@dataclasses.dataclass(frozen=True)
class Visited:
  """The n different reasonings that the rows of a prompt pass.

  Attributes:
    texts: the tokens of each reasoning.
    at: int[b, t + 1], the index of o_1..o_i; meaningless beyond R.
    passed: int[n], the number of rows that pass each reasoning.
    true: float64[n, a], the distribution of the final answer.
  """

  texts: list[tuple[int, ...]]
  at: np.ndarray
  passed: np.ndarray
  true: np.ndarray


def visited_of(
    tokens: np.ndarray, reasoning: np.ndarray, truth: Truth
) -> Visited:
  """Finds what rows int[b, t] pass in their first `reasoning` int[b] tokens."""
  numbers = continuations.text_numbers(tokens, _V)
  slots = np.arange(numbers.shape[1])
  there = slots <= reasoning[:, None]
  # A key that is unique among texts of all lengths.
  keys = np.where(there, numbers * numbers.shape[1] + slots, 0)
  unique, first, at = np.unique(keys, return_index=True, return_inverse=True)
  rows = first // numbers.shape[1]
  texts = [
      tuple(tokens[row, :length].tolist())
      for row, length in zip(rows, unique % numbers.shape[1], strict=True)
  ]
  at = at.reshape(keys.shape)
  return Visited(
      texts=texts,
      at=at,
      passed=np.bincount(at[there], minlength=len(texts)),
      true=np.stack([
          truth.answers[len(text)][key // numbers.shape[1]]
          for text, key in zip(texts, unique, strict=True)
      ]),
  )


def gaps(
    visited: Visited, whole: Elicited, shallow: Elicited, ends: Ends
) -> dict[str, np.ndarray]:
  """Measures how far elicited answers are from final ones, at n texts.

  Returns KL(final ‖ elicited) and H(elicited) − H(final), each for the first
  token and for whole answers. Final answers are conditioned on that there is
  one; the result is NaN where no answer is possible any more.
  """
  with np.errstate(invalid="ignore"):
    given = visited.true[:, 1:] / np.sum(
        visited.true[:, 1:], axis=1, keepdims=True
    )
  firsts = np.array([answer[0] for answer in ends.answers[1:]])
  by_first = given @ (firsts[:, None] == np.arange(_V))
  asked = whole.chance_of(ends.answers, ANSWER_CLOSE)[:, 1:]
  kl, h = continuations.divergence, continuations.entropy
  return {
      "kl_first": kl(by_first, np.exp(whole.first)),
      "kl_whole": kl(given, asked),
      "kl_one_layer": kl(by_first, np.exp(shallow.first)),
      "entropy_first": whole.first_entropy - h(by_first),
      "entropy_whole": whole.entropy - h(given),
      "no_answer": visited.true[:, 0],
  }


def _of_prompt(
    params: Params,
    prompt: np.ndarray,
    gold: tuple[int, ...],
    found: dict[str, Any],
    kind: Kind,
    ends: Ends,
    cfg: ModelConfig,
) -> dict[str, Any]:
  """Measures the reasoning tokens of all rows of one prompt."""
  truth = truth_of(params, prompt, ends, cfg)
  visited = visited_of(found["tokens"], found["reasoning"], truth)
  asked = [(*prompt.tolist(), *text) for text in visited.texts]
  whole = oracle_encoding.elicited_of(
      params, asked, VOCABULARY.elicitation, kind.answer_tokens, cfg
  )
  layer, layer_cfg = oracle_encoding.first_layer(params, cfg)
  shallow = oracle_encoding.elicited_of(
      layer, asked, VOCABULARY.elicitation, 1, layer_cfg
  )
  open_ = continuations.entropy(visited.true)
  with np.errstate(divide="ignore"):
    surprise = -np.log(visited.true)
  information = {name: [] for name in ESTIMATORS}
  true = {name: [] for name in ESTIMATORS}
  largest = 0.0
  codes = _codes(found["answers"], found["answer_lengths"])
  numbers = {_codes_of(answer): i for i, answer in enumerate(ends.answers)}
  owns = {code: ends.answers[numbers[code]] for code in np.unique(codes)}
  tables = {
      code: oracle_encoding.uncertainties(whole, shallow, gold, own)
      for code, own in owns.items()
  }
  for row, length in enumerate(found["reasoning"]):
    at, code = visited.at[row, : length + 1], codes[row]
    goal = {"gold": numbers[_codes_of(gold)], "own": numbers[code]}
    for name in ESTIMATORS:
      ours = found["information"][name][row]
      marks = oracle_encoding.probed(
          name, found["tokens"][row, :length], VOCABULARY.sentence_ends
      )
      theirs = np.interp(
          np.arange(length + 1), marks, tables[code][name][at[marks]]
      )
      difference = ours[:length] + np.diff(theirs)
      largest = max(largest, np.abs(difference).max(initial=0.0))
      final = surprise[at, goal[name]] if name in goal else open_[at]
      information[name].append(ours[:length])
      # An answer that has become impossible gives ∞ or NaN.
      with np.errstate(invalid="ignore"):
        true[name].append(-np.diff(final))
  return {
      "information": {k: np.concatenate(x) for k, x in information.items()},
      "true": {k: np.concatenate(x) for k, x in true.items()},
      "gaps": gaps(visited, whole, shallow, ends),
      "passed": visited.passed,
      "expected": expected_by_position(truth),
      "differences": [largest, _sampled_difference(found, truth)],
  }


def _codes_of(answer: tuple[int, ...]) -> int:
  return sum((token + 1) * (_V + 1) ** i for i, token in enumerate(answer))


def _sampled_difference(found: dict[str, Any], truth: Truth) -> float:
  """Returns the largest error of the rollout's log-probabilities."""
  numbers = continuations.text_numbers(found["tokens"], _V)
  largest = 0.0
  for i, chance in enumerate(truth.chances):
    rows = np.flatnonzero(found["lengths"] > i)
    expected = chance[numbers[rows, i], found["tokens"][rows, i]]
    difference = found["logprobs"][rows, i] - np.log(expected)
    largest = max(largest, np.abs(difference).max(initial=0.0))
  return largest


def measure(
    params: Params, kind: Kind, ends: Ends, seed: int, *, cfg: Config
) -> dict[str, Any]:
  """Returns all reported numbers of a policy, in nats per reasoning token.

  `ends` are those of the kind; `seed` is that of the rollout. Numbers of an
  estimator are under its name.
  """
  prompts = oracle_policies.prompts_of(kind)
  found = jax.device_get(
      run_pipeline(
          params, prompts, jax.random.key(seed), cfg=cfg,
          vocabulary=VOCABULARY, tags=TAGS, answer_tokens=kind.answer_tokens,
      )
  )  # fmt: skip
  parts = [
      _of_prompt(
          params,
          np.asarray(prompts.tokens[q]),
          tuple(np.asarray(prompts.gold[q]).tolist()),
          jax.tree.map(
              lambda x, q=q: x[q * cfg.group_size : (q + 1) * cfg.group_size],
              found,
          ),
          kind, ends, cfg.model,
      )
      for q in range(len(prompts.tokens))
  ]  # fmt: skip
  joined = {
      what: {
          name: np.concatenate([part[what][name] for part in parts])
          for name in parts[0][what]
      }
      for what in ("information", "true", "gaps")
  }
  passed = np.concatenate([part["passed"] for part in parts])
  return {
      "largest_difference": max(part["differences"][0] for part in parts),
      "largest_logprob_difference": max(
          part["differences"][1] for part in parts
      ),
      "expected_information": np.mean(
          [part["expected"] for part in parts], axis=0
      ),
      "gap": {
          name: _weighted(values, passed)
          for name, values in joined["gaps"].items()
      },
      "estimators": {
          name: compared(joined["information"][name], joined["true"][name])
          | {"probe_tokens": np.mean(found["spent"][name])}
          for name in ESTIMATORS
      },
  }


def _weighted(values: np.ndarray, weights: np.ndarray) -> float:
  """Returns the weighted mean of the finite values."""
  there = np.isfinite(values)
  return float(np.average(values[there], weights=weights[there]))


def compared(ours: np.ndarray, true: np.ndarray) -> dict[str, float]:
  """Compares estimates with the truth, leaving out infinite truths."""
  there = np.isfinite(true)
  ours, true = ours[there], true[there]
  return {
      "information": np.mean(ours),
      "true": np.mean(true),
      "bias": np.mean(ours - true),
      "correlation": correlation(ours, true),
      "left_out": 1 - np.mean(there),
  }

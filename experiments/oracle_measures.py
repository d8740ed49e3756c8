"""One policy: what its probes say, and what is true of it.

The pipeline of training samples, grades and probes. Beside it stands a second
encoding that shares nothing with it but the decoder: whole texts from position
0, without a cache, a group or a chunk, all answers written down.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle_policies
from oracle_policies import EOS, LONGEST, TAGS, THINK_CLOSE, VOCABULARY, Kind
from scipy import stats

from iapo_jax import continuations, mi, train_step
from iapo_jax.config import Config
from iapo_jax.model_config import ModelConfig
from iapo_jax.models import head, transformer
from iapo_jax.rewards import token_match
from iapo_jax.types import Array, Params, Prompts

# What changes against the defaults of `probe`.
ESTIMATORS: dict[str, dict[str, Any]] = {
    "entropy": {},
    "gold": {"estimator": "gold"},
    "own": {"estimator": "own"},
    "answer_entropy": {"estimator": "answer_entropy"},
    "stride 2": {"stride": 2},
    "sentences": {"at": "sentences"},
    "one layer": {"layers": 1},
}
POINTWISE = ("gold", "own")
_V = len(oracle_policies.WORDS)
_BATCH = 8192  # texts encoded at one time


def settings_of(cfg: Config, name: str, answer_tokens: int) -> Config:
  """The configuration with the probe of an estimator."""
  probe = dataclasses.replace(
      cfg.probe, answer_tokens=answer_tokens, **ESTIMATORS[name]
  )
  return dataclasses.replace(cfg, probe=probe)


@functools.partial(jax.jit, static_argnames=("cfg", "answer_tokens"))
def run_pipeline(
    params: Params,
    prompts: Prompts,
    key: Array,
    *,
    cfg: Config,
    answer_tokens: int,
) -> dict[str, Any]:
  """A rollout with its grades, and what every estimator says of it.

  Args:
    params: of the policy.
    prompts: q prompts.
    key: of the rollout.
    cfg: of all estimators.
    answer_tokens: of an answer.

  Returns:
    `tokens`, `lengths`, `logprobs`, `reasoning`, `answers`, `answer_lengths`
    as the types of the same fields; D [b, t] and probe tokens [b] by estimator.
  """
  rolled = train_step.sample(params, prompts, key, cfg, VOCABULARY)
  grades = token_match.make_grader(TAGS, answer_tokens)(rolled, prompts)
  slots = jnp.arange(LONGEST)
  mask = slots < grades.reasoning_lengths[:, None]
  information, spent = {}, {}
  for name in ESTIMATORS:
    chosen = settings_of(cfg, name, answer_tokens)
    probe = train_step.run_probes(
        params, rolled, grades, prompts, chosen, VOCABULARY
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


@functools.partial(jax.jit, static_argnames="cfg")
def _log_distributions(
    params: Params, tokens: Array, cfg: ModelConfig
) -> Array:
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  hidden, _ = transformer.extend(params, tokens, positions, cfg=cfg)
  return jax.nn.log_softmax(head.logits(params, hidden, cfg=cfg))


def log_distributions(
    params: Params, tokens: np.ndarray, cfg: ModelConfig
) -> np.ndarray:
  """log π after every token of whole texts: float64[n, x, v] of int[n, x]."""
  size = min(_BATCH, 1 << (len(tokens) - 1).bit_length())
  found = []
  for start in range(0, len(tokens), size):
    part = tokens[start : start + size]
    filled = np.pad(part, ((0, size - len(part)), (0, 0)))
    found.append(
        np.asarray(_log_distributions(params, filled, cfg))[: len(part)]
    )
  return np.concatenate(found).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Ends:
  """Which answer every text gives if it ends there; the same for all policies.

  Attributes:
    numbers: int[n_i] for i = 0..t; 0 is no answer.
    answers: the tokens of each; () for none.
  """

  numbers: list[np.ndarray]
  answers: list[tuple[int, ...]]


def ends_of(kind: Kind) -> Ends:
  """By the grader of training, of all texts."""
  found = []
  for length in range(LONGEST + 1):
    tokens = continuations.texts(_V, length)
    tokens = np.pad(tokens, ((0, 0), (0, LONGEST - length)))
    none = np.zeros((len(tokens), 1), np.int32)
    grades = _grade(
        tokens, np.full(len(tokens), length), none, none[:, 0],
        tags=TAGS, answer_tokens=kind.answer_tokens,
    )  # fmt: skip
    found.append(_codes(grades.answers, grades.answer_lengths))
  known = np.unique(np.concatenate(found))
  return Ends(
      [np.searchsorted(known, codes) for codes in found],
      [_tokens_of(code) for code in known],
  )


_grade = jax.jit(
    token_match.grade_tokens, static_argnames=("tags", "answer_tokens")
)


def _codes(answers: Array, lengths: Array) -> np.ndarray:
  """A number for each answer of up to two tokens: 0 is none."""
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
  """What is true of a policy after a prompt, by enumeration.

  Attributes:
    chances: float64[n_i, v], i < t.
    answers: float64[n_i, a], of the answers that it ends with.
    information: float64[n_i], i < t, of the next token.
  """

  chances: list[np.ndarray]
  answers: list[np.ndarray]
  information: list[np.ndarray]


def truth_of(
    params: Params, prompt: np.ndarray, ends: Ends, cfg: ModelConfig
) -> Truth:
  """All texts of a policy after int[p]."""
  texts = continuations.texts(_V, LONGEST - 1)
  whole = np.concatenate([np.tile(prompt, (len(texts), 1)), texts], axis=1)
  logp = log_distributions(params, whole, cfg)[:, len(prompt) - 1 :]
  # Of the texts that begin alike the first one stands for what they share.
  chances = [
      np.exp(logp[:: (_V - 1) ** (LONGEST - 1 - i), i])
      for i in range(LONGEST)
  ]
  answers = continuations.final_answers(
      chances, ends.numbers, count=len(ends.answers)
  )
  return Truth(
      chances, answers, continuations.next_information(chances, answers)
  )


@dataclasses.dataclass(frozen=True)
class Elicited:
  """What a policy says if it must answer at once, after n texts.

  Attributes:
    first: float64[n, v], log-probabilities of an answer's first token.
    second: float64[n, v, v], of its second after each first; None where
      answers have one token.
  """

  first: np.ndarray
  second: np.ndarray | None

  @property
  def first_entropy(self) -> np.ndarray:
    """Of the first token: float64[n]."""
    return continuations.entropy(np.exp(self.first))

  @property
  def entropy(self) -> np.ndarray:
    """Of whole answers: float64[n]."""
    if self.second is None:
      return self.first_entropy
    later = continuations.entropy(np.exp(self.second))
    return self.first_entropy + np.sum(np.exp(self.first) * later, axis=1)

  def log_chance(self, answer: tuple[int, ...]) -> np.ndarray:
    """log π of the first tokens of an answer: float64[n]; 0 of none."""
    found = np.zeros(len(self.first))
    if answer:
      found = found + self.first[:, answer[0]]
    if answer[1:]:
      found = found + self.second[:, answer[0], answer[1]]
    return found

  def along(self, answer: tuple[int, ...]) -> np.ndarray:
    """Σ_j H(a_j | a_<j) of an answer: float64[n]."""
    found = np.zeros(len(self.first))
    if answer:
      found = found + self.first_entropy
    if answer[1:]:
      found = found + continuations.entropy(np.exp(self.second[:, answer[0]]))
    return found

  def chance_of(self, answers: list[tuple[int, ...]]) -> np.ndarray:
    """float64[n, a], of whole answers; one that is short must be closed."""
    columns = []
    for answer in answers:
      column = np.exp(self.log_chance(answer)) * bool(answer)
      if self.second is not None and len(answer) == 1:
        closing = self.second[:, answer[0], oracle_policies.ANSWER_CLOSE]
        column = column * np.exp(closing)
      columns.append(column)
    return np.stack(columns, axis=1)


def elicited_of(
    params: Params,
    prompt: np.ndarray,
    texts: list[tuple[int, ...]],
    answer_tokens: int,
    cfg: ModelConfig,
) -> Elicited:
  """Asks after every text, each question a text of its own."""
  firsts = range(_V) if answer_tokens == 2 else (None,)
  questions = [
      [*prompt, *text, *VOCABULARY.elicitation]
      + ([] if first is None else [first])
      for text in texts
      for first in firsts
  ]
  lengths = np.array([len(question) for question in questions])
  width = len(prompt) + LONGEST + len(VOCABULARY.elicitation) + 1
  padded = np.array([q + [EOS] * (width - len(q)) for q in questions])
  logp = log_distributions(params, padded, cfg)
  rows, last = np.arange(len(questions)), lengths - 1
  if answer_tokens == 1:
    return Elicited(logp[rows, last], None)
  shape = (len(texts), _V, _V)
  return Elicited(
      logp[rows, last - 1].reshape(shape)[:, 0],
      logp[rows, last].reshape(shape),
  )


def first_layer(params: Params, cfg: ModelConfig) -> tuple[Params, ModelConfig]:
  """The decoder of one layer."""
  layers = jax.tree.map(lambda x: x[:1], params["layers"])
  return params | {"layers": layers}, dataclasses.replace(cfg, num_layers=1)


def uncertainties(
    whole: Elicited, shallow: Elicited, gold: tuple[int, ...], own: tuple
) -> dict[str, np.ndarray]:
  """U of every estimator, as docs/method.md defines it, after n texts."""
  return {
      "entropy": whole.first_entropy,
      "gold": -whole.log_chance(gold),
      "own": -whole.log_chance(own),
      "answer_entropy": whole.along(own),
      "stride 2": whole.first_entropy,
      "sentences": whole.first_entropy,
      "one layer": shallow.first_entropy,
  }


def probed(name: str, tokens: np.ndarray) -> np.ndarray:
  """The probed positions of a reasoning int[R]; between them lines."""
  last = len(tokens)
  inner = range(1, last)
  if name == "stride 2":
    inner = range(2, last, 2)
  if name == "sentences":
    inner = 1 + np.flatnonzero(tokens[: last - 1] == oracle_policies.STOP)
  return np.unique([0, *inner, last])


def expected_by_position(truth: Truth) -> list[float]:
  """E I(O_{i+1}; A | o_1..o_i) over reasoning, i < t; 0 where it is over."""
  reached = continuations.reached(truth.chances)
  found = []
  for i, information in enumerate(truth.information):
    thinking = np.all(continuations.texts(_V, i) != THINK_CLOSE, axis=1)
    found.append(float(np.sum(reached[i] * thinking * information)))
  return found


def correlation(ours: np.ndarray, theirs: np.ndarray) -> float:
  """Spearman's rank correlation; 0 where one of them has no spread."""
  if not np.ptp(ours) or not np.ptp(theirs):
    return 0.0
  return float(stats.spearmanr(ours, theirs).statistic)


@dataclasses.dataclass(frozen=True)
class Visited:
  """The n different reasonings that the rows of a prompt pass.

  Attributes:
    texts: of each.
    at: int[b, t + 1], which one o_1..o_i is; beyond R it means nothing.
    passed: int[n], by how many rows.
    true: float64[n, a], of the answers that the policy ends with.
  """

  texts: list[tuple[int, ...]]
  at: np.ndarray
  passed: np.ndarray
  true: np.ndarray


def visited_of(
    tokens: np.ndarray, reasoning: np.ndarray, truth: Truth
) -> Visited:
  """What rows int[b, t] pass in their first int[b] tokens."""
  numbers = continuations.text_numbers(tokens, _V)
  slots = np.arange(numbers.shape[1])
  there = slots <= reasoning[:, None]
  # One number for texts of all lengths.
  keys = np.where(there, numbers * numbers.shape[1] + slots, 0)
  unique, first, at = np.unique(keys, return_index=True, return_inverse=True)
  rows, lengths = np.divmod(first, numbers.shape[1])
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
  """How far elicited answers are from final ones, at n texts.

  KL(final ‖ elicited) and H(elicited) − H(final), of final answers given that
  there is one; of the first token and of whole answers.
  """
  given = visited.true[:, 1:] / np.sum(visited.true[:, 1:], 1, keepdims=True)
  firsts = np.array([answer[0] for answer in ends.answers[1:]])
  by_first = given @ (firsts[:, None] == np.arange(_V))
  asked = whole.chance_of(ends.answers)[:, 1:]
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
  """One prompt's tokens of reasoning, one after the other."""
  truth = truth_of(params, prompt, ends, cfg)
  visited = visited_of(found["tokens"], found["reasoning"], truth)
  ask = functools.partial(elicited_of, texts=visited.texts)
  whole = ask(params, prompt, answer_tokens=kind.answer_tokens, cfg=cfg)
  layer, layer_cfg = first_layer(params, cfg)
  shallow = ask(layer, prompt, answer_tokens=1, cfg=layer_cfg)
  open_ = continuations.entropy(visited.true)
  surprise = -np.log(visited.true)
  information = {name: [] for name in ESTIMATORS}
  true = {name: [] for name in ESTIMATORS}
  largest = 0.0
  codes = _codes(found["answers"], found["answer_lengths"])
  numbers = {_codes_of(answer): i for i, answer in enumerate(ends.answers)}
  owns = {code: ends.answers[numbers[code]] for code in np.unique(codes)}
  tables = {
      code: uncertainties(whole, shallow, gold, own)
      for code, own in owns.items()
  }
  for row, length in enumerate(found["reasoning"]):
    at, code = visited.at[row, : length + 1], codes[row]
    goal = {"gold": numbers[_codes_of(gold)], "own": numbers[code]}
    for name in ESTIMATORS:
      ours = found["information"][name][row]
      marks = probed(name, found["tokens"][row, :length])
      theirs = np.interp(
          np.arange(length + 1), marks, tables[code][name][at[marks]]
      )
      difference = ours[:length] + np.diff(theirs)
      largest = max(largest, np.abs(difference).max(initial=0.0))
      final = surprise[at, goal[name]] if name in goal else open_[at]
      information[name].append(ours[:length])
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
  """Largest of the rollout's log-probabilities from the enumerated ones."""
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
  """All that is reported of a policy; nats per token of reasoning.

  Args:
    params: of the policy.
    kind: of its task.
    ends: of the kind.
    seed: of the rollout.
    cfg: of all policies.

  Returns:
    Numbers by name; those of an estimator under its name.
  """
  prompts = oracle_policies.prompts_of(kind)
  found = jax.device_get(
      run_pipeline(
          params, prompts, jax.random.key(seed), cfg=cfg,
          answer_tokens=kind.answer_tokens,
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
          name: np.average(values, weights=passed)
          for name, values in joined["gaps"].items()
      },
      "estimators": {
          name: {
              "information": np.mean(joined["information"][name]),
              "true": np.mean(joined["true"][name]),
              "bias": np.mean(
                  joined["information"][name] - joined["true"][name]
              ),
              "correlation": correlation(
                  joined["information"][name], joined["true"][name]
              ),
              "probe_tokens": np.mean(found["spent"][name]),
          }
          for name in ESTIMATORS
      },
  }

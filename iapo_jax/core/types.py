"""The pytrees that flow from prompts to a gradient.

Shape letters, the same everywhere:

  q  prompts                      p  prompt length (padded)
  g  samples of one prompt        t  completion length (padded)
  b  sequences, b = q * g         c  elicitation length
  l  layers                       d  model width
  n  query heads                  k  key/value heads
  h  head width                   f  MLP width
  v  vocabulary                   a  gold answer length (padded)
  x  new tokens of one `extend`   s  slots of one key/value segment
  r  rows of a shared segment

Sequences are prompt-major: row `i` belongs to prompt `i // g`. Everything is
right-padded, and every mask is derived from a length.
"""

import dataclasses
import enum
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

Array = jax.Array
Params = Any
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """The token ids that a compiled step needs.

  Attributes:
    eos_ids: each of these ids ends a completion.
    pad_id: fills rows after their end.
    elicitation: the tokens that end the reasoning and ask for the answer.
    sentence_ends: the tokens that end a sentence or a line.
  """

  eos_ids: tuple[int, ...]
  pad_id: int
  elicitation: tuple[int, ...]
  sentence_ends: tuple[int, ...] = ()


@struct.dataclass
class Prompts:
  """A batch of prompts with their gold answers.

  Attributes:
    tokens: int32[q, p], right-padded.
    lengths: int32[q], at least 1.
    gold: int32[q, a], right-padded.
    gold_lengths: int32[q], at least 1.
    rows: int32[q], the index of each prompt among all problems of the run:
      those of train, validation and test, in this order. The host finds by it
      what the device does not hold.
  """

  tokens: Array
  lengths: Array
  gold: Array
  gold_lengths: Array
  rows: Array


@struct.dataclass
class KVSegment:
  """Keys and values that new tokens may attend to.

  A segment of `r` rows serves `b` rows of new tokens where `r` divides `b`:
  consecutive rows share one segment row, and nothing is copied per row. With
  `rows`, rows of new tokens come in any order; each layer then copies the
  segment rows.

  Attributes:
    keys: [l, r, k, h, s] in the compute dtype, rotary position applied. Slots
      are last because attention reads keys in this layout.
    values: [l, r, k, s, h].
    visible: bool[m, s], the slots that a row of new tokens sees, without gaps.
      `m` divides `b`; consecutive rows of new tokens share one row of it.
    positions: int32[r, s], of the slots; sliding windows use them.
    rows: int32[b], the segment row that each row of new tokens reads, counted
      within its data shard; `m` is then `r`.
  """

  keys: Array
  values: Array
  visible: Array
  positions: Array
  rows: Array | None = None


Context = tuple[KVSegment, ...]


@struct.dataclass
class TokenStatistics:
  """Statistics of one target token under a next-token distribution.

  Attributes:
    logprob: fp32, in nats.
    entropy: fp32, of the distribution, in nats.
    hit: bool, whether no token is more probable than the target.
  """

  logprob: Array
  entropy: Array
  hit: Array


@struct.dataclass
class AnswerStatistics:
  """Results of early-exit probes after the prefixes of completions.

  Attributes:
    logprob: fp32[b, t + 1], of the gold answer's first token, in nats.
    entropy: fp32[b, t + 1], of the distribution of that token, in nats.
    hit: bool[b, t + 1], whether no token is more probable.
    answer: sums of log-probability and entropy along a whole answer, each token
      given those before it, and whether all are hits; None if the estimator
      needs no answer.
    spent: int32[b], tokens that went through the network for each sequence.
  """

  logprob: Array
  entropy: Array
  hit: Array
  answer: TokenStatistics | None
  spent: Array


@struct.dataclass
class Rollout:
  """Sampled completions, and what later phases reuse of them.

  Attributes:
    tokens: int32[b, t], `pad_id` after the end.
    lengths: int32[b], tokens of each completion, its EOS included.
    ended: bool[b], whether the last token is an EOS.
    logprobs: fp32[b, t], of the tokens under the policy; 0 after the end.
    entropies: fp32[b, t], of the distributions sampled from; 0 after the end.
    context: the prompt segment (q rows, without the last prompt token) and
      the completion segment (b rows, t + 1 slots: slot 0 holds the last prompt
      token, slot i the completion's token i).
    planted: bool[b, t], the tokens that the environment wrote; None if it
      writes none.
  """

  tokens: Array
  lengths: Array
  ended: Array
  logprobs: Array
  entropies: Array
  context: Context
  planted: Array | None = None

  @property
  def mask(self) -> Array:
    """bool[b, t], true on the tokens of each completion."""
    return jnp.arange(self.tokens.shape[1]) < self.lengths[:, None]

  @property
  def chosen(self) -> Array:
    """bool[b, t], true on the tokens that the policy chose."""
    return self.mask if self.planted is None else self.mask & ~self.planted


@struct.dataclass
class Grades:
  """Grades of completions.

  Attributes:
    correct: bool[b], whether the answer equals the gold answer.
    well_formed: bool[b], whether the completion has the requested format.
    reasoning_lengths: int32[b], R: the number of tokens that end before the
      mark that ends the reasoning begins (`</think>`; without thinking, the
      answer). Without the mark it is the length without the EOS.
    timed_out: bool[b], whether comparing the answer took too long; it then
      counts as wrong.
    answers: int32[b, a], the first tokens of each completion's own answer;
      None if nothing needs them.
    answer_lengths: int32[b]; 0 without an answer.
    guessed: bool[b], whether the answer stands outside the place that the
      format asks for; None unless the format is lenient.
    scores: fp32[b], in [0, 1], 1 where correct; None unless the grader gives
      partial scores.
  """

  correct: Array
  well_formed: Array
  reasoning_lengths: Array
  timed_out: Array
  answers: Array | None = None
  answer_lengths: Array | None = None
  guessed: Array | None = None
  scores: Array | None = None


@struct.dataclass
class CreditWeights:
  """Numbers of the credit that the compiled program takes as inputs.

  Attributes:
    info: weight of the information term.
    explore: weight of the exploration term, or of GTPO's entropy term.
    discount: γ of information-to-go.
    cost: c of information-to-go, in nats per token.
    length: weight of a length penalty.
  """

  info: Array
  explore: Array
  discount: Array
  cost: Array
  length: Array


@struct.dataclass
class TrainState:
  """All that training changes, and all that a resumed run needs.

  Attributes:
    step: int32[], batches of the data stream consumed so far.
    seed: uint32[]; the key of a step is derived from it and `step`.
    params: fp32 master weights.
    opt_state: optax state.
    weights: the credit's numbers; a step does not change them.
  """

  step: Array
  seed: Array
  params: Params
  opt_state: PyTree
  weights: CreditWeights


class KeyDomain(enum.IntEnum):
  """Purposes of randomness; keys of different domains never coincide."""

  WEIGHTS = 0
  TRAINING = 1
  EVALUATION = 2

  def key(self, seed: Array | int) -> Array:
    """Returns the domain's PRNG key for a seed."""
    return jax.random.fold_in(jax.random.key(seed), int(self))


@struct.dataclass
class Samples:
  """Per-token record of one step, for logs and pictures.

  Attributes:
    tokens: int32[b, t].
    lengths: int32[b].
    ended: bool[b], whether the last token is an EOS.
    reasoning_lengths: int32[b].
    correct: bool[b].
    well_formed: bool[b].
    rewards: fp32[b].
    entropies: fp32[b, t], of the policy.
    answer_entropies: fp32[b, t + 1], H or another `probe.estimator`'s
      uncertainty of the answer; 0 after R (after T for `faithful`).
    information: fp32[b, t], D; 0 after R.
    group_advantages: fp32[b], A.
    advantages: fp32[b, t], A plus the token's credit; 0 after the end.
    learned: bool[b, t], the tokens that carry loss.
  """

  tokens: Array
  lengths: Array
  ended: Array
  reasoning_lengths: Array
  correct: Array
  well_formed: Array
  rewards: Array
  entropies: Array
  answer_entropies: Array
  information: Array
  group_advantages: Array
  advantages: Array
  learned: Array


@struct.dataclass
class StepOutput:
  """Results of a training step.

  Attributes:
    metrics: fp32 scalars by name.
    samples: the per-token record; None for the supervised stage.
  """

  metrics: dict[str, Array]
  samples: Samples | None = None

  def numbers(self) -> dict[str, float]:
    """Returns the metrics as floats; waits for the devices."""
    return {k: float(v) for k, v in jax.device_get(self.metrics).items()}

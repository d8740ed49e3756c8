"""The configuration of a run, made once, checked once, never changed after.

A config file returns an `ml_collections.ConfigDict` (usually `default()` with
fields set); `parse` turns it into frozen dataclasses or says, in one line,
which field has which value against which rule.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from iapo_jax import config_rules
from iapo_jax.data_config import DataConfig
from iapo_jax.errors import fail
from iapo_jax.model_config import ModelConfig

# Where data lie; what they hold is compared by itself (`splits.fingerprint`).
PLACES_OF_DATA = ("data.source_dir", "data.prepared_dir")
# Fields that may change while a run goes on.
FREE = ("debug", "log.wandb", *PLACES_OF_DATA)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis; one of them may be -1 (all that is left)."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """Sampling. Training draws from the whole distribution (no top-p, top-k).

  Attributes:
    max_tokens: t, the longest completion.
    temperature: divides the logits, of probes and training pass too.
  """

  max_tokens: int = 72
  temperature: float = 1.0


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """r = correctness part + format part.

  Attributes:
    grader: `token_match` (in the compiled program, for tokenizers that allow
      it) or `host` (decoded text).
    correct: for a right answer.
    wrong: for any other.
    well_formed: for the asked-for format.
    malformed: for any other.
    overlong_tokens: in so many last tokens before the longest completion up to
      1 is taken off (DAPO); 0 is none.
  """

  grader: str = "token_match"
  correct: float = 1.0
  wrong: float = -1.0
  well_formed: float = 0.5
  malformed: float = -0.5
  overlong_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
  """Early-exit probes.

  Attributes:
    elicitation: the text that ends the reasoning and asks for the answer.
    at: which positions are probed, besides 0 and the last: by `stride`, or
      where `sentences` end (after a token that ends a sentence or a line).
      Between them statistics are interpolated.
    stride: probes positions 0, stride, 2 · stride, ...: 1 is every position;
      0 is none at all, for credit that uses no information.
    estimator: what is taken for the uncertainty of the answer: the `entropy` of
      its first token, the surprise at the `gold` or at the completion's `own`
      answer, the `answer_entropy`, summed along its own answer, or the
      `gold_chance` that it will not be the gold one.
    answer_tokens: how many tokens of an answer are looked at, at most, by all
      but the first, and by `loss.early_weight`.
    layers: the probe goes through so many layers, the first; 0 is all.
  """

  elicitation: str = "</think>\n<answer>"
  at: str = "stride"
  stride: int = 1
  estimator: str = "entropy"
  answer_tokens: int = 1
  layers: int = 0

  @property
  def shown_tokens(self) -> int:
    """Tokens of an answer that a probe has after the elicitation."""
    return 0 if self.estimator == "entropy" else self.answer_tokens - 1


@dataclasses.dataclass(frozen=True)
class CreditConfig:
  """The advantage of each token.

  Attributes:
    mode: `grpo` (none per token), `gtpo` (by the policy's entropy), `paper`,
      `to_go`, `faithful` (the authors' code with exact probes); and the
      controls `length_penalty` (in the reward) and `group_length_penalty`
      (in the advantage, relative to the group).
    normalise: whether group advantages are divided by the standard deviation
      of the group's rewards.
    info_weight: w_info.
    explore_weight: w_explore; w of `gtpo`.
    discount: γ of `to_go`.
    cost: c of `to_go`, nats per token.
    only_correct: whether `to_go` credits correct completions only, or all.
    length_weight: w of the length penalties.
    horizon: K of `faithful`.
    information: what `paper` and `to_go` credit: what is `realised`, or as a
      control the same `shuffled` over each sequence's reasoning, or `none`.
  """

  mode: str = "paper"
  normalise: bool = True
  info_weight: float = 1.0
  explore_weight: float = 1.0
  discount: float = 0.9
  cost: float = 0.0
  only_correct: bool = True
  length_weight: float = 1.0
  horizon: int = 1
  information: str = "realised"


@dataclasses.dataclass(frozen=True)
class SelectConfig:
  """Which completions, and which of their tokens, learn; all by default.

  Attributes:
    shortest: only so many members of each group, the shortest; they are
      compared with each other alone (GFPO). 0 is all.
    with_spread: only groups whose rewards differ; the others do not count in
      means either (DAPO).
    first_tokens: α: only the first tokens of a completion (S-GRPO); 0 is all.
    short_tokens: k: but of completions of fewer tokens the later ones, too,
    later_share: p: with this probability each.
  """

  shortest: int = 0
  with_spread: bool = False
  first_tokens: int = 0
  short_tokens: int = 0
  later_share: float = 0.0


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The policy-gradient loss.

  Attributes:
    ratio: to the policy that sampled, of each `token` or of each `sequence`
      (GSPO).
    clip_low: ε_low.
    clip_high: ε_high.
    kl_weight: β of the k3 penalty against the starting policy; 0 leaves the
      reference policy out of the program.
    aggregation: `token_mean`, `sequence_mean` or `constant_length`, over what
      learns.
    early_weight: of −log π of the first `probe.answer_tokens` of each
      completion's own answer, asked for where it is cut at random.
    num_updates: optimizer updates per rollout.
    micro_batches: parts that a batch of full completions is split into, fewer
      where they are shorter; changes memory, not results.
      Probes go through the network as many tokens at a time as one part has.
    head_chunk: completion positions whose logits exist at one time.
  """

  ratio: str = "token"
  clip_low: float = 0.2
  clip_high: float = 0.28
  kl_weight: float = 0.001
  aggregation: str = "token_mean"
  early_weight: float = 0.0
  num_updates: int = 1
  micro_batches: int = 1
  head_chunk: int = 128


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with linear warm-up and optional cosine decay.

  Attributes:
    learning_rate: the peak.
    warmup_steps: updates until the peak; the first has a share of it.
    decay: whether it falls to 0 over the stage, along a cosine.
    b1: of Adam.
    b2: of Adam.
    weight_decay: decoupled.
    clip_norm: the gradient's largest global norm.
    max_skipped: steps in a row without any update, for numbers that are not
      finite, until the run stops.
  """

  learning_rate: float = 5e-4
  warmup_steps: int = 0
  decay: bool = False
  b1: float = 0.9
  b2: float = 0.99
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  max_skipped: int = 5


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
  """The supervised stage on written-out chains.

  Attributes:
    num_steps: 0 leaves the stage out.
    batch_size: chains per step.
    early_share: share of the examples cut at a random point and followed by
      the answer: the policy learns to answer early, which probes rely on.
    early_full_share: share of those whose every token is learned; the others
      teach the answer token only.
    optimizer: of this stage.
  """

  num_steps: int = 0
  batch_size: int = 64
  early_share: float = 0.25
  early_full_share: float = 0.1
  optimizer: OptimizerConfig = OptimizerConfig(learning_rate=6e-3)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """Sampled evaluation.

  Attributes:
    every: RL steps between evaluations on the validation split; 0 is never.
    problems: the first so many validation problems.
    samples: completions of each problem.
    batch_size: completions per call of the compiled sampler.
    temperature: of sampling; 0 is greedy.
    checkpoint: which policy the test split judges at the end: the `last`, or
      the `best` (of the five checkpoints with the highest validation accuracy,
      the one with the highest pass@k / length@k at the largest k there is).
  """

  every: int = 10
  problems: int = 256
  samples: int = 1
  batch_size: int = 256
  temperature: float = 1.0
  checkpoint: str = "last"


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """What is saved of a run, besides its start, its end and every validation.

  Attributes:
    every: steps between saves, of either stage; 0 adds none.
    keep_last: newest checkpoints kept; at least 2, because the newest may turn
      out to be damaged.
    keep_best: checkpoints kept for their validation accuracy.
  """

  every: int = 50
  keep_last: int = 2
  keep_best: int = 5


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """What is written down of the rollouts.

  Attributes:
    samples_every: RL steps between records of whole completions, token by
      token; 0 is never.
    samples: completions in each record, at most the step's own number.
    wandb: whether metrics go to W&B, too: `off`, `offline` (files that
      `wandb sync` uploads) or `online`.
  """

  samples_every: int = 10
  samples: int = 8
  wandb: str = "off"


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run.

  Attributes:
    seed: of weights, data order and sampling.
    prompts_per_step: q; with `group_size` the only two numbers of the batch.
    group_size: G, samples per prompt.
    num_steps: RL steps; 0 leaves the stage out.
    init_from: whose policy to start from: the folder of a finished run, or of
      any checkpoint (RUN/checkpoints/STAGE/STEP).
    debug: whether every step is watched, of `debugging`: slow, and the numbers
      are the same.
  """

  seed: int = 0
  prompts_per_step: int = 8
  group_size: int = 8
  num_steps: int = 60
  init_from: str = ""
  debug: bool = False
  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  mesh: MeshConfig = MeshConfig()
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  rollout: RolloutConfig = RolloutConfig()
  reward: RewardConfig = RewardConfig()
  probe: ProbeConfig = ProbeConfig()
  credit: CreditConfig = CreditConfig()
  select: SelectConfig = SelectConfig()
  loss: LossConfig = LossConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  warm_start: WarmStartConfig = WarmStartConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  log: LogConfig = LogConfig()

  @property
  def sequences_per_step(self) -> int:
    """How many completions one step samples, b = q · G."""
    return self.prompts_per_step * self.group_size

  @property
  def update_rows(self) -> int:
    """Sequences of an update: completions, and early answers to as many."""
    return self.sequences_per_step * (2 if self.loss.early_weight else 1)

  @property
  def tokens_per_pass(self) -> int:
    """Completion tokens, padding included, of one micro-batch."""
    tokens = self.sequences_per_step * self.rollout.max_tokens
    return tokens // self.loss.micro_batches


def default() -> ml_collections.ConfigDict:
  """The defaults as a ConfigDict, for a config file to change."""
  return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def parse(config: Mapping[str, Any]) -> Config:
  """Builds and checks a `Config`.

  Args:
    config: a ConfigDict or nested mapping; missing fields take defaults.

  Returns:
    The checked configuration.

  Raises:
    ConfigError: for an unknown field, a wrong type or a broken rule.
  """
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  parsed = _build(Config, config, "")
  config_rules.check(parsed)
  return parsed


def checked(c: Config) -> Config:
  """A changed configuration, checked like one that a user wrote."""
  return parse(dataclasses.asdict(c))


def _build(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
  """Fills dataclass `cls` from a mapping, checking names and types."""
  hints = typing.get_type_hints(cls)
  for name in values:
    if name not in hints:
      close = difflib.get_close_matches(name, hints, n=1)
      hint = f"; did you mean {prefix}{close[0]}?" if close else ""
      fail(prefix + name, values[name], f"unknown field{hint}")
  filled = {}
  for name, value in values.items():
    kind = hints[name]
    field = prefix + name
    if dataclasses.is_dataclass(kind):
      if not isinstance(value, Mapping):
        fail(field, value, "must be a group of fields")
      filled[name] = _build(kind, value, field + ".")
    else:
      filled[name] = _convert(field, value, kind)
  return cls(**filled)


def _convert(field: str, value: Any, kind: Any) -> Any:
  """`value` as `kind`; only int -> float and list -> tuple are converted."""
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, list | tuple):
      fail(field, value, "must be a list, one entry for each layer")
    item = typing.get_args(kind)[0]
    return tuple(
        _convert(f"{field}[{i}]", entry, item) for i, entry in enumerate(value)
    )
  number = isinstance(value, int) and not isinstance(value, bool)
  if kind is float and number:
    return float(value)
  if not isinstance(value, kind) or (kind is int and not number):
    fail(field, value, f"must be of type {kind.__name__}")
  if kind is float and not math.isfinite(value):
    fail(field, value, "must be finite")
  return value


def flatten(c: Config) -> dict[str, Any]:
  """Every field by its dotted name, as JSON has it (tuples are lists)."""
  flat: dict[str, Any] = {}

  def visit(prefix: str, node: Any) -> None:
    for field in dataclasses.fields(node):
      value = getattr(node, field.name)
      if dataclasses.is_dataclass(value):
        visit(f"{prefix}{field.name}.", value)
      else:
        as_list = isinstance(value, tuple)
        flat[prefix + field.name] = list(value) if as_list else value

  visit("", c)
  return flat

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

from iapo_jax import advantages, losses

CREDIT_MODES = ("grpo", "length_penalty", *advantages.CREDIT_MODES)
OVERLONG = ("error", "skip", "truncate_left")
GRADERS = ("token_match", "host")
DTYPES = ("float32", "bfloat16")


class ConfigError(ValueError):
  """User input that breaks a rule; the message is one line."""


def fail(field: str, value: Any, rule: str) -> typing.NoReturn:
  """Raises a `ConfigError` that names field, value and rule."""
  raise ConfigError(f"config.{field} = {value!r}: {rule}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The decoder.

  Attributes:
    vocab_size: rows of the embedding; 0 takes the tokenizer's size.
    num_layers: l.
    d_model: d.
    num_heads: n.
    num_kv_heads: k; divides `num_heads`.
    head_dim: h, even.
    mlp_dim: f.
    rope_theta: base of the rotary embedding.
    norm_eps: of every RMSNorm.
    qkv_bias: bias on the query, key and value projections (Qwen2).
    qk_norm: RMSNorm on each query and key head (Qwen3).
    tie_embeddings: the head reads the embedding table.
    dtype: of matmuls and the cache; weights are kept in fp32.
    remat: recompute each layer in the backward pass instead of storing it.
  """

  vocab_size: int = 0
  num_layers: int = 2
  d_model: int = 64
  num_heads: int = 2
  num_kv_heads: int = 2
  head_dim: int = 32
  mlp_dim: int = 256
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-6
  qkv_bias: bool = False
  qk_norm: bool = False
  tie_embeddings: bool = True
  dtype: str = "float32"
  remat: bool = False


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis; one of them may be -1 (all that is left)."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The task and how its text becomes arrays.

  Attributes:
    operands: numbers in each arithmetic problem.
    max_operand: they lie in 1 .. this.
    max_total: every running total lies in 0 .. this.
    redundancy: share of the warm-start chains with redundant steps.
    train_problems: distinct, shared with no other split.
    validation_problems: distinct, shared with no other split.
    test_problems: distinct, shared with no other split.
    max_prompt_tokens: p.
    max_gold_tokens: a.
    overlong: a prompt beyond p is an error, is skipped (and counted), or
      loses its beginning (and is counted).
  """

  operands: int = 4
  max_operand: int = 7
  max_total: int = 15
  redundancy: float = 0.8
  train_problems: int = 6000
  validation_problems: int = 512
  test_problems: int = 2048
  max_prompt_tokens: int = 16
  max_gold_tokens: int = 1
  overlong: str = "error"


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
  """

  grader: str = "token_match"
  correct: float = 1.0
  wrong: float = -1.0
  well_formed: float = 0.5
  malformed: float = -0.5


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
  """Early-exit probes.

  Attributes:
    elicitation: the text that ends the reasoning and asks for the answer.
    chunk: positions of every sequence probed in one forward pass.
  """

  elicitation: str = "</think>\n<answer>"
  chunk: int = 16


@dataclasses.dataclass(frozen=True)
class CreditConfig:
  """The advantage of each token.

  Attributes:
    mode: `grpo` (none per token), `length_penalty` (the control), `paper`,
      `to_go`, `faithful` (the authors' code with exact probes).
    info_weight: w_info.
    explore_weight: w_explore.
    discount: γ of `to_go`.
    cost: c of `to_go`, nats per token.
    length_weight: w of `length_penalty`.
    horizon: K of `faithful`.
    shuffle: permute each sequence's information over its reasoning (a control).
  """

  mode: str = "paper"
  info_weight: float = 1.0
  explore_weight: float = 1.0
  discount: float = 0.9
  cost: float = 0.0
  length_weight: float = 1.0
  horizon: int = 1
  shuffle: bool = False


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The policy-gradient loss.

  Attributes:
    clip_low: ε_low.
    clip_high: ε_high.
    kl_weight: β of the k3 penalty against the starting policy; 0 leaves the
      reference policy out of the program.
    aggregation: `token_mean`, `sequence_mean` or `constant_length`.
    num_updates: optimizer updates per rollout.
    micro_batches: parts a batch is split into; changes memory, not results.
    head_chunk: completion positions whose logits exist at one time.
  """

  clip_low: float = 0.2
  clip_high: float = 0.28
  kl_weight: float = 0.001
  aggregation: str = "token_mean"
  num_updates: int = 1
  micro_batches: int = 1
  head_chunk: int = 128


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with linear warm-up and optional cosine decay.

  Attributes:
    learning_rate: the peak.
    warmup_steps: updates from 0 to the peak.
    decay: whether it falls to 0 over the stage, along a cosine.
    b1: of Adam.
    b2: of Adam.
    weight_decay: decoupled.
    clip_norm: the gradient's largest global norm.
  """

  learning_rate: float = 5e-4
  warmup_steps: int = 0
  decay: bool = False
  b1: float = 0.9
  b2: float = 0.99
  weight_decay: float = 0.0
  clip_norm: float = 1.0


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
    problems: validation problems drawn each time.
    batch_size: problems per call of the compiled sampler.
    temperature: of sampling; 0 is greedy.
  """

  every: int = 10
  problems: int = 256
  batch_size: int = 256
  temperature: float = 1.0


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run.

  Attributes:
    seed: of weights, data order and sampling.
    prompts_per_step: q; with `group_size` the only two numbers of the batch.
    group_size: G, samples per prompt.
    num_steps: RL steps; 0 leaves the stage out.
    init_from: folder of a finished run whose policy to start from.
  """

  seed: int = 0
  prompts_per_step: int = 8
  group_size: int = 8
  num_steps: int = 60
  init_from: str = ""
  model: ModelConfig = ModelConfig()
  mesh: MeshConfig = MeshConfig()
  data: DataConfig = DataConfig()
  rollout: RolloutConfig = RolloutConfig()
  reward: RewardConfig = RewardConfig()
  probe: ProbeConfig = ProbeConfig()
  credit: CreditConfig = CreditConfig()
  loss: LossConfig = LossConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  warm_start: WarmStartConfig = WarmStartConfig()
  evaluation: EvaluationConfig = EvaluationConfig()

  @property
  def sequences_per_step(self) -> int:
    """How many completions one step samples, b = q · G."""
    return self.prompts_per_step * self.group_size


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
  _check(parsed)
  return parsed


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


def _convert(field: str, value: Any, kind: type) -> Any:
  """`value` as `kind`; only int -> float is converted."""
  number = isinstance(value, int) and not isinstance(value, bool)
  if kind is float and number:
    return float(value)
  if not isinstance(value, kind) or (kind is int and not number):
    fail(field, value, f"must be of type {kind.__name__}")
  if kind is float and not math.isfinite(value):
    fail(field, value, "must be finite")
  return value


def _check(c: Config) -> None:
  """Every rule a configuration must obey by itself."""
  _check_choices(c)
  _check_ranges(c)
  m = c.model
  if m.num_heads % m.num_kv_heads:
    fail(
        "model.num_kv_heads",
        m.num_kv_heads,
        f"must divide model.num_heads = {m.num_heads}",
    )
  if m.head_dim % 2:
    fail("model.head_dim", m.head_dim, "must be even (rotary halves)")
  if c.prompts_per_step % c.loss.micro_batches:
    fail(
        "loss.micro_batches",
        c.loss.micro_batches,
        f"must divide prompts_per_step = {c.prompts_per_step}; try one of"
        f" {_divisors(c.prompts_per_step)}",
    )
  if [c.mesh.data, c.mesh.fsdp, c.mesh.tensor].count(-1) > 1:
    fail("mesh", dataclasses.asdict(c.mesh), "only one axis may be -1")
  information = c.credit.mode in ("paper", "to_go")
  if c.credit.shuffle and not information:
    fail(
        "credit.shuffle",
        True,
        "needs credit.mode paper or to_go (there is nothing to shuffle)",
    )


def _check_choices(c: Config) -> None:
  choices = {
      "model.dtype": (c.model.dtype, DTYPES),
      "data.overlong": (c.data.overlong, OVERLONG),
      "reward.grader": (c.reward.grader, GRADERS),
      "credit.mode": (c.credit.mode, CREDIT_MODES),
      "loss.aggregation": (c.loss.aggregation, losses.AGGREGATIONS),
  }
  for field, (value, allowed) in choices.items():
    if value not in allowed:
      fail(field, value, f"must be one of {', '.join(allowed)}")


def _bounds() -> dict[str, tuple[float, float]]:
  """The least and the largest value of numbers, both allowed."""
  inf = math.inf
  at_least_one = (
      "prompts_per_step", "model.num_layers", "model.d_model",
      "model.num_heads", "model.num_kv_heads", "model.mlp_dim",
      "data.max_operand", "data.max_total", "data.train_problems",
      "data.validation_problems", "data.test_problems",
      "data.max_prompt_tokens", "data.max_gold_tokens", "probe.chunk",
      "credit.horizon", "loss.num_updates", "loss.micro_batches",
      "loss.head_chunk", "warm_start.batch_size", "evaluation.problems",
      "evaluation.batch_size",
  )  # fmt: skip
  at_least_two = (
      "group_size", "model.head_dim", "data.operands", "rollout.max_tokens",
  )  # fmt: skip
  not_negative = (
      "num_steps", "model.vocab_size", "loss.clip_high", "loss.kl_weight",
      "warm_start.num_steps", "evaluation.every", "evaluation.temperature",
  )  # fmt: skip
  shares = (
      "data.redundancy", "credit.discount", "loss.clip_low",
      "warm_start.early_share", "warm_start.early_full_share",
  )  # fmt: skip
  for stage in ("optimizer", "warm_start.optimizer"):
    fields = ("learning_rate", "warmup_steps", "weight_decay")
    not_negative += tuple(f"{stage}.{name}" for name in fields)
    shares += (f"{stage}.b1", f"{stage}.b2")
  return (
      {"seed": (0, 2**32 - 1)}
      | dict.fromkeys(at_least_one, (1, inf))
      | dict.fromkeys(at_least_two, (2, inf))
      | dict.fromkeys(not_negative, (0, inf))
      | dict.fromkeys(shares, (0, 1))
  )


def _check_ranges(c: Config) -> None:
  for field, (low, high) in _bounds().items():
    value = _get(c, field)
    if not low <= value <= high:
      rule = f"in [{low}, {high}]" if high < math.inf else f"at least {low}"
      fail(field, value, f"must be {rule}")
    if field.endswith((".b1", ".b2")) and value == 1:
      fail(field, value, "must be below 1 (Adam divides by 1 - b)")
  positive = (
      "rollout.temperature",
      "optimizer.clip_norm",
      "warm_start.optimizer.clip_norm",
      "model.rope_theta",
      "model.norm_eps",
  )
  for field in positive:
    if _get(c, field) <= 0:
      fail(field, _get(c, field), "must be positive")
  for field in ("mesh.data", "mesh.fsdp", "mesh.tensor"):
    if _get(c, field) < 1 and _get(c, field) != -1:
      fail(field, _get(c, field), "must be at least 1, or -1 for the rest")


def _get(c: Config, field: str) -> Any:
  value = c
  for name in field.split("."):
    value = getattr(value, name)
  return value


def _divisors(n: int) -> list[int]:
  return [i for i in range(1, n + 1) if n % i == 0]


def flatten(c: Config) -> dict[str, Any]:
  """Every field by its dotted name."""
  flat: dict[str, Any] = {}

  def visit(prefix: str, node: Any) -> None:
    for field in dataclasses.fields(node):
      value = getattr(node, field.name)
      if dataclasses.is_dataclass(value):
        visit(f"{prefix}{field.name}.", value)
      else:
        flat[prefix + field.name] = value

  visit("", c)
  return flat

"""The fields of a run, each with its default, rule and doc.

`parsing` builds them from a configuration file, and `rules` checks the rules
between them. Nothing changes them afterwards.
"""

import dataclasses

from iapo_jax.config.credits import CREDITS, PRICES
from iapo_jax.config.data import DataConfig
from iapo_jax.config.fields import (
  Rule,
  at_least,
  between,
  field,
  one_of,
  positive,
)
from iapo_jax.config.formats import FormatConfig
from iapo_jax.config.model import WHOLE_TOKENS, ModelConfig
from iapo_jax.config.records import (
  CheckpointConfig,
  EvaluationConfig,
  LogConfig,
)

# Uncertainties of an answer (`rl.mi`), and those that need the completion's own
# answer or the gold one.
ESTIMATORS = ("entropy", "gold", "own", "answer_entropy", "gold_chance")
OF_OWN_ANSWER = ("own", "answer_entropy")
OF_GOLD = ("gold", "gold_chance")
RATIOS = ("token", "sequence")
AGGREGATIONS = ("token_mean", "sequence_mean", "constant_length")


def _axis() -> Rule:
  return Rule("at least 1, or -1 for the rest", lambda x: x >= 1 or x == -1)


def _moment() -> Rule:
  return Rule("in [0, 1): Adam divides by 1 - b", lambda x: 0 <= x < 1)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis; one may be -1, for all that remain."""

  data: int = field(
      -1, "devices that split the batch; -1 takes all that remain", _axis()
  )
  fsdp: int = field(
      1, "devices that split the batch, weights and Adam's moments", _axis()
  )
  tensor: int = field(
      1, "devices that split heads, MLP and vocabulary", _axis(),
      aliases=("tensor_parallel_size", "tp"),
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """Sampling in training, from the whole distribution: no top-p, no top-k.

  Probes and the policy gradient need the probability of every token.
  """

  max_tokens: int = field(
      72, "t, the longest completion, in tokens", at_least(2),
      aliases=("max_completion_length", "max_new_tokens", "max_response_length",
               "max_length", "response_length"),
  )  # fmt: skip
  temperature: float = field(
      1.0, "divides the logits, also in probes and in the training pass",
      positive(),
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """The reward r, the sum of a correctness part and a format part."""

  grader: str = field(
      "token_match",
      "token_match compares tokens in the compiled program, and needs a"
      " tokenizer that allows it; host compares decoded text",
      one_of("token_match", "host"),
  )
  correct: float = field(1.0, "correctness part of a right answer")
  wrong: float = field(-1.0, "correctness part of any other answer")
  well_formed: float = field(0.5, "format part of the requested format")
  malformed: float = field(-0.5, "format part of any other format")
  partial: bool = field(
      False,
      "for reasoning_gym: the correctness part is wrong + score (correct -"
      " wrong), with the scorer's score in [0, 1]",
  )
  overlong_tokens: int = field(
      0,
      "width in tokens of DAPO's soft length penalty before rollout.max_tokens;"
      " it counts the whole completion; 0 turns it off",
      at_least(0),
      aliases=("overlong_buffer", "soft_punish_cache"),
  )


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
  """Early-exit probes."""

  elicitation: str = field(
      "</think>\n<answer>",
      "text that ends the reasoning and asks for the answer; by default that"
      " of format.preset",
  )
  at: str = field(
      "stride",
      "positions to probe besides 0 and the last: stride (every stride-th) or"
      " sentences (where a sentence or line ends); statistics between probes"
      " are interpolated",
      one_of("stride", "sentences"),
  )
  stride: int = field(
      1,
      "probes positions 0, stride, 2 stride, ...; 0 probes none, for credit"
      " modes that read no information",
      at_least(0),
  )
  estimator: str = field(
      "entropy",
      "uncertainty of the answer: entropy (of its first token), gold or own"
      " (-log p of the gold answer or of the completion's own), answer_entropy"
      " (entropy along the completion's answer) or gold_chance (1 - p of the"
      " gold answer)",
      one_of(*ESTIMATORS),
  )
  answer_tokens: int = field(
      1,
      "most tokens of an answer to read; all estimators but entropy use it, and"
      " so does loss.early_weight",
      at_least(1),
  )
  layers: int = field(
      0, "number of first layers that a probe runs; 0 runs all", at_least(0)
  )

  @property
  def shown_tokens(self) -> int:
    """Tokens of an answer that a probe reads after the elicitation."""
    return 0 if self.estimator == "entropy" else self.answer_tokens - 1


@dataclasses.dataclass(frozen=True)
class CreditConfig:
  """The advantage of each token; docs/method.md has the formulas."""

  mode: str = field(
      "paper",
      "; ".join(f"{name}: {known.doc}" for name, known in CREDITS.items()),
      one_of(*CREDITS),
      aliases=("adv_estimator", "advantage_estimator"),
  )
  normalise: bool = field(
      True,
      "divides group advantages by the standard deviation of the group's"
      " rewards",
      aliases=("scale_rewards", "norm_adv_by_std_in_grpo"),
  )
  info_weight: float = field(
      1.0, "w_info, weight of the information term"
  )
  explore_weight: float = field(
      1.0, "w_explore, weight of the exploration term; in gtpo its w"
  )
  discount: float = field(
      0.9, "discount per token, for to_go", between(0, 1), aliases=("gamma",)
  )
  cost: float = field(0.0, "c, cost of a token in nats, for to_go")
  only_correct: bool = field(
      True, "whether to_go credits only correct completions"
  )
  length_weight: float = field(1.0, "weight of the length penalties")
  price: str = field(
      "auto",
      "tokens that a length penalty or the cost of to_go counts: reasoning,"
      " answer (all after the reasoning) or both; auto is "
      + ", ".join(f"{x.prices} for {name}" for name, x in CREDITS.items()
                  if x.prices),
      one_of("auto", *PRICES),
  )  # fmt: skip
  horizon: int = field(
      1, "K, horizon of faithful in tokens", at_least(1)
  )
  information: str = field(
      "realised",
      "information that paper and to_go credit: realised, or as a control"
      " shuffled (over the reasoning of each completion) or none",
      one_of("realised", "shuffled", "none"),
  )

  @property
  def priced(self) -> str:
    """The tokens that the mode prices, one of `PRICES`; empty for none."""
    usual = CREDITS[self.mode].prices
    return usual if self.price == "auto" else self.price


@dataclasses.dataclass(frozen=True)
class SelectConfig:
  """Selects the completions and tokens that learn; by default all do."""

  shortest: int = field(
      0,
      "number of shortest completions per group that learn, compared only with"
      " each other (GFPO); 0 is all",
      at_least(0),
  )
  with_spread: bool = field(
      False,
      "only groups whose rewards differ learn and count in means (DAPO)",
      aliases=("filter_groups", "dynamic_sampling"),
  )
  finished: bool = field(
      False,
      "only completions with an EOS learn; those that are cut off still count"
      " in the mean and standard deviation of their group",
      aliases=("mask_truncated_completions", "overlong_filtering"),
  )
  first_tokens: int = field(
      0, "number of first tokens per completion that learn (S-GRPO); 0 is all",
      at_least(0),
  )  # fmt: skip
  short_tokens: int = field(
      0, "in completions shorter than this, later tokens may learn, too",
      at_least(0),
  )  # fmt: skip
  later_share: float = field(
      0.0, "probability that such a later token learns", between(0, 1)
  )


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The policy-gradient loss."""

  ratio: str = field(
      "token", "ratio to the sampling policy, per token or per sequence (GSPO)",
      one_of(*RATIOS), aliases=("importance_sampling_level",),
  )  # fmt: skip
  clip_low: float = field(
      0.2, "clips ratios below 1 - this", between(0, 1),
      aliases=("epsilon", "clip_ratio", "clip_ratio_low", "cliprange",
               "clip_eps", "clip_range"),
  )  # fmt: skip
  clip_high: float = field(
      0.28, "clips ratios above 1 + this", at_least(0),
      aliases=("epsilon_high", "clip_ratio_high"),
  )  # fmt: skip
  kl_weight: float = field(
      0.001,
      "weight of the KL penalty (k3 estimator) to the starting policy; 0 leaves"
      " the reference policy out of the program",
      at_least(0),
      aliases=("beta", "kl_coef", "kl_loss_coef", "kl_coeff"),
  )
  aggregation: str = field(
      "token_mean",
      "mean of the loss: token_mean over all tokens that learn, sequence_mean"
      " over the mean of each completion, constant_length over the sum of each"
      " completion / rollout.max_tokens",
      one_of(*AGGREGATIONS),
      aliases=("loss_type", "loss_agg_mode"),
  )  # fmt: skip
  early_weight: float = field(
      0.0,
      "weight of a loss that teaches early answers: -log p of the first"
      " probe.answer_tokens tokens of each completion's own answer, after a"
      " random cut",
      at_least(0),
  )
  num_updates: int = field(
      1, "optimizer updates per rollout", at_least(1),
      aliases=("num_iterations", "ppo_epochs", "mu"),
  )  # fmt: skip
  micro_batches: int = field(
      1,
      "parts of the batch that are computed one after another: changes memory,"
      " not results; shorter completions take fewer parts; also limits the"
      " tokens of a probe pass",
      at_least(1),
      aliases=("gradient_accumulation_steps", "grad_accum"),
  )
  head_chunk: int = field(
      128, "completion positions whose logits exist at once", at_least(1)
  )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with linear warm-up and optional cosine decay."""

  learning_rate: float = field(
      5e-4, "peak learning rate", at_least(0), aliases=("lr", "step_size")
  )
  warmup_steps: int = field(
      0, "updates until the peak learning rate", at_least(0),
      aliases=("lr_warmup_steps",),
  )
  decay: bool = field(
      False, "lowers the learning rate to 0 over the stage, along a cosine",
      aliases=("lr_scheduler_type", "lr_schedule"),
  )  # fmt: skip
  b1: float = field(
      0.9, "decay of Adam's first moment", _moment(),
      aliases=("beta1", "adam_beta1"),
  )
  b2: float = field(
      0.99, "decay of Adam's second moment", _moment(),
      aliases=("beta2", "adam_beta2"),
  )
  weight_decay: float = field(
      0.0, "decoupled weight decay", at_least(0), aliases=("wd",)
  )
  clip_norm: float = field(
      1.0, "clips the global norm of gradients to this", positive(),
      aliases=("max_grad_norm", "grad_clip", "gradient_clip"),
  )  # fmt: skip
  max_skipped: int = field(
      5,
      "the run stops after this many steps in a row without an update because"
      " a number was not finite",
      at_least(1),
  )


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
  """The supervised stage on worked solutions."""

  num_steps: int = field(
      0, "supervised steps; 0 skips the stage", at_least(0),
      aliases=("sft_steps",),
  )  # fmt: skip
  batch_size: int = field(64, "solutions per step", at_least(1))
  early_share: float = field(
      0.25,
      "share of examples that are cut at a random point and followed by the"
      " answer, since probes need a policy that learned to answer early",
      between(0, 1),
  )
  early_full_share: float = field(
      0.1,
      "share of the cut examples that teach every token; the others teach only"
      " the answer",
      between(0, 1),
  )
  optimizer: OptimizerConfig = OptimizerConfig(learning_rate=6e-3)


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run."""

  seed: int = field(
      0, "seed of weights, data order and sampling", between(0, 2**32 - 1)
  )
  prompts_per_step: int = field(
      8, "q, prompts in a step", at_least(1),
      aliases=("train_batch_size", "batch_size", "num_prompts",
               "per_device_train_batch_size"),
  )  # fmt: skip
  group_size: int = field(
      8, "g, completions per prompt", at_least(2),
      aliases=("num_generations", "n", "rollout_n", "num_samples"),
  )  # fmt: skip
  num_steps: int = field(
      60, "RL steps; 0 skips the stage", at_least(0),
      aliases=("max_steps", "steps", "train_steps", "total_training_steps"),
  )  # fmt: skip
  init_from: str = field(
      "",
      "policy to start from: the folder of a finished run, or a checkpoint"
      " RUN/checkpoints/STAGE/STEP",
      aliases=("resume_from_checkpoint", "load_checkpoint"),
  )
  debug: bool = field(
      False, "checks every operation for NaN: slower, same results"
  )
  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  mesh: MeshConfig = MeshConfig()
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  format: FormatConfig = dataclasses.field(default_factory=FormatConfig)
  rollout: RolloutConfig = RolloutConfig()
  reward: RewardConfig = RewardConfig()
  probe: ProbeConfig = ProbeConfig()
  credit: CreditConfig = CreditConfig()
  select: SelectConfig = SelectConfig()
  loss: LossConfig = LossConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  warm_start: WarmStartConfig = WarmStartConfig()
  evaluation: EvaluationConfig = dataclasses.field(
      default_factory=EvaluationConfig
  )
  checkpoint: CheckpointConfig = dataclasses.field(
      default_factory=CheckpointConfig
  )
  log: LogConfig = dataclasses.field(default_factory=LogConfig)

  @property
  def sequences_per_step(self) -> int:
    """The number of completions that a step samples, b = q g."""
    return self.prompts_per_step * self.group_size

  @property
  def update_rows(self) -> int:
    """The number of sequences in an update, early answers included."""
    return self.sequences_per_step * (2 if self.loss.early_weight else 1)

  @property
  def tokens_per_pass(self) -> int:
    """The most tokens in a pass of probes.

    It is the number of completion tokens in a micro-batch, with padding. Of a
    completion at most 1,024 count: each probe sees all slots of its completion,
    and so the memory of a pass grows with their number, not its square.
    """
    whole = min(self.rollout.max_tokens, WHOLE_TOKENS)
    return self.sequences_per_step * whole // self.loss.micro_batches

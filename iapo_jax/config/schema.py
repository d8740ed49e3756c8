"""The fields of a run: default, rule and doc of each.

`parsing` builds them from a configuration file, `rules` checks what they must
obey together. Nothing changes them afterwards.
"""

import dataclasses

from iapo_jax.config.credits import CREDITS
from iapo_jax.config.data import DataConfig
from iapo_jax.config.fields import (
  Rule,
  at_least,
  between,
  field,
  one_of,
  positive,
)
from iapo_jax.config.model import ModelConfig

# Uncertainty of an answer, by `rl.mi`; the latter need a completion's own.
ESTIMATORS = ("entropy", "gold", "own", "answer_entropy", "gold_chance")
OF_OWN_ANSWER = ("own", "answer_entropy")
RATIOS = ("token", "sequence")
AGGREGATIONS = ("token_mean", "sequence_mean", "constant_length")


def _axis() -> Rule:
  return Rule("at least 1, or -1 for the rest", lambda x: x >= 1 or x == -1)


def _moment() -> Rule:
  return Rule("in [0, 1): Adam divides by 1 - b", lambda x: 0 <= x < 1)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis; one of them may be -1, all that are left."""

  data: int = field(-1, "devices that split the batch", _axis())
  fsdp: int = field(
      1, "devices that split the batch, weights and moments", _axis()
  )
  tensor: int = field(
      1, "devices that split heads, MLP and vocabulary", _axis(),
      aliases=("tensor_parallel_size", "tp"),
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """Sampling of training, from the whole distribution: no top-p, no top-k."""

  max_tokens: int = field(
      72, "t, the longest completion, in tokens", at_least(2),
      aliases=("max_completion_length", "max_new_tokens", "max_response_length",
               "max_length", "response_length"),
  )  # fmt: skip
  temperature: float = field(
      1.0, "divides the logits, also of probes and of the training pass",
      positive(),
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """r = correctness part + format part."""

  grader: str = field(
      "token_match",
      "token_match compares tokens in the compiled program, where the tokenizer"
      " allows it; host compares decoded text",
      one_of("token_match", "host"),
  )
  correct: float = field(1.0, "part of a right answer")
  wrong: float = field(-1.0, "part of any other")
  well_formed: float = field(0.5, "part of the asked-for format")
  malformed: float = field(-0.5, "part of any other")
  overlong_tokens: int = field(
      0,
      "width in tokens of DAPO's soft length penalty before rollout.max_tokens;"
      " 0 turns it off",
      at_least(0),
      aliases=("overlong_buffer", "soft_punish_cache"),
  )


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
  """Early-exit probes."""

  elicitation: str = field(
      "</think>\n<answer>",
      "text that ends the reasoning and asks for the answer",
  )
  at: str = field(
      "stride",
      "positions probed besides 0 and the last: every stride-th, or where"
      " sentences or lines end; statistics between them are interpolated",
      one_of("stride", "sentences"),
  )
  stride: int = field(
      1,
      "probes positions 0, stride, 2 stride, ...; 0 probes none, for credit"
      " that reads no information",
      at_least(0),
  )
  estimator: str = field(
      "entropy",
      "uncertainty of the answer: entropy of its first token, surprise at the"
      " gold or at the completion's own answer, answer_entropy along its own"
      " answer, or gold_chance, the chance of another than the gold one",
      one_of(*ESTIMATORS),
  )
  answer_tokens: int = field(
      1,
      "tokens of an answer that are read at most, by every estimator but"
      " entropy and by loss.early_weight",
      at_least(1),
  )
  layers: int = field(
      0, "first layers that a probe goes through; 0 is all", at_least(0)
  )

  @property
  def shown_tokens(self) -> int:
    """Tokens of an answer that a probe has after the elicitation."""
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
      "divide group advantages by the standard deviation of the group's"
      " rewards",
      aliases=("scale_rewards", "norm_adv_by_std_in_grpo"),
  )
  info_weight: float = field(1.0, "w_info")
  explore_weight: float = field(1.0, "w_explore; w of gtpo")
  discount: float = field(
      0.9, "discount of to_go", between(0, 1), aliases=("gamma",)
  )
  cost: float = field(0.0, "c of to_go, nats per token")
  only_correct: bool = field(
      True, "to_go credits correct completions only, or all"
  )
  length_weight: float = field(1.0, "w of the length penalties")
  horizon: int = field(1, "K of faithful", at_least(1))
  information: str = field(
      "realised",
      "what paper and to_go credit: realised information; as controls the same"
      " shuffled over the reasoning of each sequence, or none",
      one_of("realised", "shuffled", "none"),
  )


@dataclasses.dataclass(frozen=True)
class SelectConfig:
  """Which completions, and which of their tokens, learn; all by default."""

  shortest: int = field(
      0,
      "members of each group that learn, the shortest, compared with each other"
      " alone (GFPO); 0 is all",
      at_least(0),
  )
  with_spread: bool = field(
      False,
      "only groups whose rewards differ learn or count in means (DAPO)",
      aliases=("filter_groups", "dynamic_sampling"),
  )
  first_tokens: int = field(
      0, "first tokens of a completion that learn (S-GRPO); 0 is all",
      at_least(0),
  )  # fmt: skip
  short_tokens: int = field(
      0, "later tokens may learn in completions of fewer tokens than this",
      at_least(0),
  )  # fmt: skip
  later_share: float = field(
      0.0, "probability that such a later token learns", between(0, 1)
  )


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The policy-gradient loss."""

  ratio: str = field(
      "token", "ratio to the sampling policy, of each token or sequence (GSPO)",
      one_of(*RATIOS), aliases=("importance_sampling_level",),
  )  # fmt: skip
  clip_low: float = field(
      0.2, "lower clip range", between(0, 1),
      aliases=("epsilon", "clip_ratio", "clip_ratio_low", "cliprange",
               "clip_eps", "clip_range"),
  )  # fmt: skip
  clip_high: float = field(
      0.28, "upper clip range", at_least(0),
      aliases=("epsilon_high", "clip_ratio_high"),
  )  # fmt: skip
  kl_weight: float = field(
      0.001,
      "weight of the k3 penalty against the starting policy; 0 leaves the"
      " reference policy out of the program",
      at_least(0),
      aliases=("beta", "kl_coef", "kl_loss_coef", "kl_coeff"),
  )
  aggregation: str = field(
      "token_mean", "mean over the tokens that learn", one_of(*AGGREGATIONS),
      aliases=("loss_type", "loss_agg_mode"),
  )  # fmt: skip
  early_weight: float = field(
      0.0,
      "weight of -log p of the first probe.answer_tokens of each completion's"
      " own answer, asked for at a random cut",
      at_least(0),
  )
  num_updates: int = field(
      1, "optimizer updates per rollout", at_least(1),
      aliases=("num_iterations", "ppo_epochs", "mu"),
  )  # fmt: skip
  micro_batches: int = field(
      1,
      "parts of a batch of full completions, fewer where they are shorter:"
      " changes memory, not results; a pass of probes has as many tokens",
      at_least(1),
      aliases=("gradient_accumulation_steps", "grad_accum"),
  )
  head_chunk: int = field(
      128, "completion positions whose logits exist at one time", at_least(1)
  )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with linear warm-up and optional cosine decay."""

  learning_rate: float = field(
      5e-4, "the peak", at_least(0), aliases=("lr", "step_size")
  )
  warmup_steps: int = field(
      0, "updates until the peak", at_least(0), aliases=("lr_warmup_steps",)
  )
  decay: bool = field(
      False, "falls to 0 over the stage, along a cosine",
      aliases=("lr_scheduler_type", "lr_schedule"),
  )  # fmt: skip
  b1: float = field(
      0.9, "Adam's first moment", _moment(), aliases=("beta1", "adam_beta1")
  )
  b2: float = field(
      0.99, "Adam's second moment", _moment(), aliases=("beta2", "adam_beta2")
  )
  weight_decay: float = field(0.0, "decoupled", at_least(0), aliases=("wd",))
  clip_norm: float = field(
      1.0, "largest global norm of a gradient", positive(),
      aliases=("max_grad_norm", "grad_clip", "gradient_clip"),
  )  # fmt: skip
  max_skipped: int = field(
      5,
      "steps in a row without an update, for numbers that are not finite, after"
      " which a run stops",
      at_least(1),
  )


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
  """The supervised stage on worked solutions."""

  num_steps: int = field(
      0, "supervised steps; 0 leaves the stage out", at_least(0),
      aliases=("sft_steps",),
  )  # fmt: skip
  batch_size: int = field(64, "solutions per step", at_least(1))
  early_share: float = field(
      0.25,
      "share of examples cut at a random point and followed by the answer:"
      " probes rely on a policy that learned to answer early",
      between(0, 1),
  )
  early_full_share: float = field(
      0.1,
      "share of those that teach every token; the others teach the answer only",
      between(0, 1),
  )
  optimizer: OptimizerConfig = OptimizerConfig(learning_rate=6e-3)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """Sampled evaluation."""

  every: int = field(
      10, "RL steps between validations; 0 is never", at_least(0),
      aliases=("eval_steps", "test_freq", "eval_every"),
  )  # fmt: skip
  problems: int = field(
      256, "first validation problems that are judged", at_least(1)
  )
  samples: int = field(
      1, "completions per problem", at_least(1), aliases=("n_samples",)
  )
  batch_size: int = field(
      256, "completions per call of the compiled sampler", at_least(1),
      aliases=("per_device_eval_batch_size", "eval_batch_size"),
  )  # fmt: skip
  temperature: float = field(1.0, "of sampling; 0 is greedy", at_least(0))
  checkpoint: str = field(
      "last",
      "policy that the test split judges: last, or best, the highest pass@k /"
      " length@k among the five with the highest validation accuracy",
      one_of("last", "best"),
  )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """What is saved besides the start, the end and every validation."""

  every: int = field(
      50, "steps between saves, in either stage; 0 adds none", at_least(0),
      aliases=("save_steps", "save_freq", "save_every"),
  )  # fmt: skip
  keep_last: int = field(
      2, "newest checkpoints kept: the newest may turn out to be damaged",
      at_least(2), aliases=("save_total_limit", "max_to_keep"),
  )  # fmt: skip
  keep_best: int = field(
      5, "checkpoints kept for their validation accuracy", at_least(0)
  )


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """What is written down of the rollouts."""

  samples_every: int = field(
      10, "RL steps between records of completions, token by token; 0 is never",
      at_least(0),
  )  # fmt: skip
  samples: int = field(
      8, "completions in each record", at_least(1),
      aliases=("num_completions_to_print",),
  )  # fmt: skip
  wandb: str = field(
      "off",
      "send metrics to W&B: off, offline (files for `wandb sync`) or online",
      one_of("off", "offline", "online"),
      aliases=("report_to", "use_wandb"),
  )


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
      60, "RL steps; 0 leaves the stage out", at_least(0),
      aliases=("max_steps", "steps", "train_steps", "total_training_steps"),
  )  # fmt: skip
  init_from: str = field(
      "",
      "policy to start from: the folder of a finished run, or a checkpoint,"
      " RUN/checkpoints/STAGE/STEP",
      aliases=("resume_from_checkpoint", "load_checkpoint"),
  )
  debug: bool = field(
      False, "look for NaN in every operation: slow, with the same numbers"
  )
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
    """Completions that one step samples, b = q g."""
    return self.prompts_per_step * self.group_size

  @property
  def update_rows(self) -> int:
    """Sequences of an update: completions, and as many early answers."""
    return self.sequences_per_step * (2 if self.loss.early_weight else 1)

  @property
  def tokens_per_pass(self) -> int:
    """Completion tokens of one micro-batch, padding included."""
    tokens = self.sequences_per_step * self.rollout.max_tokens
    return tokens // self.loss.micro_batches

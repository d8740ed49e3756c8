"""The fields of `evaluation`, `checkpoint` and `log`: what a run keeps."""

import dataclasses

from iapo_jax.config.fields import Rule, at_least, field, one_of


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """Sampled evaluation."""

  every: int = field(
      10, "RL steps between validations; 0 never validates", at_least(0),
      aliases=("eval_steps", "test_freq", "eval_every"),
  )  # fmt: skip
  problems: int = field(
      256, "number of validation problems to use, the first ones", at_least(1)
  )
  samples: int = field(
      1, "completions per problem", at_least(1), aliases=("n_samples",)
  )
  batch_size: int = field(
      256, "completions per call of the compiled sampler", at_least(1),
      aliases=("per_device_eval_batch_size", "eval_batch_size"),
  )  # fmt: skip
  temperature: float = field(
      1.0,
      "divides the logits; 0 is greedy: it takes the most probable token, and"
      " needs samples = 1",
      at_least(0),
      aliases=("eval_temperature",),
  )
  top_p: float = field(
      1.0,
      "samples only from the fewest most probable tokens that together reach"
      " this probability; 1 is all tokens; training always samples from all",
      Rule("in (0, 1]", lambda x: 0 < x <= 1),
      aliases=("eval_top_p",),
  )
  top_k: int = field(
      0,
      "samples only from this many most probable tokens, before top_p; 0 is all"
      " tokens; training always samples from all",
      at_least(0),
      aliases=("eval_top_k",),
  )
  checkpoint: str = field(
      "last",
      "policy to evaluate on the test split: last, or best (among the five with"
      " the highest validation accuracy, the one with the highest pass@k /"
      " length@k)",
      one_of("last", "best"),
  )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """Checkpoints besides those of the start, the end and every validation."""

  every: int = field(
      50, "steps between saves, in both stages; 0 adds none", at_least(0),
      aliases=("save_steps", "save_freq", "save_every"),
  )  # fmt: skip
  keep_last: int = field(
      2, "newest checkpoints to keep; the newest may turn out to be damaged",
      at_least(2), aliases=("save_total_limit", "max_to_keep"),
  )  # fmt: skip
  keep_best: int = field(
      5, "checkpoints of highest validation accuracy to keep", at_least(0)
  )


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """Records of rollouts and metrics."""

  samples_every: int = field(
      10, "RL steps between token-by-token records of completions; 0 is none",
      at_least(0),
  )  # fmt: skip
  samples: int = field(
      8, "completions in each record", at_least(1),
      aliases=("num_completions_to_print",),
  )  # fmt: skip
  wandb: str = field(
      "off",
      "sends metrics to W&B: off, offline (files for `wandb sync`) or online",
      one_of("off", "offline", "online"),
      aliases=("report_to", "use_wandb"),
  )

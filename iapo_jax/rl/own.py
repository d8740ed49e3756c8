"""Functions of a user that replace those of the package.

    from iapo_jax.cli import iapo
    from iapo_jax.rl.own import Own

    def reward(completions, golds):
      return [float(gold in text) for text, gold in zip(completions, golds)]

    if __name__ == "__main__":
      iapo.run("train", own=Own(text_reward=reward))

is a program with all flags of `iapo train`. A run does not record the code of
these functions. To resume it, start the same program.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from flax import struct

from iapo_jax.config.schema import Config
from iapo_jax.core.types import (
  AnswerStatistics,
  Array,
  Grades,
  Params,
  Prompts,
  Rollout,
  Vocabulary,
)
from iapo_jax.rewards.reward import Reward, TextReward


@struct.dataclass
class Evidence:
  """The arrays from which a credit is computed.

  Attributes:
    group_advantages: fp32[b], from `advantages.group_advantages`.
    rewards: fp32[b].
    correct: bool[b].
    information: fp32[b, t], D in nats, or the control that the field
      `credit.information` sets; 0 outside the reasoning and without probes.
    entropies: fp32[b, t], of the policy where it sampled each token, in nats.
    mask: bool[b, t], the tokens of each completion.
    reasoning: bool[b, t], the reasoning tokens of each completion.
    answer: bool[b, t], the tokens after the reasoning, without the EOS.
    uncertainty: fp32[b, t + 1], `mi.uncertainty` of the answer before each
      token and after the last, in nats; 0 without probes.
  """

  group_advantages: Array
  rewards: Array
  correct: Array
  information: Array
  entropies: Array
  mask: Array
  reasoning: Array
  answer: Array
  uncertainty: Array

  @property
  def lengths(self) -> Array:
    """The number of tokens of each completion, int32[b]."""
    return jnp.sum(self.mask, axis=1)


# Returns fp32[b, t]; values outside the mask are ignored.
Credit = Callable[[Evidence], Array]
# The weights are in the compute dtype. Returns None without probes.
Probing = Callable[
    [Params, Rollout, Grades, Prompts, Config, Vocabulary],
    AnswerStatistics | None,
]


@dataclasses.dataclass(frozen=True)
class Own:
  """Functions of a user; None keeps the function of the package.

  Attributes:
    reward: replaces the sum of the parts of `config.reward`. The grader still
      decides which completions are right.
    text_reward: the same for decoded texts, on the host. Each process gets
      only the completions of its devices.
    credit: the advantage of each token; replaces `config.credit.mode`.
    probing: statistics of the answer after each token; replaces
      `train_step.run_probes`.
  """

  reward: Reward | None = None
  text_reward: TextReward | None = None
  credit: Credit | None = None
  probing: Probing | None = None

  def __post_init__(self) -> None:
    """Raises ValueError if there are two rewards."""
    if self.reward and self.text_reward:
      raise ValueError("Own: must have reward or text_reward, not both")

  @property
  def described(self) -> str:
    """The parts that are set, each with the name of its function."""
    named = {
        field.name.replace("_", " "): getattr(self, field.name)
        for field in dataclasses.fields(self)
    }
    return ", ".join(
        f"{name} {getattr(part, '__name__', type(part).__name__)}"
        for name, part in named.items()
        if part
    )


NOTHING = Own()

"""A user's functions in place of the package's own.

    from iapo_jax.cli import iapo
    from iapo_jax.rl.own import Own

    def reward(completions, golds):
      return [float(gold in text) for text, gold in zip(completions, golds)]

    if __name__ == "__main__":
      iapo.run("train", own=Own(text_reward=reward))

is a program with all flags of experiments/run.py. A run does not record the
code of these functions: to resume it, start the same program.
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
  """The arrays that a credit is made of.

  Attributes:
    group_advantages: fp32[b], of `advantages.group_advantages`.
    rewards: fp32[b].
    correct: bool[b].
    information: fp32[b, t], D in nats, or what `credit.information` puts in its
      place; 0 outside the reasoning, and everywhere without probes.
    entropies: fp32[b, t], in nats, of the policy where each token was sampled.
    mask: bool[b, t], the tokens of each completion.
    reasoning: bool[b, t], its reasoning tokens.
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
  uncertainty: Array

  @property
  def lengths(self) -> Array:
    """int32[b], tokens of each completion."""
    return jnp.sum(self.mask, axis=1)


# Returns fp32[b, t]; values outside the mask are ignored.
Credit = Callable[[Evidence], Array]
# Weights are in the compute dtype; None where nothing is probed.
Probing = Callable[
    [Params, Rollout, Grades, Prompts, Config, Vocabulary],
    AnswerStatistics | None,
]


@dataclasses.dataclass(frozen=True)
class Own:
  """A user's functions; None keeps the package's own.

  Attributes:
    reward: replaces the sum of `config.reward`'s parts. The grader still
      decides which completions are right.
    text_reward: the same for decoded texts, on the host; each process gets
      the completions of its own devices.
    credit: the advantage of each token, replaces `config.credit.mode`.
    probing: statistics of the answer after each token.
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
    """The parts by the names of their functions."""
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

"""Functions of a user that replace those of the package.

    from iapo_jax.cli import iapo
    from iapo_jax.rl.own import Own

    def reward(*, texts, golds):
      return [float(gold in text) for text, gold in zip(texts, golds)]

    if __name__ == "__main__":
      iapo.run("train", own=Own(text_reward=reward))

is a program with all flags of `iapo train`. A run records the names of these
functions, not their code. To resume it, start the same program.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

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
from iapo_jax.rewards.reward import (
  Reward,
  TextGrader,
  TextReward,
  Weighted,
  name_of,
)

# Metrics reward/NAME that a run has anyway.
_TAKEN = (
    "total", "accuracy", "well_formed", "guessed", "zero_spread_groups",
    "timeouts",
)  # fmt: skip


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
    text_reward: the same for decoded texts, on the host; or several, as
      functions or pairs of a function and its weight, whose weighted sum is the
      reward. Each process gets only the completions of its devices.
    text_grader: decides which completions are right, from decoded texts on the
      host, in training and evaluation. It returns for each completion True or
      False, a score in [0, 1], of which only 1 is right, or None, which keeps
      the grade of `reward.grader=host`, whatever that field is.
      `rewards.user_functions` says what functions of texts get.
    credit: the advantage of each token; replaces `config.credit.mode`.
    probing: statistics of the answer after each token; replaces
      `train_step.run_probes`.
  """

  reward: Reward | None = None
  text_reward: (
      TextReward | Sequence[TextReward | tuple[TextReward, float]] | None
  ) = None
  text_grader: TextGrader | None = None
  credit: Credit | None = None
  probing: Probing | None = None

  def __post_init__(self) -> None:
    """Raises ValueError if a part cannot be used."""
    if self.reward and self.text_reward is not None:
      raise ValueError("Own: must have reward or text_reward, not both")
    for name, part in vars(self).items():
      if name != "text_reward" and part is not None and not callable(part):
        raise ValueError(f"Own.{name} = {part!r}: must be a function")
    _check_rewards(self)

  @property
  def text_rewards(self) -> tuple[Weighted, ...]:
    """The functions of `text_reward` with their weights."""
    given = self.text_reward
    if given is None:
      return ()
    if callable(given):
      return (Weighted(given),)
    return tuple(Weighted(x) if callable(x) else Weighted(*x) for x in given)

  @property
  def described(self) -> str:
    """The parts that are set, each with the names of its functions."""
    named = {
        name.replace("_", " "): name_of(part)
        for name, part in vars(self).items()
        if part is not None and name != "text_reward"
    }
    rewards = " + ".join(
        f"{'' if x.weight == 1 else f'{x.weight:g} '}{name_of(x.function)}"
        for x in self.text_rewards
    )
    if rewards:
      named = {"text reward": rewards} | named
    return ", ".join(f"{name} {part}" for name, part in named.items())


def _check_rewards(own: Own) -> None:
  """Raises ValueError unless the rewards have functions, weights and names."""
  try:
    rewards = own.text_rewards
  except TypeError as error:
    raise ValueError(
        f"Own.text_reward = {own.text_reward!r}: must be a function, or a list"
        " of functions and of pairs (function, weight)"
    ) from error
  if own.text_reward is not None and not rewards:
    raise ValueError("Own.text_reward = []: must have a function")
  for function, weight in rewards:
    if not callable(function):
      raise ValueError(f"Own.text_reward: {function!r} must be a function")
    if not isinstance(weight, int | float) or not math.isfinite(weight):
      raise ValueError(
          f"Own.text_reward: the weight {weight!r} of {name_of(function)} must"
          " be a finite number"
      )
  if len(rewards) < 2:
    return  # reward/total is enough
  names = [name_of(x.function) for x in rewards]
  for name in names:
    if name in _TAKEN or names.count(name) > 1:
      raise ValueError(
          f"Own.text_reward: the metric reward/{name} of {name} has the name of"
          " another metric; rename the function"
      )


NOTHING = Own()

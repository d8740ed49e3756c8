"""All completions of a small policy, and exact expectations over them.

All completions form one batch, which the functions of training take like
samples. Weighted by their probabilities the rows give exact expectations, with
which estimates can be compared. The functions here do not depend on how a
policy computes its log-probabilities.
"""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from iapo_jax.core.types import Array, Params

Prefix = tuple[int, ...]


@struct.dataclass
class Completions:
  """All completions of a policy, one per row.

  Attributes:
    tokens: int32[b, t], 0 after the end.
    lengths: int32[b], T.
    prefixes: int32[b, t + 1], the number of the prefix o_1..o_i. The empty
      prefix is 0; whole completions are prefixes, too. The last number is
      repeated after the end.
    num_prefixes: number of different prefixes.
  """

  tokens: Array
  lengths: Array
  prefixes: Array
  num_prefixes: int = struct.field(pytree_node=False)

  @property
  def mask(self) -> Array:
    """bool[b, t], true on the tokens of each completion."""
    return jnp.arange(self.tokens.shape[1]) < self.lengths[:, None]


def enumerate_completions(
    next_tokens: Callable[[Prefix], Sequence[int]], *, limit: int = 100_000
) -> Completions:
  """Enumerates all completions in the order of a depth-first walk.

  Args:
    next_tokens: returns the tokens that may follow a prefix, and none if the
      prefix is a whole completion. All completions must be finite.
    limit: the largest number of completions.

  Returns:
    The completions in NumPy arrays.

  Raises:
    ValueError: if there are more than `limit` completions, or only the empty
      one.
  """
  numbers: dict[Prefix, int] = {}
  whole: list[Prefix] = []
  waiting: list[Prefix] = [()]
  while waiting:
    prefix = waiting.pop()
    numbers[prefix] = len(numbers)
    following = [(*prefix, int(token)) for token in next_tokens(prefix)]
    waiting.extend(reversed(following))
    if not following:
      whole.append(prefix)
    if len(whole) > limit:
      raise ValueError(f"limit = {limit}: there are more completions")
  if whole == [()]:
    raise ValueError("next_tokens(()) = (): no completion has a token")
  width = max(len(completion) for completion in whole)
  tokens = np.zeros((len(whole), width), np.int32)
  prefixes = np.zeros((len(whole), width + 1), np.int32)
  for row, completion in enumerate(whole):
    tokens[row, : len(completion)] = completion
    for i in range(width + 1):
      prefixes[row, i] = numbers[completion[:i]]
  lengths = np.array([len(completion) for completion in whole], np.int32)
  return Completions(tokens, lengths, prefixes, len(numbers))


def probabilities(logprobs: Array, mask: Array) -> Array:
  """Returns π(o) = exp Σ_t log π(o_t | o_<t): float[b], of float[b, t].

  The sum is 1 if the rows are all completions.
  """
  chex.assert_equal_shape([logprobs, mask])
  return jnp.exp(jnp.sum(jnp.where(mask, logprobs, 0.0), axis=-1))


def entropy(distribution: Array) -> Array:
  """Returns −Σ_a p log p in nats: float[..., a] -> float[...]."""
  return jnp.sum(jax.scipy.special.entr(distribution), axis=-1)


def given_prefix(x: Array, weights: Array, completions: Completions) -> Array:
  """Returns E[x | o_1..o_i] for each of the n prefixes.

  If x indicates the answers, this is the *consistent* distribution: the final
  answers of the policy when it continues from the prefix.

  Args:
    x: float[b, a], values of each completion.
    weights: float[b], probabilities of the completions.
    completions: all completions.

  Returns:
    float[n, a]; 0 for a prefix of probability 0.
  """
  chex.assert_rank([x, weights], [2, 1])
  width = completions.prefixes.shape[1]
  real = jnp.arange(width) <= completions.lengths[:, None]
  weight = jnp.where(real, weights[:, None], 0.0)
  count = completions.num_prefixes
  numbers = completions.prefixes.reshape(-1)
  mass = jax.ops.segment_sum(weight.reshape(-1), numbers, count)
  total = jax.ops.segment_sum(
      (weight[..., None] * x[:, None, :]).reshape(-1, x.shape[1]),
      numbers,
      count,
  )
  return ratio(total, mass[:, None])


def expected_next(x: Array, weights: Array, completions: Completions) -> Array:
  """Returns E[x_t | o_<t], the mean over the token at t and all later ones.

  With x = D and consistent answer distributions this is the conditional mutual
  information of the token with the answer.

  Args:
    x: float[b, t], a value of each token.
    weights: float[b], probabilities of the completions.
    completions: all completions.

  Returns:
    float[b, t], the same for all rows that share o_<t; 0 after the end.
  """
  mask = completions.mask
  chex.assert_equal_shape([x, mask])
  before = completions.prefixes[:, :-1]
  weight = jnp.where(mask, weights[:, None], 0.0)
  sums = [
      jax.ops.segment_sum(
          values.reshape(-1), before.reshape(-1), completions.num_prefixes
      )
      for values in (weight * x, weight)
  ]
  return jnp.where(mask, ratio(*sums)[before], 0.0)


def ratio(total: Array, mass: Array) -> Array:
  """Returns total / mass, and 0 where the mass is 0."""
  return jnp.where(mass > 0, total / jnp.where(mass > 0, mass, 1.0), 0.0)


def group_advantages(
    rewards: Array, weights: Array, *, normalise: bool = True
) -> Array:
  """Returns (r − E r) / (√Var r + 1e-4), GRPO's advantage in infinite groups.

  For one prompt the division is a positive factor that all completions share:
  it keeps the direction, but scales A against terms that are added to it. All
  arrays are float[b]; `normalise` = False omits the division.
  """
  chex.assert_equal_shape([rewards, weights])
  centred = rewards - jnp.sum(weights * rewards)
  if not normalise:
    return centred
  spread = jnp.sqrt(jnp.sum(weights * jnp.square(centred)))
  return centred / (spread + 1e-4)


def policy_gradient(
    logprobs: Callable[[Params], Array],
    params: Params,
    advantages: Array,
    mask: Array,
) -> Params:
  """Returns E Σ_t A_t ∇ log π(o_t | o_<t) with constant A_t.

  Up to a positive factor this is the expected ascent step with ratio 1 and
  token-mean or constant-length aggregation.

  Args:
    logprobs: maps parameters to float[b, t] for all completions.
    params: where the gradient is taken.
    advantages: float[b, t].
    mask: bool[b, t].

  Returns:
    The gradient, a pytree like `params`.
  """
  chex.assert_equal_shape([advantages, mask])
  weights = probabilities(logprobs(params), mask)[:, None] * advantages
  constant = jax.lax.stop_gradient(jnp.where(mask, weights, 0.0))
  return jax.grad(lambda p: jnp.sum(constant * logprobs(p)))(params)

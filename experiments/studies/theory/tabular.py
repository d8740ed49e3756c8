"""A policy with separate logits for every prefix, exact by enumeration.

A completion is o_1..o_R, `end`, answer: reasoning tokens, the token that ends
the reasoning, and an answer of one token, so T = R + 2. The elicitation is
`end`: a probe after o_1..o_t gives the answer if the reasoning stopped there,
which may differ from the answer after more reasoning.
"""

from collections.abc import Callable, Sequence

import enumeration
import jax
import jax.numpy as jnp
import numpy as np
from enumeration import Completions, Prefix
from flax import struct

from iapo_jax.core import masked
from iapo_jax.core.types import Array
from iapo_jax.rl import advantages, mi

MODES = ("grpo", "paper", "to_go", "length_penalty")

# Far below any logit, but finite, so that gradients are 0 and not NaN.
_NEVER = -1e30


@struct.dataclass
class Tree:
  """The tokens that may follow each of n reasoning prefixes.

  Attributes:
    completions: all completions, b rows of t tokens.
    nodes: int32[b, t + 1], the number of the reasoning o_1..o_min(i, R).
    reasoning_lengths: int32[b], R.
    steps: int32[b, t], the action, of v + 1, of each token; 0 for answers.
    answers: int32[b], the answer, of a; answer 0 is right.
    allowed: bool[n, v + 1], the actions after each reasoning; the last action
      is `end`.
    depths: int32[n], tokens of each reasoning.
    num_answers: a.
  """

  completions: Completions
  nodes: Array
  reasoning_lengths: Array
  steps: Array
  answers: Array
  allowed: Array
  depths: Array
  num_answers: int = struct.field(pytree_node=False)

  @property
  def reasoning_mask(self) -> Array:
    """bool[b, t], true for tokens 1..R."""
    slots = jnp.arange(self.steps.shape[1])
    return slots < self.reasoning_lengths[:, None]

  @property
  def correct(self) -> Array:
    """bool[b], whether the answer is right."""
    return self.answers == 0


@struct.dataclass
class TabularParams:
  """Logits; those of actions that a tree does not allow have no effect.

  Attributes:
    steps: float[n, v + 1], of the tokens and, last, of `end`.
    answers: float[n, a], of the answers after `end`.
  """

  steps: Array
  answers: Array


def make_tree(
    next_steps: Callable[[Prefix], Sequence[int]],
    *,
    num_tokens: int,
    num_answers: int,
) -> tuple[Tree, dict[Prefix, int]]:
  """Makes the tree of all reasonings that a rule allows, and their numbers.

  Args:
    next_steps: returns what may follow a reasoning: tokens 0..v − 1, and v for
      `end`.
    num_tokens: v.
    num_answers: a.

  Raises:
    ValueError: if a reasoning can neither continue nor end.
  """
  end = num_tokens
  numbers: dict[Prefix, int] = {}

  def next_tokens(prefix: Prefix) -> Sequence[int]:
    if prefix and prefix[-1] > end:
      return ()
    if prefix and prefix[-1] == end:
      return range(end + 1, end + 1 + num_answers)
    numbers[prefix] = len(numbers)
    if not next_steps(prefix):
      raise ValueError(f"next_steps({prefix}) = (): must go on or end")
    return next_steps(prefix)

  completions = enumeration.enumerate_completions(next_tokens)
  tokens, lengths = completions.tokens, completions.lengths
  reasoning = lengths - 2
  width = tokens.shape[1]
  nodes = np.array([
      [numbers[tuple(row[: min(i, r)].tolist())] for i in range(width + 1)]
      for row, r in zip(tokens, reasoning, strict=True)
  ], np.int32)  # fmt: skip
  allowed = np.zeros((len(numbers), num_tokens + 1), bool)
  for prefix, number in numbers.items():
    allowed[number, list(next_steps(prefix))] = True
  tree = Tree(
      completions=completions,
      nodes=nodes,
      reasoning_lengths=reasoning,
      steps=np.where(tokens <= end, tokens, 0),
      answers=tokens[np.arange(len(tokens)), lengths - 1] - end - 1,
      allowed=allowed,
      depths=np.array([len(prefix) for prefix in numbers], np.int32),
      num_answers=num_answers,
  )
  return tree, numbers


def consistent_answers(
    params: TabularParams, tree: Tree, numbers: dict[Prefix, int]
) -> TabularParams:
  """Replaces early answers so that elicited and final answers agree.

  Where a reasoning can continue, π(a) becomes the mean of π(a) after one more
  token, given that it continues. `params` are float64[n, ...] of one instance;
  `numbers` are those of `make_tree`.
  """
  logits = np.where(tree.allowed, params.steps, -np.inf)
  chance = np.exp(logits - logits.max(axis=1, keepdims=True))
  answers = np.exp(params.answers)
  answers /= answers.sum(axis=1, keepdims=True)
  for prefix in sorted(numbers, key=len, reverse=True):
    node = numbers[prefix]
    going_on = np.flatnonzero(tree.allowed[node, :-1])
    if going_on.size:
      later = [numbers[*prefix, int(token)] for token in going_on]
      share = chance[node, going_on] / chance[node, going_on].sum()
      answers[node] = share @ answers[later]
  return TabularParams(steps=params.steps, answers=np.log(answers))


def _tables(params: TabularParams, tree: Tree) -> tuple[Array, Array]:
  """Returns log-probabilities of actions [n, v + 1] and answers [n, a]."""
  steps = jax.nn.log_softmax(jnp.where(tree.allowed, params.steps, _NEVER))
  return steps, jax.nn.log_softmax(params.answers)


def _by_token(steps: Array, answers: Array, tree: Tree) -> Array:
  """Combines values of steps [b, t] and of answers [b] to those of tokens."""
  slots = jnp.arange(tree.steps.shape[1])
  values = jnp.where(
      slots <= tree.reasoning_lengths[:, None], steps, answers[:, None]
  )
  return jnp.where(tree.completions.mask, values, 0.0)


def logprobs(params: TabularParams, tree: Tree) -> Array:
  """Returns log π of all tokens: float[b, t] in nats, 0 after the end."""
  steps, answers = _tables(params, tree)
  return _by_token(
      steps[tree.nodes[:, :-1], tree.steps],
      answers[tree.nodes[:, -1], tree.answers],
      tree,
  )


def weights(params: TabularParams, tree: Tree) -> Array:
  """Returns the probability of every completion: float[b], of sum 1."""
  return enumeration.probabilities(
      logprobs(params, tree), tree.completions.mask
  )


def entropies(params: TabularParams, tree: Tree) -> Array:
  """Returns the entropies h_t in nats: float[b, t], 0 after the end."""
  steps, answers = (
      enumeration.entropy(jnp.exp(table)) for table in _tables(params, tree)
  )
  return _by_token(steps[tree.nodes[:, :-1]], answers[tree.nodes[:, -1]], tree)


def answer_distributions(
    params: TabularParams, tree: Tree, *, probe: str
) -> Array:
  """Returns π_i(a) after o_1..o_i: float[b, t + 1, a], meaningless beyond R.

  The probe is `elicited`, the answer if the reasoning ended there, or
  `consistent`, the policy's final answer given o_1..o_i. Raises ValueError for
  another probe.
  """
  if probe == "elicited":
    return jax.nn.softmax(params.answers)[tree.nodes]
  if probe == "consistent":
    given = enumeration.given_prefix(
        jax.nn.one_hot(tree.answers, tree.num_answers),
        weights(params, tree),
        tree.completions,
    )
    return given[tree.completions.prefixes]
  raise ValueError(f"probe = {probe!r}: must be elicited or consistent")


def information(params: TabularParams, tree: Tree, *, probe: str) -> Array:
  """Returns D_t in nats: float[b, t]; the probe `none` gives zeros."""
  mask = tree.reasoning_mask
  if probe == "none":
    return jnp.zeros(mask.shape, params.steps.dtype)
  found = answer_distributions(params, tree, probe=probe)
  return mi.realised_information(enumeration.entropy(found), mask)


def expected_length(params: TabularParams, tree: Tree) -> Array:
  """Returns E T in tokens: float[]."""
  return jnp.sum(weights(params, tree) * tree.completions.lengths)


def accuracy(params: TabularParams, tree: Tree) -> Array:
  """Returns P(the answer is right): float[]."""
  return jnp.sum(weights(params, tree) * tree.correct)


def token_advantages(
    params: TabularParams,
    tree: Tree,
    *,
    mode: str,
    info_weight: Array | float = 1.0,
    explore_weight: Array | float = 0.0,
    discount: Array | float = 1.0,
    cost: Array | float = 0.0,
    length_weight: Array | float = 0.0,
    gated: Array | bool = True,
    probe: str = "elicited",
) -> Array:
  """Returns A_t of every completion, with the exact group advantage.

  The reward is +1 or −1; all completions are well formed.

  Args:
    params: of the policy.
    tree: of its completions.
    mode: one of `MODES`.
    info_weight: w_info.
    explore_weight: w_explore.
    discount: γ of `to_go`.
    cost: c of `to_go`, nats per token.
    length_weight: w of `length_penalty`; T_max is the longest completion.
    gated: whether `to_go` credits correct completions only.
    probe: `elicited` or `consistent` (see `answer_distributions`), or `none`.

  Returns:
    float[b, t], 0 after the end; a constant for the gradient.

  Raises:
    ValueError: if the mode is unknown.
  """
  if mode not in MODES:
    raise ValueError(f"mode = {mode!r}: must be one of {MODES}")
  reward = jnp.where(tree.correct, 1.0, -1.0).astype(params.steps.dtype)
  mask = tree.completions.mask
  penalised = mode == "length_penalty"
  ranked = reward
  if penalised:
    ranked = advantages.length_penalised_rewards(
        reward,
        tree.correct,
        tree.completions.lengths,
        max_length=mask.shape[1],
        weight=length_weight,
    )
  group = enumeration.group_advantages(
      ranked, weights(params, tree), normalise=not penalised
  )
  if mode in ("grpo", "length_penalty"):
    return jax.lax.stop_gradient(jnp.where(mask, group[:, None], 0.0))
  found = information(params, tree, probe=probe)
  if mode == "paper":
    found = masked.unit_zscore(found, tree.reasoning_mask)
  else:
    found = advantages.information_to_go(
        found,
        tree.correct | ~jnp.asarray(gated),
        tree.reasoning_mask,
        discount=discount,
        cost=cost,
    )
  return advantages.shaped_advantages(
      group,
      reward,
      found,
      masked.unit_zscore(entropies(params, tree), mask),
      mask,
      info_weight=info_weight,
      explore_weight=explore_weight,
  )


def gradient(
    params: TabularParams, tree: Tree, token_adv: Array
) -> TabularParams:
  """Returns E Σ_t A_t ∇ log π(o_t | o_<t) for advantages [b, t]."""
  return enumeration.policy_gradient(
      lambda p: logprobs(p, tree), params, token_adv, tree.completions.mask
  )


def natural_gradient(
    params: TabularParams, tree: Tree, token_adv: Array
) -> TabularParams:
  """Returns the inverse Fisher matrix times `gradient`.

  The Fisher matrix has a block P(s) (diag π − π πᵀ) for each table row s. The
  gradient's row is P(s) π (Q − V), which has no mean, so the inverse of the
  block is a division: logits move by Q − V, the mean advantage of an action
  less that of its row.
  """
  plain = gradient(params, tree, token_adv)
  steps, answers = (jnp.exp(table) for table in _tables(params, tree))
  reached, ended = _reach(params, tree)
  return TabularParams(
      steps=enumeration.ratio(plain.steps, reached[:, None] * steps),
      answers=enumeration.ratio(plain.answers, ended[:, None] * answers),
  )


def _reach(params: TabularParams, tree: Tree) -> tuple[Array, Array]:
  """Returns P(reasoning s is passed) and P(s is the whole one): float[n]."""
  chance = weights(params, tree)
  count = tree.allowed.shape[0]
  slots = jnp.arange(tree.nodes.shape[1])
  passed = slots <= tree.reasoning_lengths[:, None]
  reached = jax.ops.segment_sum(
      jnp.where(passed, chance[:, None], 0.0).reshape(-1),
      jnp.asarray(tree.nodes).reshape(-1),
      count,
  )
  return reached, jax.ops.segment_sum(chance, tree.nodes[:, -1], count)

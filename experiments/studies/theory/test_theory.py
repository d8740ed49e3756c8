"""The claims of docs/theory.md, by hand or for random tables.

Most examples are chains of one token, where every prefix has two actions: to go
on or to end. There the plain update's derivative of an expectation E x is

  Σ_s 2 P(s)² π_go² π_end² (Q_go − Q_end) (x_go − x_end),

with P(s) the chance that the reasoning passes s, Q the mean advantage of an
action and x_go, x_end what x comes to after it. With both chances 1/2 a prefix
contributes P(s)² ΔQ Δx / 8.
"""

import functools
import math

import enumeration
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tabular
from chains import OPEN, RIGHT, WRONG, chain, derivatives, random_table
from tabular import TabularParams

TWO = math.log(2.0)

gradient = jax.jit(tabular.gradient)
natural_gradient = jax.jit(tabular.natural_gradient)
weights_of = jax.jit(tabular.weights)
token_advantages = jax.jit(
    tabular.token_advantages, static_argnames=("mode", "probe")
)


@functools.partial(jax.jit, static_argnames=("mode", "probe"))
def credit_alone(params, tree, *, mode, probe="elicited", **settings):
  """The token credit without the group advantage."""
  of = functools.partial(
      tabular.token_advantages, params, tree, mode=mode, probe=probe
  )
  none = {"info_weight": 0.0, "explore_weight": 0.0}
  return of(**settings) - of(**settings | none)


@functools.partial(jax.jit, static_argnames="probe")
def answer_entropies(params, tree, *, probe="elicited"):
  """H_0 .. H_R, and H_R from there on: float[b, t + 1]."""
  found = tabular.answer_distributions(params, tree, probe=probe)
  slots = jnp.arange(tree.nodes.shape[1])
  places = jnp.minimum(slots, tree.reasoning_lengths[:, None])
  return jnp.take_along_axis(enumeration.entropy(found), places, 1)


def effect(params, tree, *, natural=False, **settings):
  """Derivatives of length and accuracy along the credit's own update."""
  of = natural_gradient if natural else gradient
  credit = credit_alone(params, tree, **settings)
  return derivatives(params, tree, of(params, tree, credit))


@jax.jit
def parts(params, tree):
  """Gradients of 2 · accuracy − 1, which is E r, and of expected length."""
  ascent = jax.grad(lambda p: 2 * tabular.accuracy(p, tree))(params)
  return ascent, jax.grad(tabular.expected_length)(params, tree)


def assert_same(found, expected, atol=1e-12):
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=atol), found, expected
  )


def mean_after(values, weights, tree):
  """Means by (node, action) of the steps, in plain loops: [n, v + 1]."""
  total, mass = np.zeros((2, *tree.allowed.shape))
  for row, length in enumerate(tree.reasoning_lengths):
    for i in range(length + 1):
      place = tree.nodes[row, i], tree.steps[row, i]
      total[place] += weights[row] * values[row, i]
      mass[place] += weights[row]
  return total / np.maximum(mass, 1e-300), mass


def test_claim_1_covariance():
  tree, params, _ = random_table(0)
  credit = credit_alone(params, tree, mode="to_go", discount=0.9)
  length, _ = derivatives(params, tree, natural_gradient(params, tree, credit))
  plain, _ = derivatives(params, tree, gradient(params, tree, credit))
  weights = np.asarray(weights_of(params, tree))
  mean, mass = mean_after(np.asarray(credit), weights, tree)
  lengths = np.repeat(tree.completions.lengths[:, None], 5, axis=1)
  later, _ = mean_after(lengths.astype(float), weights, tree)
  passed = mass.sum(1, keepdims=True)
  policy = mass / passed
  credit_gap = mean - (policy * mean).sum(1, keepdims=True)
  length_gap = later - (policy * later).sum(1, keepdims=True)
  np.testing.assert_allclose(
      length, np.sum(passed * policy * credit_gap * length_gap), rtol=1e-10
  )
  np.testing.assert_allclose(
      plain,
      np.sum(passed**2 * policy**2 * credit_gap * length_gap),
      rtol=1e-10,
  )


def test_claim_2_grpo_lengthens_where_thinking_helps():
  """Guess at once, or think and be right; and the other way round."""
  for answers, sign in (((OPEN, RIGHT), 1), ((RIGHT, OPEN), -1)):
    tree, params = chain(*answers)
    credit = token_advantages(params, tree, mode="grpo")
    length, correct = derivatives(params, tree, gradient(params, tree, credit))
    # r is 1 or, in a quarter, -1: mean 1/2, variance 3/4.
    scale = math.sqrt(0.75) + 1e-4
    # Q of r: 1 for the sure branch, 0 for the guess; one token apart.
    np.testing.assert_allclose(length, sign * 1 / 8 / scale)
    # Accuracy 1 and 1/2: 1/16. Beside it the guess itself improves: logits of
    # P π (r - mean) = 1/2 * 1/2 * ±1 each move accuracy by 1/2 * 1/2 * 1/2.
    np.testing.assert_allclose(correct, (1 / 16 + 2 / 4 / 8) / scale)


@pytest.mark.parametrize("seed", range(8))
def test_claim_2_grpo_never_harms(seed):
  tree, params, _ = random_table(seed)
  credit = token_advantages(params, tree, mode="grpo")
  update = gradient(params, tree, credit)
  ascent, _ = parts(params, tree)
  weights = weights_of(params, tree)
  reward = jnp.where(tree.correct, 1.0, -1.0)
  mean = jnp.sum(weights * reward)
  scale = jnp.sqrt(jnp.sum(weights * (reward - mean) ** 2)) + 1e-4
  # The update is the gradient of E r over the deviation of r.
  assert_same(update, jax.tree.map(lambda x: x / scale, ascent))
  assert derivatives(params, tree, update)[1] > 0


def test_claim_3_window_by_hand():
  """With price k of a token both hold for k in [x / |∇L|², |∇r|² / x]."""
  tree, params = chain(OPEN, RIGHT)
  ascent, length = parts(params, tree)
  # Steps ±1/4 and guesses ±1/4 for r; ±1/4 for L.
  np.testing.assert_allclose(ascent.steps[0], [0.25, -0.25])
  np.testing.assert_allclose(ascent.answers[0], [0.25, -0.25])
  np.testing.assert_allclose(length.steps[0], [0.25, -0.25])
  # x = 1/8, |∇L|² = 1/8, |∇r|² = 1/4: the window is [1, 2].
  for price, shorter, kept in ((0.9, 0, 1), (1.5, 1, 1), (2.1, 1, 0)):
    update = jax.tree.map(lambda r, k: r - price * k, ascent, length)  # noqa: B023
    down, up = derivatives(params, tree, update)
    np.testing.assert_allclose(down, 1 / 8 - price / 8)
    np.testing.assert_allclose(up, (1 / 4 - price / 8) / 2)
    assert (down < 0, up > 0) == (shorter, kept)


def test_claim_4_paper_credit_sums_to_zero():
  """One logit shared by all prefixes feels nothing of the information."""
  tree, params = chain(OPEN, RIGHT, (0.3, 0.0))
  credit = credit_alone(params, tree, mode="paper")
  np.testing.assert_allclose(jnp.sum(credit, axis=1), 0.0, atol=1e-15)
  assert np.abs(credit).max() > 0.5
  update = gradient(params, tree, credit)
  assert np.abs(update.steps).max() > 0.01
  np.testing.assert_allclose(jnp.sum(update.steps[:, 0]), 0.0, atol=1e-15)


@pytest.mark.parametrize(
    ("middle", "sign"), [((4.0, 0.0), 1), ((1.0, 0.0), -1)],
    ids=["early", "late"],
)  # fmt: skip
def test_claim_4_paper_lengthens_where_the_second_token_is_redundant(
    middle, sign
):
  """H falls from log 2 to 0 in two tokens, most of it at one of them."""
  tree, params = chain(OPEN, middle, RIGHT)
  # R = 2 alone has a spread: Z = (a, -a), a = 1/√2, if the first says more.
  # Q_go is a/2 at the start, where R = 2 follows in half, and -a after a
  # token; the rest of the reasoning is 3/2 and 1 tokens.
  # (1/8) [a/2 * 3/2 + (1/4) (-a) * 1] = a/16.
  for natural in (False, True):
    length, _ = effect(params, tree, mode="paper", natural=natural)
    np.testing.assert_allclose(length, sign / math.sqrt(2) / 16)
  # With chance q of going on: q (1 - q) [qa (1 + q) - q a] = a q³ (1 - q).
  for q in (0.2, 0.9):
    even = params.replace(steps=jnp.log(jnp.array([[q, 1 - q]] * 3)))
    length, _ = effect(even, tree, mode="paper", natural=True)
    np.testing.assert_allclose(length, sign * q**3 * (1 - q) / math.sqrt(2))


def test_claim_4_paper_paths():
  """The early case above, over many updates: no path is monotone downwards."""
  tree, params = chain(OPEN, (4.0, 0.0), RIGHT)

  @functools.partial(jax.jit, static_argnums=1)
  def path(start, of):
    def step(now, _):
      update = of(now, tree, credit_alone(now, tree, mode="paper"))
      after = jax.tree.map(lambda x, u: x + 0.5 * u, now, update)
      return after, tabular.expected_length(now, tree)

    return jax.lax.scan(step, start, length=400)[1]

  plain, natural = (
      path(params, of) for of in (tabular.gradient, tabular.natural_gradient)
  )
  # 2 + 1/2 + 1/4 tokens at the start; both lengthen at first.
  np.testing.assert_allclose([plain[0], natural[0]], 2.75)
  assert plain[1] > 2.77 and natural[1] > 2.76
  # Plain updates never come back, natural ones end below the start.
  assert plain[-1] > 2.85 and plain.min() == 2.75
  assert natural[-1] < 2.69


def test_claim_5_exploration_lengthens_what_is_wrong():
  """Answers are sure; only the step is a choice, with h = log 2."""
  # The end: h = (log 2, 0), Z = (1, -1)/√2. Going on: h = (log 2, 0, 0),
  # deviations (2, -1, -1)/3, of norm √(2/3): Z is √(2/3) for the token.
  gap = math.sqrt(2 / 3) - math.sqrt(1 / 2)
  for answer, sign in ((RIGHT, -1), (WRONG, 1)):
    tree, params = chain(answer, answer)
    length, _ = effect(
        params, tree, mode="paper", info_weight=0.0, explore_weight=1.0
    )
    np.testing.assert_allclose(length, sign * gap / 8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("probe", ["elicited", "consistent"])
def test_claim_6_to_go_without_gate_is_a_reward_at_the_end(seed, probe):
  """γ = 1: the gradient of E[−H_R − c R], with H frozen; any probe."""
  tree, params, _ = random_table(seed)
  credit = credit_alone(
      params, tree, mode="to_go", gated=False, cost=0.1, probe=probe
  )
  final = answer_entropies(params, tree, probe=probe)[:, -1]
  reward = -final - 0.1 * tree.reasoning_lengths
  expected = jax.jit(
      jax.grad(lambda p: jnp.sum(tabular.weights(p, tree) * reward))
  )
  assert_same(gradient(params, tree, credit), expected(params))


def test_claim_6_complete_accounting_is_nothing():
  """With the answer's own H_R − 0 credited, too, it is a baseline."""
  tree, params, _ = random_table(5)
  # H_{t-1} for each token; `end` and the answer both come at H_R.
  to_go = answer_entropies(params, tree)[:, :-1]
  update = gradient(params, tree, to_go)
  assert_same(update, jax.tree.map(jnp.zeros_like, update), 1e-15)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_claim_6_surely_wrong_beats_a_guess(discount):
  """Two prefixes: longer and less right, from exact elicited entropies."""
  tree, params = chain(OPEN, WRONG)
  # Q_go = log 2 - 0, whatever γ is: the information comes with the token.
  length, correct = effect(
      params, tree, mode="to_go", gated=False, discount=discount
  )
  np.testing.assert_allclose(length, TWO / 8)
  np.testing.assert_allclose(correct, TWO / 8 * (0 - 1 / 2))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_claim_7_consistent_information_never_ends(seed, discount):
  """E[D | go on] ≥ 0, so that `end`, which has 0, never gains."""
  tree, params, numbers = random_table(seed)
  # All prefixes of a depth end with one chance: claim 7's second half.
  rng = np.random.default_rng(seed)
  steps = np.array(params.steps)
  odds = rng.normal(size=3)
  on = np.logaddexp(steps[:, 0], steps[:, 1])
  steps[:, 2] = on + np.append(odds, 0.0)[tree.depths]
  params = tabular.consistent_answers(
      params.replace(steps=steps, answers=np.array(params.answers)),
      tree,
      numbers,
  )
  weights = weights_of(params, tree)
  entropy = np.asarray(answer_entropies(params, tree))
  found = jax.jit(enumeration.expected_next)(
      entropy[:, :-1] - entropy[:, 1:], weights, tree.completions
  )
  assert found.min() > -1e-15 and found.max() > 0.01
  settings = {"mode": "to_go", "gated": False, "discount": discount}
  credit = credit_alone(params, tree, **settings)
  update = gradient(params, tree, credit)
  assert update.steps[:, 2].max() <= 1e-15
  assert update.steps[:, 2].min() < -1e-4
  length, _ = effect(params, tree, natural=True, **settings)
  assert length > 1e-3


def test_claim_8_price_of_discount():
  """Σ γ^k D = H_{t−1} − γ^{R−t} H_R − (1 − γ) Σ γ^{k−t} H_k."""
  h = np.array([2.0, 1.5, 1.75, 0.25])  # H_0 .. H_3, t = 1
  to_go = 0.5 + 0.9 * -0.25 + 0.81 * 1.5
  price = 0.1 * (h[1] + 0.9 * h[2])
  np.testing.assert_allclose(to_go, h[0] - 0.81 * h[3] - price)
  tree, params = chain((0.0, 0.0), (0.5, 0.0), (6.0, 0.0))
  h = np.asarray(answer_entropies(params, tree))[0]
  credit = credit_alone(params, tree, mode="to_go", gated=False, discount=0.9)
  # The first row goes on twice.
  np.testing.assert_allclose(credit[0, 0], h[0] - 0.9 * h[2] - 0.1 * h[1])


def delay_tree(fillers):
  """Work (0) settles the answer and ends; filler (1) only delays it."""
  tree, numbers = tabular.make_tree(
      lambda p: (2,) if 0 in p else (0, 1) if len(p) < fillers else (0,),
      num_tokens=2,
      num_answers=2,
  )
  answers = [RIGHT if 0 in prefix else OPEN for prefix in numbers]
  return tree, TabularParams(
      steps=jnp.zeros(tree.allowed.shape), answers=jnp.array(answers)
  )


def test_claim_8_delay_is_priced_by_hand():
  """log 2 at once, or after a filler token: γ log 2."""
  tree, params = delay_tree(1)
  for gated in (False, True):
    for discount in (1.0, 0.9):
      length, correct = effect(
          params, tree, mode="to_go", discount=discount, gated=gated
      )
      # ΔQ of the filler is -(1 - γ) log 2, for one token more.
      np.testing.assert_allclose(
          length, -(1 - discount) * TWO / 8, atol=1e-15
      )
      np.testing.assert_allclose(correct, 0.0, atol=1e-15)


@pytest.mark.parametrize("seed", range(4))
def test_claim_8_delay_alone_shortens(seed):
  """Routes that differ in delay only, at any chances: the theorem holds."""
  tree, params = delay_tree(4)
  noise = np.random.default_rng(seed).normal(size=params.steps.shape)
  params = params.replace(steps=jnp.asarray(noise))
  settings = {"mode": "to_go", "discount": 0.9, "gated": True}
  for natural in (False, True):
    length, correct = effect(params, tree, natural=natural, **settings)
    assert length < -1e-6
    np.testing.assert_allclose(correct, 0.0, atol=1e-15)


def test_claim_8_what_follows_the_answer_is_free():
  """Tokens after the answer is settled: no credit, at any γ, gate or not."""
  tree, params = chain(*([(3.0, 0.0)] * 3))
  for gated in (False, True):
    for discount in (1.0, 0.9):
      credit = credit_alone(
          params, tree, mode="to_go", discount=discount, gated=gated
      )
      np.testing.assert_array_equal(credit, 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_claim_9_gate(seed):
  """γ = 1: ∇E[−1c H_R], and correctness weighed by the uncertainty before."""
  tree, params, _ = random_table(seed)
  credit = credit_alone(params, tree, mode="to_go")
  entropy = np.asarray(answer_entropies(params, tree))
  before, final = entropy[:, :-1], entropy[:, -1:]
  right = tree.correct[:, None]
  expected = [
      gradient(params, tree, np.broadcast_to(right * term, before.shape))
      for term in (-final, before)
  ]
  assert_same(gradient(params, tree, credit), jax.tree.map(np.add, *expected))


@pytest.mark.parametrize("seed", range(4))
def test_claim_9_gate_is_safe_where_the_end_is_certain(seed):
  """H_R = 0 wherever it may end: accuracy never falls."""
  tree, params, _ = random_table(seed)
  leaf = tree.depths == 3
  # exp(-10,000) is 0: elsewhere it never ends.
  steps = params.steps.at[:, 2].set(np.where(leaf, 0.0, -10_000.0))
  sure = np.where(params.answers[:, :1] > 0, 60.0, -60.0) * [1, -1]
  answers = jnp.where(leaf[:, None], sure, params.answers)
  params = TabularParams(steps=steps, answers=answers)
  for natural in (False, True):
    _, correct = effect(params, tree, mode="to_go", natural=natural)
    assert correct > 1e-5


def test_claim_9_confidently_wrong():
  """Sure and wrong at once, or a guess after a token: the token is blamed."""
  tree, params = chain(WRONG, OPEN)
  length, correct = effect(params, tree, mode="to_go")
  # Q_go = 1/2 (0 - log 2); accuracies 1/2 and 0.
  np.testing.assert_allclose(length, -TWO / 2 / 8)
  np.testing.assert_allclose(correct, -TWO / 2 / 8 / 2)


@pytest.mark.parametrize("seed", range(4))
def test_claim_10_cost_shortens(seed):
  """Without gate: −w c ∇E R. With it `end` never loses."""
  tree, params, _ = random_table(seed)
  settings = {"mode": "to_go", "cost": 0.1, "probe": "none"}
  credit = credit_alone(params, tree, gated=False, **settings)
  _, length = parts(params, tree)
  assert_same(
      gradient(params, tree, credit), jax.tree.map(lambda g: -0.1 * g, length)
  )
  assert effect(params, tree, gated=False, **settings)[0] < 0
  update = gradient(params, tree, credit_alone(params, tree, **settings))
  assert update.steps[:, 2].min() >= 0


def test_claim_10_cost_harms_where_thinking_helps():
  tree, params = chain(OPEN, RIGHT)
  for gated in (False, True):
    # All that go on are right: Q_go = -c either way.
    length, correct = effect(
        params, tree, mode="to_go", cost=0.1, probe="none", gated=gated
    )
    np.testing.assert_allclose(length, -0.1 / 8)
    np.testing.assert_allclose(correct, -0.1 / 16)


def test_claim_11_length_penalty_by_hand():
  tree, params = chain(OPEN, RIGHT)
  # 2 and 3 of 3 tokens: 1 - w when it thinks, a right guess 1 - 2w/3.
  # ΔQ = (1 - w) - (-w/3); the guess improves by P π ± (1 - w/3).
  for weight in (1.0, 1.75, 2.25):
    credit = token_advantages(
        params, tree, mode="length_penalty", length_weight=weight
    )
    length, correct = derivatives(params, tree, gradient(params, tree, credit))
    steps, guess = (1 - 2 * weight / 3) / 8, (2 - 2 * weight / 3) / 32
    # T / T_max is computed in float32.
    np.testing.assert_allclose(length, steps, atol=1e-7)
    np.testing.assert_allclose(correct, steps / 2 + guess, atol=1e-7)
    # Length falls for w > 3/2, accuracy for w > 2.
    assert (length < 0, correct < 0) == (weight > 1.5, weight > 2)

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_decoder
import pytest
import tiny
from absl.testing import parameterized
from flax import linen as nn

from iapo_jax.core.types import KVSegment
from iapo_jax.models import attention, head, transformer

CONFIGS = {
    "grouped_tied": tiny.MODEL,
    "bias_qknorm_untied": tiny.FULL,
    "remat": dataclasses.replace(tiny.MODEL, remat=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_extend_agrees_with_the_numpy_oracle(name):
  cfg = CONFIGS[name]
  params = tiny.make_params(cfg)
  tokens = np.array([[7, 3, 3, 28, 11, 4, 9]])
  hidden = tiny.full_forward(params, tokens, cfg)
  ours = jax.nn.log_softmax(head.logits(params, hidden, cfg=cfg))
  expected = numpy_decoder.log_distributions(params, tokens[0], cfg)
  np.testing.assert_allclose(ours[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_extending_token_by_token_is_one_forward(name):
  cfg = CONFIGS[name]
  params = tiny.make_params(cfg)
  tokens = jax.random.randint(jax.random.key(0), (3, 6), 0, cfg.vocab_size)
  whole = tiny.full_forward(params, tokens, cfg)
  context = ()
  for i in range(tokens.shape[1]):
    hidden, segment = transformer.extend(
        params,
        tokens[:, i : i + 1],
        jnp.full((3, 1), i),
        context,
        cfg=cfg,
    )
    context = (*context, segment)
    np.testing.assert_allclose(hidden[:, 0], whole[:, i], atol=1e-5)


def test_a_seed_gives_the_weights_that_it_always_gave():
  """Recorded: runs from scratch can be repeated with a later version."""
  params = nn.unbox(transformer.init(jax.random.key(0), tiny.MODEL))
  np.testing.assert_allclose(
      params["embedding"][0, :3], [0.018168, -0.362714, -0.375438], atol=1e-6
  )
  np.testing.assert_allclose(
      params["layers"]["mlp"]["up_kernel"][:, 0, :2],
      [[-0.246620, 0.010925], [0.289768, -0.329557]],
      atol=1e-6,
  )


def test_a_segment_row_serves_consecutive_rows():
  """Two prompts shared by groups of three = six prompts of their own."""
  cfg = tiny.MODEL
  params = tiny.make_params(cfg)
  prompts = jax.random.randint(jax.random.key(0), (2, 4), 0, cfg.vocab_size)
  tokens = jax.random.randint(jax.random.key(1), (6, 3), 0, cfg.vocab_size)
  positions = jnp.broadcast_to(4 + jnp.arange(3), (6, 3))
  at = jnp.broadcast_to(jnp.arange(4), (2, 4))
  _, shared = transformer.extend(params, prompts, at, cfg=cfg)
  ours, _ = transformer.extend(params, tokens, positions, (shared,), cfg=cfg)
  whole = jnp.concatenate([jnp.repeat(prompts, 3, axis=0), tokens], axis=1)
  expected = tiny.full_forward(params, whole, cfg)[:, 4:]
  np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_invisible_slots_do_not_matter():
  cfg = tiny.MODEL
  params = tiny.make_params(cfg)
  tokens = jax.random.randint(jax.random.key(0), (2, 5), 0, cfg.vocab_size)
  at = jnp.broadcast_to(jnp.arange(5), (2, 5))
  _, segment = transformer.extend(params, tokens, at, cfg=cfg)
  seen = jnp.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], bool)
  noise = jnp.where(seen[None, :, None, None, :], 0.0, 1e3)
  clean = segment.replace(visible=seen)
  dirty = clean.replace(
      keys=clean.keys + noise,
      values=clean.values - noise.swapaxes(3, 4),
  )
  new, position = tokens[:, :1], jnp.array([[3], [1]])
  ours, _ = transformer.extend(params, new, position, (dirty,), cfg=cfg)
  expected, _ = transformer.extend(params, new, position, (clean,), cfg=cfg)
  np.testing.assert_array_equal(ours, expected)


class AttendTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_hand_example(self):
    # One query (1, 0) with h = 2, so scores are q·k / √2. Two segments of one
    # slot: keys (√2 log 3, 0) and (0, 0) give scores log 3 and 0, weights 3/4
    # and 1/4; values (4, 0) and (0, 8) give 3/4·(4, 0) + 1/4·(0, 8) = (3, 2).
    # A third slot would win with its score of 70 but is not visible.
    queries = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    score = np.sqrt(2) * np.log(3)
    first = (
        jnp.array([[score, 99.0], [0.0, 0.0]]).reshape(1, 1, 2, 2),
        jnp.array([[4.0, 0.0], [1.0, 1.0]]).reshape(1, 1, 2, 2),
        jnp.array([True, False]).reshape(1, 1, 2),
    )
    second = (
        jnp.zeros((1, 1, 2, 1)),
        jnp.array([0.0, 8.0]).reshape(1, 1, 1, 2),
        jnp.ones((1, 1, 1), bool),
    )
    attend = functools.partial(attention.attend, scale=2**-0.5)
    out = self.variant(attend)(queries, [first, second])
    np.testing.assert_allclose(out.reshape(2), [3.0, 2.0], rtol=1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_gradients_by_hand(self):
    # Scores log 3 and 0 in two segments, weights 3/4 and 1/4, values 4 and 8:
    # o = 5. The gradient of a score is w (v − o): 3/4 · −1 and 1/4 · 3. Query
    # 1 and keys log 3, 0 have −3/4 log 3, and ∓3/4; values have the weights.
    one, seen = jnp.ones((1, 1, 1, 1)), jnp.ones((1, 1, 1), bool)

    def total(query, keys, values):
      segments = [
          (keys[i] * one, values[i] * one, seen) for i in range(2)
      ]
      return jnp.sum(attention.attend(query * one, segments, scale=1.0))

    keys, values = jnp.array([np.log(3.0), 0.0]), jnp.array([4.0, 8.0])
    gradients = self.variant(jax.grad(total, (0, 1, 2)))(1.0, keys, values)
    expected = -0.75 * np.log(3.0), [-0.75, 0.75], [0.75, 0.25]
    for ours, theirs in zip(gradients, expected, strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_a_segment_of_which_nothing_is_visible(self):
    queries = jnp.ones((2, 1, 2, 4))
    values = jax.random.normal(jax.random.key(0), (2, 1, 3, 4))
    keys = values.swapaxes(2, 3)
    seen = (keys, values, jnp.ones((1, 1, 3), bool))
    unseen = (keys * 9, values * 9, jnp.zeros((1, 1, 3), bool))
    attend = self.variant(functools.partial(attention.attend, scale=0.5))
    np.testing.assert_array_equal(
        attend(queries, [unseen, seen]), attend(queries, [seen])
    )


  @chex.variants(with_jit=True, without_jit=True)
  def test_a_capped_score(self):
    # Scores 2 log 3 and 0 capped at c = log 3: c · tanh(2) = 1.05909 and 0;
    # weights e^1.05909 = 2.88374 and 1, so the first value counts 0.742516.
    queries = jnp.ones((1, 1, 1, 1))
    keys = jnp.array([np.log(3.0), 0.0]).reshape(1, 1, 1, 2)
    values = jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)
    seen = jnp.ones((1, 1, 2), bool)
    attend = functools.partial(
        attention.attend, scale=2.0, cap=float(np.log(3.0))
    )
    out = self.variant(attend)(queries, [(keys, values, seen)])
    np.testing.assert_allclose(out.item(), 0.742516, rtol=1e-5)


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_gradients_are_those_of_a_plain_softmax(cap):
  # Two rows read one segment row, and one of their own; a prefix of the first
  # is seen, of the second what is causal.
  b, x, n, k, h, s = 2, 3, 4, 2, 5, 6
  keys_left = iter(jax.random.split(jax.random.key(0), 6))

  def draw(*shape):
    return jax.random.normal(next(keys_left), shape)

  queries, weights = draw(b, x, n, h), draw(b, x, n, h)
  pairs = (
      (draw(1, k, h, s), draw(1, k, s, h)),
      (draw(b, k, h, x), draw(b, k, x, h)),
  )
  masks = jnp.arange(s)[None, None] < 4, jnp.tri(x, dtype=bool)[None]

  def fast(queries, pairs):
    segments = [(*p, m) for p, m in zip(pairs, masks, strict=True)]
    return attention.attend(queries, segments, scale=0.7, cap=cap)

  def plain(queries, pairs):
    both = [
        [jnp.repeat(y, b // y.shape[0], 0) for y in pair] for pair in pairs
    ]
    keys = jnp.concatenate([keys for keys, _ in both], 3)
    values = jnp.concatenate([values for _, values in both], 2)
    keys, values = (jnp.repeat(y, n // k, 1) for y in (keys, values))
    scores = 0.7 * jnp.einsum("bxnh,bnhs->bnxs", queries, keys)
    scores = attention.soft_cap(scores, cap)
    wide = [jnp.broadcast_to(m, (b, x, m.shape[2])) for m in masks]
    seen = jnp.concatenate(wide, 2)[:, None]
    mixed = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
    return jnp.einsum("bnxs,bnsh->bxnh", mixed, values)

  def gradients(attend):
    def total(*arrays):
      return jnp.sum(weights * attend(*arrays))

    return jax.jit(jax.grad(total, (0, 1)))(queries, pairs)

  chex.assert_trees_all_close(
      gradients(fast), gradients(plain), rtol=1e-5, atol=1e-6
  )


class WindowedTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # Four queries in two rows, at 3 and 5; one segment row serves them all,
    # its slots at 0..4, the last not visible. A window of 3 sees from
    # position p the positions p − 2 .. p.
    seen = self.variant(attention.windowed)(
        jnp.array([[[True, True, True, True, False]]]),
        jnp.int32(3),
        jnp.array([[3], [5]]),
        jnp.arange(5)[None],
    )
    np.testing.assert_array_equal(
        seen[:, 0], [[0, 1, 1, 1, 0], [0, 0, 0, 1, 0]]
    )
    everything = self.variant(attention.windowed)(
        jnp.ones((1, 1, 5), bool),
        jnp.int32(0),
        jnp.array([[3], [5]]),
        jnp.arange(5)[None],
    )
    assert everything.all()

  @chex.variants(with_jit=True, without_jit=True)
  def test_rows_of_queries_masks_and_slots(self):
    """Each of 4 rows of queries has its mask and its slots, 2 of either."""
    seen = self.variant(attention.windowed)(
        jnp.array([[[True, True]], [[True, False]]]),
        jnp.int32(2),
        jnp.array([[2], [3], [12], [13]]),
        jnp.array([[1, 2], [11, 12]]),
    )
    np.testing.assert_array_equal(
        seen[:, 0], [[1, 1], [0, 1], [1, 0], [0, 0]]
    )


class StatisticsTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_hand_values(self):
    # Probabilities 1/2, 1/4, 1/4 from scores log 2 + c, c, c (c = 5):
    # H = 1/2 log 2 + 2 · 1/4 log 4 = 3/2 log 2; log π = log 1/2, log 1/4.
    scores = jnp.array([[np.log(2) + 5, 5, 5]] * 2, jnp.float32)
    stats = self.variant(head.statistics)(scores, jnp.array([0, 2]))
    np.testing.assert_allclose(
        stats.logprob, np.log([0.5, 0.25]), rtol=1e-6
    )
    np.testing.assert_allclose(stats.entropy, [1.5 * np.log(2)] * 2, rtol=1e-6)
    np.testing.assert_array_equal(stats.hit, [True, False])

  @chex.variants(with_jit=True, without_jit=True)
  def test_extreme_scores_stay_finite(self):
    scores = jnp.array([[1e4, -1e4, 0.0]])
    stats = self.variant(head.statistics)(scores, jnp.array([1]))
    np.testing.assert_allclose(stats.logprob, [-2e4])
    np.testing.assert_allclose(stats.entropy, [0.0], atol=1e-6)


class DrawTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_hand_example(self):
    # Weights 1, 3 | 4, 8: blocks of two with 4 and 12 of 16. The first number
    # chooses block 0 below 4/16, the second token 0 below 1/4 of block 0 and
    # token 2 below 4/12 of block 1.
    scores = jnp.log(jnp.array([[1.0, 3.0, 4.0, 8.0]]))
    for uniforms, token in (
        ((0.0, 0.0), 0), ((0.24, 0.24), 0), ((0.24, 0.26), 1),
        ((0.26, 0.0), 2), ((0.99, 0.33), 2), ((0.26, 0.34), 3),
        ((1 - 2**-24, 1 - 2**-24), 3),
    ):  # fmt: skip
      drawn, _ = self.variant(head.draw)(scores, jnp.array([uniforms]))
      assert drawn.tolist() == [token], uniforms

  @chex.variants(with_jit=True, without_jit=True)
  def test_what_has_no_weight_is_never_drawn(self):
    # Five tokens fill blocks of four to eight: three have no token. Of the
    # others two have no weight, at the beginning and at the end.
    none = -jnp.inf
    scores = jnp.array([[none, 0.0, none, 1.0, none]])
    sides = jnp.concatenate([jnp.linspace(0, 0.999, 40), jnp.ones(1) - 2**-24])
    grid = jnp.stack(jnp.meshgrid(sides, sides), axis=-1).reshape(-1, 2)
    rows = jnp.broadcast_to(scores, (len(grid), 5))
    drawn, _ = self.variant(head.draw)(rows, grid)
    assert set(drawn.tolist()) == {1, 3}


class TokenStatisticsTest(chex.TestCase):

  @parameterized.parameters(1, 2, 3, 7, 100)
  def test_chunks_change_neither_values_nor_gradients(self, chunk):
    cfg = tiny.MODEL
    params = tiny.make_params(cfg)
    hidden = jax.random.normal(jax.random.key(0), (2, 7, cfg.d_model))
    targets = jax.random.randint(jax.random.key(1), (2, 7), 0, cfg.vocab_size)

    def chunked(params, hidden):
      stats = head.token_statistics(
          params, hidden, targets, cfg=cfg, temperature=0.7, chunk=chunk
      )
      return jnp.sum(stats.logprob * jnp.arange(7)), stats

    def at_once(params, hidden):
      scores = head.logits(params, hidden, cfg=cfg, temperature=0.7)
      stats = head.statistics(scores, targets)
      return jnp.sum(stats.logprob * jnp.arange(7)), stats

    ours, theirs = (
        jax.grad(f, argnums=(0, 1), has_aux=True)(params, hidden)
        for f in (chunked, at_once)
    )
    chex.assert_trees_all_close(ours, theirs, atol=1e-5, rtol=1e-5)

  @chex.variants(with_jit=True, without_jit=True)
  def test_a_loss_has_the_gradients_of_a_function_of_statistics(self):
    # Seven positions in chunks of three: the last chunk is padded, and what
    # is padded has no loss though this one has one everywhere.
    cfg = dataclasses.replace(tiny.FULL, logit_cap=4.0)
    params = tiny.make_params(cfg)
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (2, 7, cfg.d_model))
    targets = jax.random.randint(keys[1], (2, 7), 0, cfg.vocab_size)
    known = jax.random.normal(keys[2], (2, 7))

    def loss(logprob, known):
      return 1.0 + known * logprob**2

    def fast(params, hidden):
      return head.token_loss(
          params, hidden, targets, known,
          loss=loss, cfg=cfg, temperature=0.7, chunk=3,
      )  # fmt: skip

    def plain(params, hidden):
      stats = head.token_statistics(
          params, hidden, targets, cfg=cfg, temperature=0.7
      )
      return jnp.sum(loss(stats.logprob, known)), stats

    ours, theirs = (
        self.variant(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(
            params, hidden
        )
        for f in (fast, plain)
    )
    chex.assert_trees_all_close(ours, theirs, atol=1e-4, rtol=1e-5)

  @parameterized.parameters("statistics", "loss")
  def test_the_whole_logits_never_exist(self, of):
    """No array of the gradient program has t · v elements per sequence."""
    cfg = dataclasses.replace(tiny.MODEL, vocab_size=1024)
    params = tiny.make_params(cfg)
    hidden = jnp.ones((2, 64, cfg.d_model))
    targets = jnp.zeros((2, 64), jnp.int32)

    def loss(params, hidden):
      if of == "loss":
        return head.token_loss(
            params, hidden, targets, (),
            loss=lambda logprob, _: logprob, cfg=cfg, chunk=8,
        )[0]  # fmt: skip
      stats = head.token_statistics(
          params, hidden, targets, cfg=cfg, chunk=8
      )
      return jnp.sum(stats.logprob)

    program = jax.make_jaxpr(jax.grad(loss))(params, hidden)
    sizes = tiny.array_sizes(program.jaxpr)
    assert max(sizes) < 2 * 64 * 1024
    assert max(sizes) >= 2 * 8 * 1024  # the search does see the chunks


def test_bfloat16_is_near_float32():
  cfg = tiny.MODEL
  params = tiny.make_params(cfg, sharpness=1.0)
  tokens = np.array([[7, 3, 3, 28, 11, 4, 9]])
  half = dataclasses.replace(cfg, dtype="bfloat16")
  exact = jax.nn.log_softmax(
      head.logits(params, tiny.full_forward(params, tokens, cfg), cfg=cfg)
  )
  hidden = tiny.full_forward(params, tokens, half)
  assert hidden.dtype == jnp.bfloat16
  scores = head.logits(params, hidden, cfg=half)
  assert scores.dtype == jnp.float32
  # bf16 keeps 8 bits: errors near 2^-8 of values near 1, over few additions.
  np.testing.assert_allclose(jax.nn.log_softmax(scores), exact, atol=0.1)


@pytest.mark.parametrize("remat", [False, True])
def test_no_layer_keeps_its_attention_weights(remat):
  cfg = dataclasses.replace(tiny.MODEL, remat=remat)
  layers, rows, heads, length = cfg.num_layers, 2, cfg.num_heads, 64
  params = tiny.make_params(cfg)
  tokens = jnp.zeros((rows, length), jnp.int32)

  def total(params):
    return jnp.sum(tiny.full_forward(params, tokens, cfg))

  program = jax.make_jaxpr(jax.grad(total))(params)
  sizes = tiny.array_sizes(program.jaxpr)
  assert max(sizes) == rows * heads * length**2
  kept = layers * rows * length
  wide = kept * cfg.mlp_dim in sizes  # gate and up, of all layers
  assert wide == (not remat)


def test_layers_are_scanned():
  """The program does not grow with depth."""

  def equations(layers):
    cfg = dataclasses.replace(tiny.MODEL, num_layers=layers)
    params = jax.eval_shape(functools.partial(tiny.make_params, cfg))
    tokens = jnp.zeros((1, 4), jnp.int32)
    run = functools.partial(transformer.extend, cfg=cfg)
    program = jax.make_jaxpr(run)(params, tokens, tokens)
    return len(tiny.array_sizes(program.jaxpr))

  assert equations(2) == equations(7)


def test_segments_may_be_empty_handed():
  """A segment nobody sees changes nothing, whatever its length."""
  cfg = tiny.MODEL
  params = tiny.make_params(cfg)
  tokens = jnp.array([[4, 5, 6]])
  at = jnp.arange(3)[None]
  keys = jnp.ones((cfg.num_layers, 1, cfg.num_kv_heads, cfg.head_dim, 2))
  nothing = jnp.zeros((1, 2), bool)
  unseen = KVSegment(keys, keys.swapaxes(3, 4), nothing, at[:, :2])
  ours, _ = transformer.extend(params, tokens, at, (unseen,), cfg=cfg)
  np.testing.assert_array_equal(ours, tiny.full_forward(params, tokens, cfg))


@pytest.mark.full
def test_many_tokens_have_the_gradients_of_float32_in_bfloat16():
  """Three tokens over and over: sums that must not stop growing."""
  plain = dataclasses.replace(
      tiny.MODEL, qkv_bias=True, output_bias=True, mlp_bias=True
  )
  params = tiny.make_params(plain)
  tokens = jax.random.randint(jax.random.key(1), (32, 512), 3, 6)
  positions = jnp.broadcast_to(jnp.arange(512), tokens.shape)
  weights = 0.5 + jax.random.normal(jax.random.key(2), tokens.shape)

  def loss(params, cfg):
    hidden, _ = transformer.extend(params, tokens, positions, cfg=cfg)
    wide = hidden.astype(jnp.float32)
    return jnp.mean(weights * jnp.sin(3 * wide).sum(axis=-1))

  gradient = jax.jit(jax.grad(loss), static_argnames="cfg")
  ours = gradient(params, cfg=dataclasses.replace(plain, dtype="bfloat16"))
  exact = gradient(params, cfg=plain)

  def check(x, y):
    assert jnp.linalg.norm(x - y) < 0.1 * jnp.linalg.norm(y)

  jax.tree.map(check, ours, exact)

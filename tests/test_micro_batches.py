import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from iapo_jax.config.schema import (
  Config,
  DataConfig,
  LossConfig,
  MeshConfig,
  RolloutConfig,
)
from iapo_jax.core import sharding
from iapo_jax.rl import losses, micro_batches, update
from iapo_jax.rl.early_answers import EarlyAnswers
from iapo_jax.run import assembly


class RunTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # Four completions of at most 256 tokens; a micro-batch has as many tokens
    # as one of them. The longest, 256, goes alone. Of 60, 50 and 40, cut to 64
    # tokens, 256 / 64 = 4 may go together: two micro-batches instead of four.
    batch = jnp.array([50.0, 60.0, 256.0, 40.0])

    def step(part, there, length):
      found = jnp.broadcast_to(part[:, None], (part.shape[0], length))
      return jnp.array([1.0, jnp.sum(jnp.where(there, part, 0.0))]), found

    def run(batch):
      return micro_batches.run(
          step, jnp.zeros(2), batch, batch.astype(jnp.int32),
          parts=4, max_tokens=256,
      )  # fmt: skip

    total, found = self.variant(run)(batch)
    np.testing.assert_array_equal(total, [2, 406])
    expected = np.zeros((4, 256))
    for row, length in enumerate([64, 64, 256, 64]):
      expected[row, :length] = batch[row]
    np.testing.assert_array_equal(found, expected)


def test_short_completions_are_not_cut():
  assert micro_batches.cuts(255) == [255]
  assert micro_batches.cuts(256) == [64, 128, 192, 256]
  assert micro_batches.cuts(258)[-1] == 258


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_each_row_counts_once(parts):
  # Twelve completions, lengths at random: whatever the parts, sums and rows are
  # those of all rows, and what was found is a row's own.
  lengths = jax.random.randint(jax.random.key(parts), (12,), 1, 302)
  values = jnp.arange(1.0, 13.0)

  def step(part, there, length):
    found = part[:, None] + jnp.arange(length) / 1000
    return jnp.sum(jnp.where(there, part, 0.0)), found

  total, found = jax.jit(
      lambda lengths: micro_batches.run(
          step, jnp.float32(0), values, lengths, parts=parts, max_tokens=301
      )
  )(lengths)
  assert total == 78  # 1 + 2 + ... + 12
  expected = values[:, None] + jnp.arange(301) / 1000
  within = jnp.arange(301) < lengths[:, None]
  np.testing.assert_array_equal(
      jnp.where(within, found, 0), jnp.where(within, expected, 0)
  )


CFG = Config(
    model=dataclasses.replace(tiny.MODEL, vocab_size=32),
    data=DataConfig(max_prompt_tokens=6),
    prompts_per_step=8,
    group_size=2,
    rollout=RolloutConfig(max_tokens=256),
    loss=LossConfig(kl_weight=0.1, micro_batches=2, head_chunk=100),
    mesh=MeshConfig(data=2, fsdp=2, tensor=2),
)
PROMPTS = tiny.make_prompts(lengths=(5, 1, 3, 6, 2, 4, 6, 1))


@jax.jit
def score(params, ids):
  return tiny.score(
      params, PROMPTS, ids, cfg=CFG.model, group_size=CFG.group_size,
      temperature=1.0, chunk=256,
  ).logprob  # fmt: skip


@functools.cache
def make_params(sharpness=3.0):
  return tiny.make_params(CFG.model, sharpness=sharpness)


@functools.cache
def ragged(sharpness=3.0, longest=CFG.rollout.max_tokens):
  """Completions of all lengths by a policy that has moved a little since."""
  params = make_params(sharpness)
  rows, most = CFG.sequences_per_step, longest * 3 // 5
  keys = iter(jax.random.split(jax.random.key(0), 5))
  lengths = jax.random.randint(next(keys), (rows,), 1, most).at[3].set(longest)
  ids = jax.random.randint(next(keys), (rows, longest), 3, 29)
  logprobs = score(params, ids)
  noise = jax.random.normal(next(keys), ids.shape)
  tokens = update.Tokens(
      ids=ids,
      old_logprobs=logprobs + 0.05 * noise,
      reference_logprobs=logprobs - 0.1,
      advantages=jax.random.normal(next(keys), ids.shape),
      weights=losses.token_weights(
          jnp.arange(longest) < lengths[:, None], aggregation="token_mean"
      ),
  )
  return update.Experience(PROMPTS, lengths, tokens)


@pytest.mark.full
@pytest.mark.parametrize("parts", [1, 4])
def test_early_answers_count_once_whatever_the_cuts(parts):
  """Copies that fill a micro-batch up teach nothing, whatever they carry."""
  both = update.with_early_answers(ragged(), early_answers(), weight=0.5)
  one = MeshConfig(data=1, fsdp=1, tensor=1)
  loss = dataclasses.replace(CFG.loss, micro_batches=parts)
  cfg = dataclasses.replace(CFG, mesh=one, loss=loss)
  ours, _ = jax.jit(functools.partial(update._gradients, cfg=cfg))(
      make_params(), both
  )
  without, _ = plain_gradients()
  expected = jax.tree.map(jnp.add, without, early_gradients())
  chex.assert_trees_all_close(ours, expected, rtol=1e-4, atol=1e-6)


@functools.cache
def early_answers():
  """Short ones, one for each completion."""
  rng = np.random.default_rng(7)
  rows, longest = CFG.sequences_per_step, CFG.rollout.max_tokens
  lengths = rng.integers(3, 60, rows)
  return EarlyAnswers(
      tokens=jnp.asarray(rng.integers(3, 29, (rows, longest))),
      lengths=jnp.asarray(lengths, jnp.int32),
      learned=jnp.arange(longest) == lengths[:, None] - 1,
  )


@functools.cache
def early_gradients():
  """Gradients of the early answers alone, all of them at once."""
  early = early_answers()

  def loss(params):
    logprobs = score(params, early.tokens)
    total = jnp.sum(jnp.where(early.learned, logprobs, 0.0))
    return -0.5 * total / len(early.lengths)

  return jax.jit(jax.grad(loss))(make_params())


@functools.cache
def plain_gradients():
  """Of the whole batch at once, through the log-probabilities."""
  tokens = ragged().tokens

  def loss(params):
    logprobs = score(params, tokens.ids)
    per_token = losses.clipped_surrogate(
        losses.importance_ratio(logprobs, tokens.old_logprobs),
        tokens.advantages,
        clip_low=CFG.loss.clip_low,
        clip_high=CFG.loss.clip_high,
    )
    per_token += 0.1 * losses.k3_divergence(
        logprobs, tokens.reference_logprobs
    )
    return jnp.sum(tokens.weights * per_token), logprobs

  return jax.jit(jax.grad(loss, has_aux=True))(make_params())


@pytest.mark.parametrize(
    "devices", [1, pytest.param(8, marks=pytest.mark.full)]
)
def test_gradients_are_those_of_the_whole_batch(devices):
  params, experience = make_params(), ragged()
  one = MeshConfig(data=1, fsdp=1, tensor=1)
  cfg = CFG if devices == 8 else dataclasses.replace(CFG, mesh=one)
  mesh = assembly.make_mesh(cfg, jax.local_devices()[:devices])

  def run(params, experience):
    with sharding.scope(mesh):
      return update._gradients(params, experience, cfg)

  placed = sharding.put_batch(experience, mesh)
  ours, logprobs = jax.jit(run)(params, placed)
  expected, theirs = plain_gradients()
  chex.assert_trees_all_close(ours, expected, rtol=1e-4, atol=1e-6)
  live = np.asarray(experience.tokens.weights) > 0
  np.testing.assert_allclose(
      np.where(live, logprobs, 0), np.where(live, theirs, 0), atol=1e-4
  )


@pytest.mark.full
@pytest.mark.parametrize("remat", [False, True])
def test_bfloat16_is_near_float32(remat):
  """Also a check that a CPU has all the products of a bfloat16 update."""
  model = dataclasses.replace(CFG.model, remat=remat)
  rollout = RolloutConfig(max_tokens=120)  # so few are cut in one way only
  params, experience = make_params(1.0), ragged(1.0, rollout.max_tokens)
  found = {}
  for dtype in ("float32", "bfloat16"):
    cfg = dataclasses.replace(
        CFG, model=dataclasses.replace(model, dtype=dtype), rollout=rollout
    )
    run = jax.jit(functools.partial(update._gradients, cfg=cfg))
    found[dtype], _ = run(params, experience)
  for ours, exact in zip(
      *map(jax.tree.leaves, (found["bfloat16"], found["float32"])), strict=True
  ):
    assert ours.dtype == jnp.float32
    assert jnp.linalg.norm(ours - exact) < 0.1 * jnp.linalg.norm(exact)


def test_short_completions_have_no_more_logits_at_once():
  """Micro-batches of them have four times the rows."""
  model = dataclasses.replace(CFG.model, vocab_size=2**15)
  cfg = dataclasses.replace(CFG, model=model, loss=dataclasses.replace(
      CFG.loss, micro_batches=8, head_chunk=16
  ))  # fmt: skip
  params = jax.eval_shape(functools.partial(tiny.make_params, model))
  experience = ragged()
  run = functools.partial(update._gradients, cfg=cfg)
  sizes = tiny.array_sizes(jax.make_jaxpr(run)(params, experience).jaxpr)
  # 16 completions in 8 micro-batches: 2 rows, 16 positions, the vocabulary.
  assert max(sizes) == 2 * 16 * 2**15

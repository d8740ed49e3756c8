
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from iapo_jax.models import transformer
from iapo_jax.rl import policy

GROUP, WIDTH = 3, 9


def sample(*arguments, max_tokens=WIDTH, group=GROUP, **more):
  return tiny.sample(
      *arguments, max_tokens=max_tokens, group_size=group, **more
  )


def score(params, prompts, tokens, cfg=tiny.MODEL, temperature=1.0):
  return tiny.score(
      params,
      prompts,
      tokens,
      cfg=cfg,
      group_size=tokens.shape[0] // prompts.lengths.shape[0],
      temperature=temperature,
      chunk=4,
  )


@pytest.fixture(scope="module")
def params():
  return tiny.make_params(sharpness=2.0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_decoding_agrees_with_scoring(params, temperature):
  """t decode steps = one forward: the same log-probabilities, entropies."""
  prompts = tiny.make_prompts()
  rolled = sample(params, prompts, jax.random.key(0), temperature=temperature)
  stats = score(params, prompts, rolled.tokens, temperature=temperature)
  mask = rolled.mask
  np.testing.assert_allclose(
      rolled.logprobs, jnp.where(mask, stats.logprob, 0), atol=1e-5
  )
  np.testing.assert_allclose(
      rolled.entropies, jnp.where(mask, stats.entropy, 0), atol=1e-5
  )


def test_scoring_agrees_with_a_plain_forward(params):
  prompts = tiny.make_prompts()
  rolled = sample(params, prompts, jax.random.key(0))
  stats = score(params, prompts, rolled.tokens)
  for row in range(rolled.tokens.shape[0]):
    n = int(prompts.lengths[row // GROUP])
    length = int(rolled.lengths[row])
    prompt = np.asarray(prompts.tokens[row // GROUP, :n])
    completion = np.asarray(rolled.tokens[row, :length])
    text = np.concatenate([prompt, completion])[None]
    hidden = tiny.full_forward(params, text, tiny.MODEL)
    logp = jax.nn.log_softmax(hidden @ params["embedding"].T)[0]
    expected = logp[n - 1 : n - 1 + length][np.arange(length), completion]
    np.testing.assert_allclose(
        stats.logprob[row, :length], expected, atol=1e-5
    )


def test_lengths_ends_and_padding(params):
  prompts = tiny.make_prompts()
  rolled = sample(params, prompts, jax.random.key(1))
  ids = (tiny.EOS, tiny.SECOND_EOS)
  ends = set()
  for row, length in enumerate(np.asarray(rolled.lengths)):
    tokens = np.asarray(rolled.tokens[row])
    assert not np.isin(tokens[: length - 1], ids).any()
    assert bool(rolled.ended[row]) == (tokens[length - 1] in ids)
    assert rolled.ended[row] or length == WIDTH
    np.testing.assert_array_equal(tokens[length:], tiny.PAD)
    np.testing.assert_array_equal(rolled.logprobs[row, length:], 0)
    ends.add(int(tokens[length - 1]) if rolled.ended[row] else "cut")
  assert len(ends) > 1, "the sample should hold more than one kind of end"


def test_the_loop_stops_when_all_have_ended(params):
  """With every token an EOS only two slots are ever written."""
  prompts = tiny.make_prompts()
  rolled = sample(params, prompts, jax.random.key(0), eos_ids=tuple(range(29)))
  np.testing.assert_array_equal(rolled.lengths, 1)
  _, completion = rolled.context
  written = jnp.any(completion.keys != 0, axis=(0, 1, 2, 3))
  np.testing.assert_array_equal(written, np.arange(WIDTH + 1) < 2)
  np.testing.assert_array_equal(completion.visible[0], written)


def test_the_cache_holds_every_token(params):
  """Slot i of the cache = the keys of one forward over prompt + completion."""
  prompts = tiny.make_prompts(lengths=(4, 4))
  rolled = sample(params, prompts, jax.random.key(0), eos_ids=(tiny.EOS,))
  _, completion = rolled.context
  inputs = jnp.concatenate(
      [
          jnp.repeat(prompts.tokens[:, :4], GROUP, axis=0),
          rolled.tokens,
      ],
      axis=1,
  )
  at = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
  _, whole = transformer.extend(params, inputs, at, cfg=tiny.MODEL)
  live = jnp.pad(rolled.mask, ((0, 0), (1, 0)), constant_values=True)
  assert bool(jnp.any(live[:, -1])), "some row should reach the last slot"
  for ours, theirs, mask in (
      (completion.keys, whole.keys[..., 3:], live[None, :, None, None, :]),
      (
          completion.values,
          whole.values[..., 3:, :],
          live[None, :, None, :, None],
      ),
  ):
    np.testing.assert_allclose(
        jnp.where(mask, ours, 0), jnp.where(mask, theirs, 0), atol=1e-5
    )


def test_rows_do_not_depend_on_padding_or_neighbours(params):
  key = jax.random.key(5)
  prompts = tiny.make_prompts(lengths=(5, 1, 3), width=6)
  narrow = sample(params, prompts, key)
  padding = jnp.full((3, 7), 13)  # wider, and not even the padding token
  wide = sample(
      params,
      prompts.replace(tokens=jnp.concatenate([prompts.tokens, padding], 1)),
      key,
  )
  np.testing.assert_array_equal(wide.tokens, narrow.tokens)
  np.testing.assert_allclose(wide.logprobs, narrow.logprobs, atol=1e-5)
  first = jax.tree.map(lambda x: x[:1], prompts)
  alone = sample(params, first.replace(tokens=first.tokens[:, :5]), key)
  np.testing.assert_array_equal(alone.tokens, narrow.tokens[:GROUP])
  np.testing.assert_allclose(
      alone.logprobs, narrow.logprobs[:GROUP], atol=1e-5
  )


def test_a_longer_limit_only_continues(params):
  prompts, key = tiny.make_prompts(), jax.random.key(2)
  short = sample(params, prompts, key, max_tokens=4)
  long = sample(params, prompts, key, max_tokens=WIDTH)
  np.testing.assert_array_equal(short.tokens, long.tokens[:, :4])


def test_the_stages_of_the_cache_do_not_show(params):
  """The cache grows by 32 slots three times; with a limit of 40, never."""
  assert policy.stages(128) == [32, 64, 96, 128]
  assert policy.stages(40) == [40]
  prompts, key = tiny.make_prompts(), jax.random.key(2)
  staged = sample(params, prompts, key, max_tokens=128, eos_ids=(99,))
  plain = sample(params, prompts, key, max_tokens=40, eos_ids=(99,))
  np.testing.assert_array_equal(staged.lengths, 128)
  np.testing.assert_array_equal(staged.tokens[:, :40], plain.tokens)
  stats = score(params, prompts, staged.tokens)
  np.testing.assert_allclose(staged.logprobs, stats.logprob, atol=1e-4)


def test_samples_follow_the_distribution(params):
  """4,000 first tokens against the policy's own probabilities."""
  prompts = tiny.make_prompts(lengths=(5,))
  rolled = sample(
      params, prompts, jax.random.key(0), max_tokens=2, group=4000
  )
  counts = np.bincount(np.asarray(rolled.tokens[:, 0]), minlength=29)
  hidden = tiny.full_forward(params, prompts.tokens[:, :5], tiny.MODEL)
  expected = 4000 * jax.nn.softmax(hidden[0, -1] @ params["embedding"].T)
  # Pearson's chi-square over the tokens expected at least 5 times; 28 degrees
  # of freedom at most, whose 99.9 % quantile is 57.
  usual = expected >= 5
  pearson = np.sum((counts - expected)[usual] ** 2 / expected[usual])
  assert pearson < 57, pearson


def test_temperature_zero_is_greedy(params):
  prompts = tiny.make_prompts()
  rolled = sample(params, prompts, jax.random.key(0), temperature=0.0)
  stats = score(params, prompts, rolled.tokens)
  assert bool(jnp.all(jnp.where(rolled.mask, stats.hit, True)))


def test_the_one_token_of_top_k_is_the_greedy_one(params):
  prompts = tiny.make_prompts()
  greedy = sample(params, prompts, jax.random.key(0), temperature=0.0)
  rolled = sample(
      params, prompts, jax.random.key(1), temperature=0.7, top_k=1, top_p=0.9
  )
  np.testing.assert_array_equal(rolled.tokens, greedy.tokens)
  # Nothing else has a probability.
  np.testing.assert_array_equal(rolled.logprobs, 0)
  np.testing.assert_array_equal(rolled.entropies, 0)


def test_keys_differ_by_row_and_by_step(params):
  prompts = tiny.make_prompts(lengths=(5,))
  rolled = sample(
      params, prompts, jax.random.key(0), group=64, eos_ids=(tiny.EOS,)
  )
  assert len({tuple(row) for row in np.asarray(rolled.tokens)}) > 32
  other = sample(
      params, prompts, jax.random.key(1), group=64, eos_ids=(tiny.EOS,)
  )
  assert not np.array_equal(rolled.tokens, other.tokens)

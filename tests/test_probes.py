import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from iapo_jax import policy, probes, rollout

GROUP, WIDTH = 2, 8
ELICITATION = (17, 4, 9)


@functools.partial(
    jax.jit,
    static_argnames=("cfg", "chunk", "head_chunk", "temperature", "stride"),
)
def probe(
    params,
    context,
    first,
    lengths,
    targets,
    cfg=tiny.MODEL,
    chunk=3,
    head_chunk=4,
    temperature=1.0,
    stride=1,
):
  return probes.answer_statistics(
      params,
      context,
      first,
      lengths,
      jnp.asarray(ELICITATION),
      targets,
      cfg=cfg,
      temperature=temperature,
      stride=stride,
      chunk=chunk,
      head_chunk=head_chunk,
  )


def make_case(cfg, eos_ids=(tiny.EOS, tiny.SECOND_EOS), width=6):
  """Ragged prompts and completions, and probe lengths of every kind."""
  params = tiny.make_params(cfg, sharpness=2.0)
  prompts = tiny.make_prompts(lengths=(5, 1, 3), width=width)
  rolled = rollout.sample(
      params,
      prompts,
      jax.random.key(0),
      cfg=cfg,
      group_size=GROUP,
      max_tokens=WIDTH,
      eos_ids=eos_ids,
      pad_id=tiny.PAD,
      temperature=1.0,
  )
  # A reasoning that ends at once, in the middle, and only with the text.
  lengths = jnp.minimum(
      rolled.lengths - rolled.ended, jnp.array([0, 8, 2, 8, 5, 8])
  )
  targets = jnp.repeat(prompts.gold[:, 0], GROUP)
  return params, prompts, rolled, lengths, targets


forward = jax.jit(tiny.full_forward, static_argnums=2)


def reencoded(params, prompts, rolled, row, position, cfg):
  """π after re-encoding prompt + o_1..o_position + elicitation alone."""
  n = int(prompts.lengths[row // GROUP])
  text = np.concatenate([
      prompts.tokens[row // GROUP, :n],
      rolled.tokens[row, :position],
      ELICITATION,
  ])
  # What follows the text cannot matter: one shape compiles once.
  padded = np.pad(text, (0, 24 - len(text)))[None]
  hidden = forward(params, padded, cfg)[0, len(text) - 1]
  table = params["embedding" if cfg.tie_embeddings else "head"]
  return jax.nn.log_softmax(hidden @ table.T)


@pytest.mark.parametrize("cfg", [tiny.MODEL, tiny.FULL], ids=["tied", "full"])
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_probes_are_full_re_encodings(cfg, chunk):
  params, prompts, rolled, lengths, targets = make_case(cfg)
  first = policy.first_positions(prompts, GROUP)
  stats = probe(
      params, rolled.context, first, lengths, targets, cfg=cfg, chunk=chunk
  )
  assert int(jnp.max(lengths)) == WIDTH, "some row should be probed to the end"
  for row in range(6):
    for position in range(int(lengths[row]) + 1):
      logp = reencoded(params, prompts, rolled, row, position, cfg)
      entropy = -jnp.sum(jnp.exp(logp) * logp)
      target = int(targets[row])
      np.testing.assert_allclose(
          stats.entropy[row, position], entropy, atol=1e-5
      )
      np.testing.assert_allclose(
          stats.logprob[row, position], logp[target], atol=1e-5
      )
      assert bool(stats.hit[row, position]) == (int(logp.argmax()) == target)
    rest = slice(int(lengths[row]) + 1, None)
    np.testing.assert_array_equal(stats.entropy[row, rest], 0)
    np.testing.assert_array_equal(stats.logprob[row, rest], 0)


@pytest.mark.parametrize("eos", ["first", "never"])
def test_every_completion_ends_at_once_or_never(eos):
  """EOS as the very first token (R = 0), and no EOS, no `</think>`."""
  ids = tuple(range(29)) if eos == "first" else (99,)
  params, prompts, rolled, _, targets = make_case(tiny.MODEL, eos_ids=ids)
  lengths = rolled.lengths - rolled.ended
  np.testing.assert_array_equal(lengths, 0 if eos == "first" else WIDTH)
  stats = probe(
      params,
      rolled.context,
      policy.first_positions(prompts, GROUP),
      lengths,
      targets,
  )
  for row in (0, 3, 5):
    position = int(lengths[row])
    logp = reencoded(params, prompts, rolled, row, position, tiny.MODEL)
    entropy = -jnp.sum(jnp.exp(logp) * logp)
    np.testing.assert_allclose(
        stats.entropy[row, position], entropy, atol=1e-5
    )


def test_padding_and_neighbours_do_not_matter():
  cfg = tiny.MODEL
  params, prompts, rolled, lengths, targets = make_case(cfg)
  first = policy.first_positions(prompts, GROUP)
  whole = probe(params, rolled.context, first, lengths, targets)

  def cut(segment, rows, slots):
    return segment.replace(
        keys=segment.keys[:, :rows, ..., :slots],
        values=segment.values[:, :rows, :, :slots],
        visible=segment.visible[:rows, :slots],
    )

  # The first prompt's own group, its prompt segment as short as it can be,
  # its completions as short as the longest probe.
  prompt, completion = rolled.context
  longest = int(jnp.max(lengths[:GROUP]))
  part = probe(
      params,
      (cut(prompt, 1, 5), cut(completion, GROUP, longest + 1)),
      first[:GROUP],
      lengths[:GROUP],
      targets[:GROUP],
  )
  for ours, theirs in zip(
      jax.tree.leaves(part), jax.tree.leaves(whole), strict=True
  ):
    assert ours.shape == (GROUP, longest + 1)
    np.testing.assert_allclose(
        ours, theirs[:GROUP, : longest + 1], atol=1e-5
    )


@pytest.mark.parametrize("stride", [2, 3, 64])
@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_strided_probes_are_exact_where_they_are_and_linear_between(
    stride, chunk
):
  params, prompts, rolled, lengths, targets = make_case(tiny.MODEL)
  first = policy.first_positions(prompts, GROUP)
  case = (params, rolled.context, first, lengths, targets)
  every, some = probe(*case), probe(*case, stride=stride, chunk=chunk)
  assert set(np.asarray(lengths)) >= {0, WIDTH}
  for row, length in enumerate(np.asarray(lengths)):
    at = sorted({*range(0, length + 1, stride), int(length)})
    for name in ("entropy", "logprob"):
      ours = np.asarray(getattr(some, name)[row])
      exact = np.asarray(getattr(every, name)[row])[at]
      expected = np.interp(np.arange(length + 1), at, exact)
      np.testing.assert_allclose(ours[: length + 1], expected, atol=1e-5)
      np.testing.assert_array_equal(ours[length + 1 :], 0)
    np.testing.assert_array_equal(some.hit[row, at], every.hit[row, at])
  # Σ D = H_0 − H_R, whatever the stride.
  information = -np.diff(some.entropy, axis=1)
  live = np.arange(WIDTH) < np.asarray(lengths)[:, None]
  ends = np.asarray(every.entropy)[np.arange(6), lengths]
  np.testing.assert_allclose(
      np.sum(information * live, axis=1), every.entropy[:, 0] - ends, atol=1e-5
  )


def test_temperature_divides_the_probe_too():
  cfg = tiny.MODEL
  params, prompts, rolled, lengths, targets = make_case(cfg)
  first = policy.first_positions(prompts, GROUP)
  stats = probe(
      params, rolled.context, first, lengths, targets, temperature=0.5
  )
  logp = reencoded(params, prompts, rolled, 1, 1, cfg)
  cool = jax.nn.log_softmax(2.0 * logp)
  np.testing.assert_allclose(
      stats.entropy[1, 1], -jnp.sum(jnp.exp(cool) * cool), atol=1e-5
  )


def test_keys_and_values_are_never_copied():
  """No array of the program is as large as one layer's keys per probe."""
  params, prompts, rolled, lengths, targets = make_case(tiny.MODEL)
  first = policy.first_positions(prompts, GROUP)
  run = functools.partial(
      probes.answer_statistics, cfg=tiny.MODEL, chunk=WIDTH + 1
  )
  jaxpr = jax.make_jaxpr(run)(
      params, rolled.context, first, lengths, jnp.asarray(ELICITATION), targets
  )
  # 6 rows x 9 positions, each with 9 slots of 2 heads of width 8.
  copies = (6 * 9) * 9 * 2 * 8
  largest = max(tiny.array_sizes(jaxpr.jaxpr))
  assert largest < copies
  # The search sees the scores: 6 x 9 probes x 4 heads x 3 tokens x 9 slots.
  assert largest >= (6 * 9) * 4 * 3 * 9

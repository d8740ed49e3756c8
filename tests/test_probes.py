import functools
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from iapo_jax.models import head
from iapo_jax.rl import probes

GROUP, WIDTH = 2, 8
ELICITATION = (17, 4, 9)


@functools.partial(
    jax.jit,
    static_argnames=("cfg", "budget", "head_chunk", "temperature", "most"),
)
def probe(
    params,
    context,
    lengths,
    targets,
    marks=None,
    cfg=tiny.MODEL,
    budget=18,
    head_chunk=4,
    temperature=1.0,
    most=None,
):
  slots = context[1].visible.shape[1]
  return probes.answer_statistics(
      params,
      context,
      lengths,
      probes.strided(slots, 1) if marks is None else marks,
      jnp.asarray(ELICITATION),
      targets,
      cfg=cfg,
      temperature=temperature,
      most=most,
      budget=budget,
      head_chunk=head_chunk,
  )


def make_case(cfg, eos_ids=(tiny.EOS, tiny.SECOND_EOS), width=6):
  """Ragged prompts and completions, and probe lengths of every kind."""
  params = tiny.make_params(cfg, sharpness=2.0)
  prompts = tiny.make_prompts(lengths=(5, 1, 3), width=width)
  rolled = tiny.sample(
      params, prompts, jax.random.key(0), cfg=cfg, group_size=GROUP,
      max_tokens=WIDTH, eos_ids=eos_ids,
  )  # fmt: skip
  # A reasoning that ends at once, in the middle, and only with the text.
  lengths = jnp.minimum(
      rolled.lengths - rolled.ended, jnp.array([0, 8, 2, 8, 5, 8])
  )
  targets = jnp.repeat(prompts.gold[:, 0], GROUP)
  return params, prompts, rolled, lengths, targets


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
  hidden = tiny.full_forward(params, padded, cfg)[0, len(text) - 1]
  table = params["embedding" if cfg.tie_embeddings else "head"]
  return jax.nn.log_softmax(hidden @ table.T)


@pytest.mark.parametrize("cfg", [tiny.MODEL, tiny.FULL], ids=["tied", "full"])
@pytest.mark.parametrize("budget", [1, 18, 40, 1000])
def test_probes_are_full_re_encodings(cfg, budget):
  params, prompts, rolled, lengths, targets = make_case(cfg)
  stats = probe(
      params, rolled.context, lengths, targets, cfg=cfg, budget=budget
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
  params, _, rolled, lengths, targets = make_case(cfg)
  whole = probe(params, rolled.context, lengths, targets)

  def cut(segment, rows, slots):
    return segment.replace(
        keys=segment.keys[:, :rows, ..., :slots],
        values=segment.values[:, :rows, :, :slots],
        visible=segment.visible[:rows, :slots],
        positions=segment.positions[:rows, :slots],
    )

  # The first prompt's own group, its prompt segment as short as it can be,
  # its completions as short as the longest probe.
  prompt, completion = rolled.context
  longest = int(jnp.max(lengths[:GROUP]))
  part = probe(
      params,
      (cut(prompt, 1, 5), cut(completion, GROUP, longest + 1)),
      lengths[:GROUP],
      targets[:GROUP],
  )
  np.testing.assert_array_equal(part.spent, whole.spent[:GROUP])
  for name in ("logprob", "entropy", "hit"):
    ours, theirs = getattr(part, name), getattr(whole, name)
    assert ours.shape == (GROUP, longest + 1)
    np.testing.assert_allclose(
        ours, theirs[:GROUP, : longest + 1], atol=1e-5
    )


def interpolated(some, every, marks, lengths):
  """Checks `some`, probed at `marks`, against `every` position's."""
  for row, length in enumerate(np.asarray(lengths)):
    inside = [i for i in range(length + 1) if marks[row, i]]
    at = sorted({0, *inside, int(length)})
    for name in ("entropy", "logprob"):
      ours = np.asarray(getattr(some, name)[row])
      exact = np.asarray(getattr(every, name)[row])[at]
      expected = np.interp(np.arange(length + 1), at, exact)
      np.testing.assert_allclose(ours[: length + 1], expected, atol=1e-5)
      np.testing.assert_array_equal(ours[length + 1 :], 0)
    np.testing.assert_array_equal(some.hit[row, at], every.hit[row, at])
  # Σ D = H_0 − H_R, wherever the marks are.
  information = -np.diff(some.entropy, axis=1)
  live = np.arange(WIDTH) < np.asarray(lengths)[:, None]
  ends = np.asarray(every.entropy)[np.arange(6), lengths]
  np.testing.assert_allclose(
      np.sum(information * live, axis=1), every.entropy[:, 0] - ends, atol=1e-5
  )


@pytest.mark.full
@pytest.mark.parametrize("stride", [2, 3, 64])
@pytest.mark.parametrize("budget", [1, 12, 1000])
def test_strided_probes_are_exact_where_they_are_and_linear_between(
    stride, budget
):
  params, _, rolled, lengths, targets = make_case(tiny.MODEL)
  case = (params, rolled.context, lengths, targets)
  marks = probes.strided(WIDTH + 1, stride)
  most = probes.count(WIDTH, stride)
  some = probe(*case, marks, budget=budget, most=most)
  assert set(np.asarray(lengths)) >= {0, WIDTH}
  interpolated(some, probe(*case), np.repeat(marks, 6, 0), lengths)


def test_probes_after_chosen_tokens():
  """Other positions, and another number of them, in every row."""
  params, _, rolled, lengths, targets = make_case(tiny.MODEL)
  case = (params, rolled.context, lengths, targets)
  ends = np.arange(29) % 3 == 0
  marks = np.asarray(probes.after(rolled.tokens, jnp.asarray(ends)))
  expected = np.zeros((6, WIDTH + 1), bool)
  for row, slot in np.ndindex(6, WIDTH):
    expected[row, slot + 1] = ends[int(rolled.tokens[row, slot])]
  np.testing.assert_array_equal(marks, expected)
  counts = {int(row.sum()) for row in marks}
  assert len(counts) > 2, "rows should differ in how many they have"
  some = probe(*case, jnp.asarray(marks), budget=12)
  interpolated(some, probe(*case), marks, lengths)


def test_a_pass_holds_the_budget_and_no_pass_is_half_empty():
  """64 sequences in 8 groups, 6 tokens a probe: 48 a position of a group."""
  split = functools.partial(probes.passes, 64, 8, width=6, shards=1)
  # 4096 // 48 = 85 positions; 257 positions need 4 passes: 65 in each.
  assert split(257, budget=4096) == (8, 65)
  # All 9 positions of a group fill 432 of 4096; 8 groups need 3456.
  assert split(9, budget=4096) == (1, 9)
  # Of 2000 tokens 4 groups take 1728; the next divisor of 8 is 8.
  assert split(9, budget=2000) == (2, 9)
  assert split(257, budget=1) == (8, 1)
  # Four shards: each has a group in every pass, 192 tokens a position.
  assert probes.passes(64, 8, 257, 6, budget=4096, shards=4) == (2, 20)


def test_strided_positions_by_hand():
  # Every third of seven: 0, 3 and 6.
  np.testing.assert_array_equal(
      probes.strided(7, 3), np.array([[1, 0, 0, 1, 0, 0, 1]], bool)
  )
  np.testing.assert_array_equal(probes.strided(3, 1), np.ones((1, 3), bool))


def test_short_parts_take_few_passes():
  """The program's own count of passes, from how often its body ran."""
  params, _, rolled, _, targets = make_case(
      tiny.MODEL, eos_ids=(99,)
  )
  lengths = jnp.array([0, 1, 8, 3, 2, 2])
  ran = []

  def body(hidden):
    jax.debug.callback(lambda: ran.append(1))
    return hidden

  token_statistics = head.token_statistics

  def counted(params, hidden, targets, **rest):
    return token_statistics(params, body(hidden), targets, **rest)

  with unittest.mock.patch.object(head, "token_statistics", counted):
    stats = probes.answer_statistics(
        params, rolled.context, lengths, probes.strided(WIDTH + 1, 1),
        jnp.asarray(ELICITATION), targets, cfg=tiny.MODEL, budget=18,
    )  # fmt: skip
    jax.block_until_ready(stats)
    jax.effects_barrier()
  # Parts of one group, 3 positions a pass: 2, 9 and 3 positions.
  assert len(ran) == 1 + 3 + 1


def test_temperature_divides_the_probe_too():
  cfg = tiny.MODEL
  params, prompts, rolled, lengths, targets = make_case(cfg)
  stats = probe(
      params, rolled.context, lengths, targets, temperature=0.5
  )
  logp = reencoded(params, prompts, rolled, 1, 1, cfg)
  cool = jax.nn.log_softmax(2.0 * logp)
  np.testing.assert_allclose(
      stats.entropy[1, 1], -jnp.sum(jnp.exp(cool) * cool), atol=1e-5
  )


def test_keys_and_values_are_never_copied():
  """No array of the program is as large as one layer's keys per probe."""
  params, _, rolled, lengths, targets = make_case(tiny.MODEL)
  run = functools.partial(
      probes.answer_statistics, cfg=tiny.MODEL, budget=1000
  )
  jaxpr = jax.make_jaxpr(run)(
      params, rolled.context, lengths, probes.strided(WIDTH + 1, 1),
      jnp.asarray(ELICITATION), targets,
  )  # fmt: skip
  # 6 rows x 9 positions, each with 9 slots of 2 heads of width 8.
  copies = (6 * 9) * 9 * 2 * 8
  largest = max(tiny.array_sizes(jaxpr.jaxpr))
  assert largest < copies
  # The search sees the scores: 6 x 9 probes x 4 heads x 3 tokens x 9 slots.
  assert largest >= (6 * 9) * 4 * 3 * 9

"""Estimators of information beyond the first answer token's entropy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from absl.testing import parameterized
from test_probes import ELICITATION, GROUP, make_case

from iapo_jax.config.formats import FormatConfig
from iapo_jax.core.errors import ConfigError
from iapo_jax.core.types import AnswerStatistics, TokenStatistics
from iapo_jax.models import head
from iapo_jax.rewards import host, token_match
from iapo_jax.rl import mi, policy, probes

TAGS = FormatConfig()

# Of three, no, one, two, three and two tokens; what follows does not matter.
ANSWERS = np.array(
    [[5, 6, 7], [9, 9, 9], [8, 1, 1], [3, 4, 1], [6, 6, 6], [7, 5, 11]],
    np.int32,
)
LENGTHS = np.array([3, 0, 1, 2, 3, 2], np.int32)


def statistics():
  """Numbers that cannot be mistaken for each other, [1, 2]."""
  x = jnp.array([[1.0, 2.0]])
  no = jnp.zeros((1, 2), bool)
  answer = TokenStatistics(logprob=-10 * x, entropy=100 * x, hit=no)
  return AnswerStatistics(-x, 1000 * x, no, answer, jnp.array([8]))


class UncertaintyTest(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
      ("entropy", 1000), ("gold", 10), ("own", 10), ("answer_entropy", 100)
  )
  def test_by_hand(self, estimator, factor):
    got = self.variant(
        functools.partial(mi.uncertainty, estimator=estimator)
    )(statistics())
    np.testing.assert_array_equal(got, [[factor, 2 * factor]])

  @chex.variants(with_jit=True, without_jit=True)
  def test_the_chance_of_another_answer(self):
    stats = statistics()
    logprob = jnp.log(jnp.array([[0.25, 1.0]]))
    stats = stats.replace(answer=stats.answer.replace(logprob=logprob))
    got = self.variant(
        functools.partial(mi.uncertainty, estimator="gold_chance")
    )(stats)
    np.testing.assert_allclose(got, [[0.75, 0.0]], rtol=1e-6)

  def test_unknown(self):
    with self.assertRaisesRegex(ValueError, "estimator = 'x': must be one of"):
      mi.uncertainty(statistics(), estimator="x")

  def test_a_probing_without_answers(self):
    stats = statistics().replace(answer=None)
    np.testing.assert_array_equal(
        mi.uncertainty(stats, estimator="entropy"), stats.entropy
    )
    for estimator in ("gold", "own", "answer_entropy", "gold_chance"):
      rule = (
          f"config.probe.estimator = '{estimator}': reads `answer` of the"
          " statistics, which Own.probing returns as None"
      )
      with self.assertRaisesRegex(ConfigError, rule):
        mi.uncertainty(stats, estimator=estimator)


@functools.partial(jax.jit, static_argnames=("cfg", "budget", "stride"))
def ask(
    params, context, lengths, targets, answers, cfg=tiny.MODEL,
    budget=30, stride=1,
):  # fmt: skip
  return probes.answer_statistics(
      params,
      context,
      lengths,
      probes.strided(context[1].visible.shape[1], stride),
      jnp.asarray(ELICITATION),
      targets,
      cfg=cfg,
      answers=answers,
      budget=budget,
      head_chunk=5,
  )


def along(params, prompts, rolled, row, position, cfg=tiny.MODEL):
  """Log-probabilities and entropies [a] of re-encoding everything."""
  n = int(prompts.lengths[row // GROUP])
  text = np.concatenate([
      prompts.tokens[row // GROUP, :n],
      rolled.tokens[row, :position],
      ELICITATION,
      ANSWERS[row],
  ])
  padded = np.pad(text, (0, 28 - len(text)))[None]
  at = len(text) - 4 + np.arange(3)
  logp = jax.nn.log_softmax(
      tiny.full_forward(params, padded, cfg)[0, at] @ params["embedding"].T
  )
  return np.asarray(logp)[np.arange(3), ANSWERS[row]], np.asarray(
      -jnp.sum(jnp.exp(logp) * logp, axis=-1)
  )


@pytest.mark.parametrize("budget", [1, 1000])
def test_whole_answers_are_full_re_encodings(budget):
  params, prompts, rolled, lengths, targets = make_case(tiny.MODEL)
  with_answers = ask(
      params, rolled.context, lengths, targets, (ANSWERS, LENGTHS),
      budget=budget,
  )  # fmt: skip
  plain = ask(params, rolled.context, lengths, targets, None)
  for name in ("logprob", "entropy", "hit"):
    np.testing.assert_allclose(
        getattr(with_answers, name), getattr(plain, name), atol=1e-5
    )
  for row in range(6):
    for position in range(int(lengths[row]) + 1):
      logp, entropy = along(params, prompts, rolled, row, position)
      n = LENGTHS[row]
      answer = with_answers.answer
      np.testing.assert_allclose(
          answer.logprob[row, position], logp[:n].sum(), atol=1e-5
      )
      np.testing.assert_allclose(
          answer.entropy[row, position], entropy[:n].sum(), atol=1e-5
      )
    rest = slice(int(lengths[row]) + 1, None)
    np.testing.assert_array_equal(with_answers.answer.logprob[row, rest], 0)
  # Three tokens of an elicitation, and two of an answer but the last.
  probed = np.asarray(lengths) + 1
  np.testing.assert_array_equal(plain.spent, 3 * probed)
  np.testing.assert_array_equal(with_answers.spent, 5 * probed)


def test_strides_interpolate_along_answers_too():
  params, _, rolled, lengths, targets = make_case(tiny.MODEL)
  inputs = (
      params, rolled.context, lengths, targets, (ANSWERS, LENGTHS),
  )  # fmt: skip
  every, some = ask(*inputs), ask(*inputs, stride=3)
  for row, length in enumerate(np.asarray(lengths)):
    at = sorted({*range(0, length + 1, 3), int(length)})
    exact = np.asarray(every.answer.logprob[row])[at]
    np.testing.assert_allclose(
        some.answer.logprob[row, : length + 1],
        np.interp(np.arange(length + 1), at, exact),
        atol=1e-5,
    )
    assert int(some.spent[row]) == 5 * len(at)


def test_shallow_probes_are_those_of_the_first_layers():
  """Beside the whole decoder with its other layers switched off."""
  params, prompts, rolled, lengths, targets = make_case(tiny.MODEL)
  cut, context, cfg = policy.shallow(params, rolled.context, tiny.MODEL, 1)
  assert cfg.num_layers == 1
  ours = ask(cut, context, lengths, targets, None, cfg=cfg)
  # A layer whose branches give nothing leaves its input as it is.
  silent = jax.tree.map(lambda x: x.at[1:].set(0), params["layers"])
  quiet = params | {"layers": silent}
  again = rollout_context(quiet, prompts, rolled.tokens)
  theirs = ask(quiet, again, lengths, targets, None)
  np.testing.assert_allclose(ours.entropy, theirs.entropy, atol=1e-5)
  whole = ask(params, rolled.context, lengths, targets, None)
  assert np.abs(ours.entropy - whole.entropy).max() > 0.1


def rollout_context(params, prompts, tokens):
  _, context = tiny.replay(
      params, prompts, tokens, cfg=tiny.MODEL, group_size=GROUP
  )
  return context


def test_the_mean_along_own_answers_is_the_entropy_of_answers():
  """Over all answers of two tokens: Σ π(a) Σ_j H(a_j | a_<j) = H(a)."""
  params, prompts, rolled, _, _ = make_case(tiny.MODEL)
  vocab, row, position = tiny.MODEL.vocab_size, 0, 2
  pairs = np.stack(
      np.meshgrid(np.arange(vocab), np.arange(vocab), indexing="ij"), -1
  ).reshape(-1, 2)
  n = int(prompts.lengths[0])
  text = np.concatenate([
      prompts.tokens[0, :n], rolled.tokens[row, :position], ELICITATION,
  ])  # fmt: skip
  batch = np.concatenate([np.tile(text, (len(pairs), 1)), pairs], axis=1)
  hidden = tiny.full_forward(params, batch, tiny.MODEL)[:, -3:-1]
  stats = head.token_statistics(params, hidden, pairs, cfg=tiny.MODEL)
  weight = np.exp(np.sum(stats.logprob, axis=1))
  np.testing.assert_allclose(weight.sum(), 1.0, rtol=1e-5)
  entropy = -np.sum(weight * np.sum(stats.logprob, axis=1))
  np.testing.assert_allclose(
      np.sum(weight * np.sum(stats.entropy, axis=1)), entropy, rtol=1e-5
  )


def test_own_answers_of_both_graders():
  task = tiny.load_task()
  tok, eos = task.tokenizer, task.tokenizer.eos_token_id
  texts = [
      "b </think> <answer> 6 </answer>",
      "b </think> <answer> 6 + 1 </answer>",
      "b </think> <answer> 6",
      "<answer> 3 </answer> </think> <answer> 4 </answer>",
      "</think> <answer> </answer>",
  ]
  rows = [[*tok.encode(text), eos] for text in texts]
  tokens = np.full((5, 12), tok.pad_token_id, np.int32)
  for row, ids in enumerate(rows):
    tokens[row, : len(ids)] = ids
  lengths = np.array([len(ids) for ids in rows], np.int32)
  ended = np.ones(5, bool)
  gold = np.tile(np.array(tok.encode("6"), np.int32), (5, 1))
  one = np.ones(5, np.int32)
  *_, answers, counts = host.grade_tokens(
      tok, tokens, lengths, ended, gold, one, form=TAGS, answer_tokens=2
  )
  # One token; the first two of three; none is complete; the last; blank.
  np.testing.assert_array_equal(counts, [1, 2, 0, 1, 0])
  expected = [tok.encode(x) for x in ("6", "6 +", "", "4", "")]
  assert [a[:n].tolist() for a, n in zip(answers, counts, strict=True)] == (
      expected
  )
  grades = token_match.grade_tokens(
      tokens, lengths - ended, gold, one,
      tags=token_match.tags_of(tok, TAGS), answer_tokens=2,
  )  # fmt: skip
  np.testing.assert_array_equal(grades.answer_lengths, counts)
  for ours, n, theirs in zip(grades.answers, counts, expected, strict=True):
    assert ours[:n].tolist() == theirs

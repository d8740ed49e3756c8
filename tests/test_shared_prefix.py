"""Training on prompts encoded once a group, against prompts encoded anew."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from iapo_jax.models import head

GROUP, WIDTH, LENGTH = 4, 24, 8
MODEL = dataclasses.replace(
    tiny.MODEL, num_layers=1, d_model=64, mlp_dim=192, head_dim=16
)


def make_case(cfg, lengths):
  """Weights, prompts, completions, and a weight for every token's loss."""
  rng = np.random.default_rng(0)
  rows = GROUP * len(lengths)
  tokens = rng.integers(3, cfg.vocab_size, (rows, LENGTH))
  weights = rng.normal(size=(rows, LENGTH)) / tokens.size
  prompts = tiny.make_prompts(lengths, width=WIDTH)
  return tiny.make_params(cfg), prompts, jnp.asarray(tokens), weights


def shared_loss(params, prompts, tokens, weights, cfg):
  stats = tiny.score(
      params,
      prompts,
      tokens,
      cfg=cfg,
      group_size=GROUP,
      temperature=1.0,
      chunk=LENGTH,
  )
  return jnp.sum(weights * stats.logprob)


def repeated_loss(params, texts, ends, tokens, weights, cfg):
  """One pass over every text; `ends` are its prompt's lengths [b]."""
  hidden = tiny.full_forward(params, texts, cfg)
  at = ends[:, None] - 1 + np.arange(LENGTH)
  hidden = jnp.take_along_axis(hidden, at[..., None], axis=1)
  scores = head.logits(params, hidden, cfg=cfg)
  return jnp.sum(weights * head.statistics(scores, tokens).logprob)


def texts_of(prompts, tokens):
  """Prompt and completion of every row without a gap, and where they meet."""
  ends = np.repeat(np.asarray(prompts.lengths), GROUP)
  texts = np.full((len(ends), WIDTH + LENGTH), tiny.PAD)
  for row, end in enumerate(ends):
    texts[row, :end] = prompts.tokens[row // GROUP, :end]
    texts[row, end : end + LENGTH] = tokens[row]
  return texts, ends


@pytest.mark.parametrize("cfg", [tiny.MODEL, tiny.FULL], ids=["tied", "full"])
def test_loss_and_gradients_are_those_of_repeated_prompts(cfg):
  params, prompts, tokens, weights = make_case(cfg, (24, 1, 13))
  texts, ends = texts_of(prompts, tokens)
  ours, theirs = (
      jax.jit(jax.value_and_grad(loss), static_argnames="cfg")(
          params, *inputs, tokens, weights, cfg=cfg
      )
      for loss, inputs in (
          (shared_loss, (prompts,)),
          (repeated_loss, (texts, ends)),
      )
  )
  assert abs(ours[0] - theirs[0]) <= 1e-5 * abs(theirs[0])
  for path, leaf in jax.tree.leaves_with_path(theirs[1]):
    found = ours[1]
    for key in path:
      found = found[key.key]
    gap = jnp.linalg.norm(found - leaf)
    assert gap <= 1e-5 * jnp.linalg.norm(leaf), jax.tree_util.keystr(path)


def test_operations_fall_as_computed():
  """By the compiler's count, for prompts three times as long as completions.

  A token costs 2 · (d · (2n + 2k) · h + 3 · d · f) and 4 · n · h for every
  slot its scores are computed for; the head sees completions only. Backward
  costs twice that, in both programs.
  """
  cfg = MODEL
  params, prompts, tokens, weights = make_case(cfg, (WIDTH, WIDTH))
  texts, ends = texts_of(prompts, tokens)

  def count(loss, *inputs):
    grad = jax.jit(jax.grad(loss), static_argnames="cfg")
    compiled = grad.lower(params, *inputs, tokens, weights, cfg=cfg).compile()
    return compiled.cost_analysis()["flops"]

  ours = count(shared_loss, prompts)
  theirs = count(repeated_loss, texts, ends)
  width = cfg.num_heads * cfg.head_dim
  narrow = cfg.num_kv_heads * cfg.head_dim
  dense = 2 * cfg.d_model * (2 * width + 2 * narrow + 3 * cfg.mlp_dim)
  slots = WIDTH + LENGTH
  table = 8 * LENGTH * 2 * cfg.d_model * cfg.vocab_size
  shared = 2 * WIDTH * (dense + 4 * width * WIDTH)
  shared += 8 * LENGTH * (dense + 4 * width * slots) + table
  repeated = 8 * slots * (dense + 4 * width * slots) + table
  assert repeated / shared > 2
  np.testing.assert_allclose(theirs / ours, repeated / shared, rtol=0.05)

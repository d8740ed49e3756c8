"""The fused kernels against the reference, step by step on CPUs.

Kernels run there as JAX operations (Pallas' interpret mode); whether they
compile for a TPU is what test_fused_tpu.py asks.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from iapo_jax.models import attention, fused_attention, transformer

# Rows of queries, new tokens, heads, key/value heads, width; then of every
# segment its rows, and its slots (none: the new tokens themselves, causal).
CASES = {
    "prefill": ((3, 7, 4, 2, 8), [(3, None)]),
    "completions_of_prompts": ((6, 9, 4, 2, 8), [(2, 5), (6, None)]),
    "probes": ((12, 3, 4, 1, 8), [(2, 5), (4, 11), (12, None)]),
    "several_blocks_of_slots": ((2, 5, 2, 2, 16), [(1, 1100), (2, None)]),
    "several_blocks_of_queries": ((2, 600, 2, 1, 8), [(1, 40), (2, None)]),
}


def make_case(name, dtype=jnp.float32):
  """Queries, keys and values, masks; some rows see nothing of a context."""
  (b, x, n, k, h), sizes = CASES[name]
  rng = np.random.default_rng(len(name))
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
  pairs, masks = [], []
  for r, s in sizes:
    pairs.append((draw(r, k, h, s or x), draw(r, k, s or x, h)))
    if s is None:
      masks.append(jnp.tri(x, dtype=bool)[None])
    else:
      lengths = rng.integers(1, s + 1, (b, 1, 1))
      lengths[0] = 0
      masks.append(jnp.arange(s) < lengths)
  return draw(b, x, n, h), tuple(pairs), masks


def value_and_gradients(attend, queries, pairs, masks, cap):
  """Output and gradients of a sum that weights every number differently."""
  weights = jax.random.normal(jax.random.key(5), queries.shape)

  def loss(queries, pairs):
    segments = [(*pair, mask) for pair, mask in zip(pairs, masks, strict=True)]
    output = attend(queries, segments, scale=0.7, cap=cap)
    return jnp.sum(weights * output), output

  run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
  gradients, output = run(queries, pairs)
  return output, gradients


def check_near(ours, theirs, share):
  """Every array within a share of the largest number of the other."""

  def check(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert np.any(y)
    np.testing.assert_allclose(x, y, rtol=0, atol=share * np.abs(y).max())

  jax.tree.map(check, ours, theirs)


@pytest.mark.parametrize("cap", [0.0, 1.5])
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_the_reference(name, cap):
  case = make_case(name)
  ours = value_and_gradients(fused_attention.attend, *case, cap)
  theirs = value_and_gradients(attention.attend, *case, cap)
  chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
  check_near(ours, theirs, 1e-5)

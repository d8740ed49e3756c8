"""Top-k and top-p of evaluations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from iapo_jax.core import sharding
from iapo_jax.models import head
from iapo_jax.tools import collectives

truncated = jax.jit(head.truncated, static_argnames=("top_k", "top_p"))


def rows_of_every_kind(size=211):
  """Random scores, flat and steep; ties; equal ones; zeros of both signs."""
  rng = np.random.default_rng(0)
  return np.stack([
      *(scale * rng.normal(size=size) for scale in (0.01, 1, 3, 10, 200)),
      rng.integers(-3, 4, size),
      np.full(size, -7.5),
      np.where(rng.random(size) < 0.5, 0.0, -0.0),
      np.where(rng.random(size) < 0.9, -np.inf, rng.normal(size=size)),
  ]).astype(np.float32)


HOWS = [
    (top_k, top_p)
    for top_k in (0, 1, 5, 20, 211, 1000)
    for top_p in (1.0, 0.97, 0.5, 0.03, 1e-7)
]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        # Probabilities 8, 4, 2, 1 and 1 of 16, in another order.
        ({"top_k": 1}, [3]),
        ({"top_k": 3}, [0, 1, 3]),
        # The fourth and the fifth are equal: neither goes without the other.
        ({"top_k": 4}, [0, 1, 2, 3, 4]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        # 8/16 reach 0.49. They do not reach 0.51: 4/16 cross it.
        ({"top_p": 0.49}, [3]),
        ({"top_p": 0.51}, [1, 3]),
        ({"top_p": 0.76}, [0, 1, 3]),
        # 14/16 do not reach 0.9: one of the equal two does, both stay.
        ({"top_p": 0.9}, [0, 1, 2, 3, 4]),
        ({"top_p": 1e-9}, [3]),
        # Top-k first: of 8/12 and 4/12, the first reaches 0.6 alone.
        ({"top_k": 2, "top_p": 0.6}, [3]),
        ({"top_k": 2, "top_p": 0.7}, [1, 3]),
        ({}, [0, 1, 2, 3, 4]),
    ],
)
def test_hand_example(how, expected):
  scores = np.log([[2, 4, 1, 8, 1]], dtype=np.float32) + 3
  found = truncated(scores, **how)
  np.testing.assert_array_equal(
      found, np.where(np.isin(range(5), expected), scores, -np.inf)
  )


@pytest.mark.parametrize(("top_k", "top_p"), HOWS)
def test_tokens_stay_by_what_is_above_them(top_k, top_p):
  """The definition, token by token, in float64."""
  rows = rows_of_every_kind()
  found = np.asarray(truncated(rows, top_k=top_k, top_p=top_p))
  for i, scores in enumerate(rows.astype(np.float64)):
    stays = scores > -np.inf
    if top_k:
      stays &= np.array([np.sum(scores > x) < top_k for x in scores])
    shares = np.where(stays, np.exp(scores - scores.max()), 0)
    shares /= shares.sum()
    if top_p < 1:
      above = np.array([np.sum(shares[scores > x]) for x in scores])
      assert np.min(np.abs(above / top_p - 1)) > 1e-5  # beyond rounding
      stays &= above < top_p
    assert stays[np.argmax(scores)]
    np.testing.assert_array_equal(found[i], np.where(stays, rows[i], -np.inf))


def test_it_is_what_transformers_does():
  torch = pytest.importorskip("torch", reason="torch is installed in CI only")
  from transformers.generation import logits_process

  rows = rows_of_every_kind()
  for top_k, top_p in HOWS:
    theirs = torch.tensor(rows)
    if top_k:
      theirs = logits_process.TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
      theirs = logits_process.TopPLogitsWarper(top_p)(None, theirs)
    ours = truncated(rows, top_k=top_k, top_p=top_p)
    # At ties, in the other rows, theirs keeps some by the order of its sort.
    np.testing.assert_array_equal(ours[:5], theirs.numpy()[:5])


def test_off_is_nothing_at_all():
  """The same array, so that the program is the same."""
  scores = jnp.zeros((2, 3))
  assert head.truncated(scores, top_k=0, top_p=1.0) is scores


def test_what_is_drawn_is_renormalised():
  # 8/12 and 4/12 are left.
  scores = jnp.log(jnp.array([[2.0, 4.0, 1.0, 8.0, 1.0]]))
  rows = jnp.broadcast_to(truncated(scores, top_k=2), (400, 5))
  uniforms = jax.random.uniform(jax.random.key(0), (400, 2))
  drawn, stats = jax.jit(head.draw)(rows, uniforms)
  assert set(drawn.tolist()) == {1, 3}
  expected = np.where(np.asarray(drawn) == 3, np.log(2 / 3), np.log(1 / 3))
  np.testing.assert_allclose(stats.logprob, expected, rtol=1e-5)
  entropy = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
  np.testing.assert_allclose(stats.entropy, entropy, rtol=1e-5)


def test_a_split_vocabulary_is_not_gathered():
  """Though its shards are no whole number of the blocks for drawing."""
  mesh = Mesh(
      np.array(jax.local_devices()).reshape(2, 1, 4),
      ("data", "fsdp", "tensor"),
  )

  def draw(scores, uniforms):
    with sharding.scope(mesh):
      scores = sharding.constrain(scores, "batch", "vocab")
      scores = head.truncated(scores, top_k=20, top_p=0.9)
      return head.draw(scores, uniforms)[0]

  scores = rows_of_every_kind(208)[:8]  # 13 blocks of 16
  uniforms = jax.random.uniform(jax.random.key(1), (8, 2))
  split, rows = PartitionSpec("data", "tensor"), PartitionSpec("data")
  arguments = (
      jax.device_put(scores, NamedSharding(mesh, split)),
      jax.device_put(uniforms, NamedSharding(mesh, rows)),
  )
  compiled = jax.jit(draw).lower(*arguments).compile()
  moved = list(collectives.transfers(compiled.as_text(), lambda _: 31))
  assert "all-reduce" in {x.kind for x in moved}
  # Nothing is as large as the scores of a device: 4 rows of 52 tokens.
  assert max(np.prod(shape) for x in moved for _, shape in x.result) < 4 * 52
  alone = truncated(scores, top_k=20, top_p=0.9)
  alone, _ = jax.jit(head.draw)(alone, uniforms)
  np.testing.assert_array_equal(compiled(*arguments), alone)

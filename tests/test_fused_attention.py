"""The fused kernels against the reference, on CPUs.

Kernels run here as JAX operations (Pallas' interpret mode), those for GPUs as
well as those for TPUs; test_fused_compilation.py asks whether they compile.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from iapo_jax.config import parsing as config_lib
from iapo_jax.config import rules as config_rules
from iapo_jax.core import sharding
from iapo_jax.core.errors import ConfigError
from iapo_jax.models import attention, fused_attention, transformer
from iapo_jax.rl import policy, probes
from iapo_jax.run import assembly

# Rows of queries, new tokens, heads, key/value heads, width; of every segment
# its rows and slots (None: the new tokens themselves, causal); the cap.
CASES = {
    "prefill": ((3, 7, 4, 2, 8), [(3, None)], 0.0),
    "completions_of_prompts": ((6, 9, 4, 2, 8), [(2, 5), (6, None)], 1.5),
    "probes": ((12, 3, 4, 1, 8), [(2, 5), (4, 11), (12, None)], 0.0),
    "blocks_of_slots": ((2, 5, 2, 2, 16), [(1, 1100), (2, None)], 1.5),
    "blocks_of_queries": ((2, 600, 2, 1, 8), [(1, 40), (2, None)], 0.0),
}
# Of the vocabulary a tensor axis of two takes halves.
FUSED = dataclasses.replace(tiny.MODEL, vocab_size=32, attention="fused")
EVERYTHING = dataclasses.replace(FUSED, windows=(3, 0), score_cap=5.0)


def make_case(name, dtype=jnp.float32):
  """Queries, pairs, masks and the cap; a row sees nothing of the contexts."""
  (b, x, n, k, h), sizes, cap = CASES[name]
  rng = np.random.default_rng(len(name))

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  pairs, masks = [], []
  for r, s in sizes:
    pairs.append((draw(r, k, h, s or x), draw(r, k, s or x, h)))
    if s is None:
      masks.append(jnp.tri(x, dtype=bool)[None])
    else:
      lengths = rng.integers(1, s + 1, (b, 1, 1))
      lengths[0] = 0
      masks.append(jnp.arange(s) < lengths)
  return draw(b, x, n, h), tuple(pairs), masks, cap


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
  chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)

  def check(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert np.any(y)
    np.testing.assert_allclose(x, y, rtol=0, atol=share * np.abs(y).max())

  jax.tree.map(check, ours, theirs)


@pytest.mark.full
@pytest.mark.parametrize("kernels", ["tpu", "gpu"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_the_reference(name, kernels):
  case = make_case(name)
  fused = functools.partial(fused_attention.attend, kernels=kernels)
  ours = value_and_gradients(fused, *case)
  theirs = value_and_gradients(attention.attend, *case)
  check_near(ours, theirs, 1e-5)


@pytest.mark.parametrize("kernels", ["tpu", "gpu"])
def test_in_bfloat16_they_are_near(kernels):
  """Weights and their gradients are rounded to 8 bits in another order."""
  case = make_case("completions_of_prompts", jnp.bfloat16)
  fused = functools.partial(fused_attention.attend, kernels=kernels)
  ours = value_and_gradients(fused, *case)
  theirs = value_and_gradients(attention.attend, *case)
  check_near(ours, theirs, 0.02)


def test_bounds_by_hand():
  visible = jnp.array([[[0, 1, 1, 0]], [[0, 0, 0, 0]]], bool)
  bounds = fused_attention._bounds(visible, 4, 2)
  # From slot 1 up to slot 2; of nothing the first is beyond the last.
  expected = [[[1, 3]] * 2] * 2 + [[[4, 0]] * 2] * 2
  np.testing.assert_array_equal(bounds, expected)


def inputs():
  """Four prompts, two completions of each, and where those end."""
  prompts = tiny.make_prompts(lengths=(5, 1, 3, 6))
  tokens = jax.random.randint(jax.random.key(1), (8, 9), 3, 29)
  return prompts, tokens, jnp.array([9, 0, 4, 8, 2, 7, 1, 5])


def gradient_of_scores(params, prompts, tokens, cfg):
  """Of log-probabilities that all weigh differently."""

  def loss(params):
    stats = tiny.score(
        params, prompts, tokens, cfg=cfg, group_size=2, temperature=1.0,
        chunk=4,
    )  # fmt: skip
    weights = jnp.arange(1, tokens.size + 1).reshape(tokens.shape)
    return jnp.mean(stats.logprob * weights), stats

  return jax.grad(loss, has_aux=True)(params)


def answers(params, prompts, tokens, lengths, cfg):
  """What probes find after every token, in one run of the completions."""
  _, context = policy.replay(params, prompts, tokens, cfg=cfg, group_size=2)
  return probes.answer_statistics(
      params,
      context,
      lengths,
      jnp.ones((1, tokens.shape[1] + 1), bool),
      jnp.array([4, 7, 3]),
      jnp.arange(8),
      cfg=cfg,
  )


def everything(params, prompts, tokens, lengths, cfg):
  scores = gradient_of_scores(params, prompts, tokens, cfg)
  return scores, answers(params, prompts, tokens, lengths, cfg)


@pytest.mark.full
@pytest.mark.parametrize("cfg", [FUSED, EVERYTHING], ids=["plain", "windows"])
def test_scores_and_probes_of_a_decoder(cfg):
  """With windows and caps, too; its weights get the same gradients."""
  params = tiny.make_params(cfg)
  run = jax.jit(everything, static_argnames="cfg")
  ours = run(params, *inputs(), cfg=cfg)
  reference = dataclasses.replace(cfg, attention="reference")
  theirs = run(params, *inputs(), cfg=reference)
  chex.assert_trees_all_close(ours, theirs, atol=2e-5, rtol=2e-5)


@pytest.mark.full
@pytest.mark.parametrize("shape", [(2, 2, 2), (4, 1, 2), (8, 1, 1)])
def test_eight_devices_are_one(shape):
  """Eight shards of rows do not divide four prompts: the reference then."""
  cfg = EVERYTHING
  params = tiny.make_params(cfg)
  expected = jax.jit(everything, static_argnames="cfg")(
      params, *inputs(), cfg=cfg
  )
  mesh = jax.make_mesh(
      shape,
      ("data", "fsdp", "tensor"),
      axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )

  def run(params, *arrays):
    with sharding.scope(mesh):
      return everything(params, *arrays, cfg)

  boxed = jax.eval_shape(
      functools.partial(transformer.init, cfg=cfg), jax.random.key(0)
  )
  placed = jax.device_put(params, sharding.tree_shardings(boxed, mesh))
  whole = sharding.replicated(mesh)
  rows = [jax.device_put(x, whole) for x in inputs()]
  program = jax.jit(run).trace(placed, *rows)
  assert ("pallas_call" in str(program.jaxpr)) == (shape[0] < 8)
  ours = program.lower().compile()(placed, *rows)
  chex.assert_trees_all_close(ours, expected, atol=2e-5, rtol=2e-5)


def forward_program(cfg, x):
  """The program of x new tokens in each of four rows."""
  params = jax.eval_shape(functools.partial(tiny.make_params, cfg))
  tokens = jnp.zeros((4, x), jnp.int32)
  run = functools.partial(transformer.extend, cfg=cfg)
  return jax.make_jaxpr(run)(params, tokens, tokens)


def test_scores_never_exist():
  scores = 4 * FUSED.num_heads * 900**2
  assert max(tiny.array_sizes(forward_program(FUSED, 900).jaxpr)) < scores
  reference = dataclasses.replace(FUSED, attention="reference")
  sizes = tiny.array_sizes(forward_program(reference, 900).jaxpr)
  assert max(sizes) == scores  # the search does see them


def test_what_is_chosen():
  """By itself a run takes the reference; so does decoding, always."""
  programs = {
      kind: str(
          forward_program(dataclasses.replace(tiny.MODEL, attention=kind), 5)
      )
      for kind in ("auto", "reference", "fused")
  }
  assert programs["auto"] == programs["reference"]
  assert "pallas_call" in programs["fused"]
  assert "pallas_call" not in str(forward_program(FUSED, 1))
  chosen = fused_attention.chosen
  assert chosen("fused", "tpu") and chosen("fused", "gpu")
  for platform in ("cpu", "gpu", "tpu"):
    assert not chosen("auto", platform) and not chosen("reference", platform)


@pytest.mark.parametrize(
    ("overrides", "platform", "rule"),
    [
        ({}, "cpu", "needs GPUs or TPUs, not cpu; use auto or reference"),
        (
            {"head_dim": 80},
            "gpu",
            "needs a model.head_dim of 16, 32, 64, 128 or 256 on GPUs, not 80;"
            " use reference",
        ),
    ],
)
def test_devices_that_cannot(overrides, platform, rule):
  model = {"attention": "fused"} | overrides
  parsed = config_lib.parse({"model": model})
  with pytest.raises(ConfigError) as error:
    config_rules.check_platform(parsed.model, platform)
  assert str(error.value) == f"config.model.attention = 'fused': {rule}"
  config_rules.check_platform(parsed.model, "tpu")


def test_a_mesh_of_cpus_refuses():
  config = config_lib.parse({"model": {"attention": "fused"}})
  with pytest.raises(ConfigError, match="needs GPUs or TPUs, not cpu"):
    assembly.make_mesh(config, jax.local_devices()[:1])

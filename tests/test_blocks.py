"""Attention in blocks of queries: the same numbers, in bounded memory."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import programs
import pytest
import tiny
from jax.sharding import AxisType
from recorded import make_config, setup_on
from test_fused_attention import check_near, value_and_gradients

from iapo_jax.core import sharding
from iapo_jax.models import attention, fused_attention, transformer
from iapo_jax.run import memory
from iapo_jax.tools import ahead, collectives

# Queries b, x, heads n, k, h; slots of a segment that rows share.
B, X, N, K, H, S = 4, 10, 4, 2, 8, 7
WINDOW = 4


def make_case(x=X, dtype=jnp.float32):
  """Queries; a segment for all, one for two rows each, and the new tokens."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  pairs = tuple(
      (draw(r, K, H, s), draw(r, K, s, H)) for r, s in ((1, S), (2, S), (B, x))
  )
  return draw(B, x, N, H), pairs


def make_masks(x=X, *, rules):
  """Of those segments, by rules or as arrays that are written out.

  All rows see 3 slots of the first segment, rows 0 and 1 see 2 of the second
  and rows 2 and 3 all 7, and new tokens are causal. Of the last two segments
  a query sees the last 4 positions, its own included.
  """
  start = np.array([[5], [9], [5], [30]])
  queries = start + np.arange(x)
  slots = np.array([[0], [3]]) + np.arange(S)
  shared = np.arange(S)[None, None] < 3
  seen = np.arange(S)[None, None] < np.array([2, 7]).reshape(2, 1, 1)
  order = np.arange(x) <= np.arange(x)[:, None]
  if rules:
    window = {"window": jnp.int32(WINDOW), "queries": jnp.asarray(queries)}
    return [
        jnp.asarray(shared),
        attention.Mask(jnp.asarray(seen), slots=jnp.asarray(slots), **window),
        attention.Mask(
            jnp.ones((1, 1, x), bool), causal=True, slots=jnp.asarray(queries),
            **window,
        ),
    ]  # fmt: skip
  rows = np.repeat(np.arange(2), 2)
  near = queries[:, :, None] - slots[rows][:, None] < WINDOW
  own = queries[:, :, None] - queries[:, None] < WINDOW
  written = shared, seen[rows] & near, order & own
  return [jnp.asarray(mask) for mask in written]


@pytest.mark.parametrize(("cap", "blocks"), [(0.0, (1, 5, 7)), (1.5, (3,))])
def test_blocks_of_any_size_agree_with_one(cap, blocks):
  """Outputs and gradients of 10 queries; blocks that divide them and others."""
  case = make_case()
  whole = value_and_gradients(
      attention.attend, *case, make_masks(rules=False), cap
  )
  for block in blocks:
    attend = functools.partial(attention.attend, block=block)
    ours = value_and_gradients(attend, *case, make_masks(rules=True), cap)
    check_near(ours, whole, 2e-6)


def test_written_masks_are_divided_too():
  case, masks = make_case(), make_masks(rules=False)
  attend = functools.partial(attention.attend, block=3)
  check_near(
      value_and_gradients(attend, *case, masks, 0.0),
      value_and_gradients(attention.attend, *case, masks, 0.0),
      2e-6,
  )


def test_blocks_of_bfloat16_are_summed_in_float32():
  """As near to one block as two roundings of 8 bits are to each other."""
  case, masks = make_case(64, jnp.bfloat16), make_masks(64, rules=True)
  attend = functools.partial(attention.attend, block=1)
  check_near(
      value_and_gradients(attend, *case, masks, 0.0),
      value_and_gradients(attention.attend, *case, masks, 0.0),
      2**-7,
  )


def test_a_mask_by_hand():
  # Queries at positions 6, 7, 8 of three new tokens, a window of 2.
  mask = attention.Mask(
      jnp.ones((1, 1, 3), bool), causal=True, window=jnp.int32(2),
      queries=jnp.array([[6, 7, 8]]), slots=jnp.array([[6, 7, 8]]),
  )  # fmt: skip
  np.testing.assert_array_equal(mask.of(1, 2)[0], [[1, 1, 0], [0, 1, 1]])
  # The fourth query is a copy of the third, and sees what that one sees.
  np.testing.assert_array_equal(
      mask.padded(1).of(2, 2)[0], [[0, 1, 1], [0, 1, 1]]
  )


def test_the_size_of_a_block_by_hand():
  size = attention.block_size
  # Up to 1,024 slots a row is one block, in training, probing and decoding.
  assert [size(x, 1024) for x in (1, 6, 1000, 1024)] == [1, 6, 1000, 1024]
  assert [size(1, slots) for slots in (8192, 2**20)] == [1, 1]
  # 2^20 scores: 512, 256 and 128 queries; then never fewer than 128.
  assert [size(x, x) for x in (2048, 4096, 8192)] == [512, 256, 128]
  assert size(2**15, 2**15) == 128
  # 1,025 queries need two blocks of at most 1,023: 513 and 512 fill them.
  assert size(1025, 1025) == 513


@functools.partial(jax.jit, static_argnames="cfg")
def extend(params, tokens, context=(), *, cfg):
  """New tokens after a context that begins at position 0."""
  begin = sum(segment.positions.shape[1] for segment in context)
  positions = begin + jnp.arange(tokens.shape[1])
  positions = jnp.broadcast_to(positions, tokens.shape)
  return transformer.extend(params, tokens, positions, context, cfg=cfg)


def test_a_decoder_reads_a_long_row_as_it_reads_its_parts():
  """1,100 tokens in blocks of 550; 600 and then 500 are one block each."""
  cfg = dataclasses.replace(tiny.MODEL, windows=(700, 0))
  params = tiny.make_params(cfg)
  tokens = jax.random.randint(jax.random.key(0), (1, 1100), 0, cfg.vocab_size)
  assert attention.block_size(1100, 1100) == 550
  whole, _ = extend(params, tokens, cfg=cfg)
  first, context = extend(params, tokens[:, :600], cfg=cfg)
  second, _ = extend(params, tokens[:, 600:], (context,), cfg=cfg)
  parts = jnp.concatenate([first, second], axis=1)
  np.testing.assert_allclose(whole, parts, atol=2e-5)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("windows", [(), (700, 0)], ids=["plain", "windows"])
def test_no_array_of_a_gradient_has_a_number_for_each_pair(remat, windows):
  """Neither scores nor masks, of one layer or stacked for all."""
  cfg = dataclasses.replace(tiny.MODEL, windows=windows, remat=remat)
  length = 8192
  params = jax.eval_shape(functools.partial(tiny.make_params, cfg))
  tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)

  def total(params, tokens):
    return jnp.sum(extend(params, tokens, cfg=cfg)[0])

  program = jax.make_jaxpr(jax.grad(total))(params, tokens)
  # Scores of 128 queries and 8,192 slots, in each head.
  largest = max(tiny.array_sizes(program.jaxpr))
  assert largest == cfg.num_heads * 2**20 < length**2


def test_bounds_of_the_kernels_are_made_in_blocks():
  x, mask = 1100, jnp.tri(1100, dtype=bool)[None]
  positions = jnp.arange(x)[None]
  rule = attention.causal(x).replace(
      window=jnp.int32(9), queries=positions, slots=positions
  )
  near = attention.windowed(mask, jnp.int32(9), positions, positions)
  np.testing.assert_array_equal(
      fused_attention._all_bounds(rule, 1, x),
      fused_attention._bounds(near, 1, x),
  )


@pytest.mark.mesh
def test_devices_exchange_nothing_for_blocks():
  """Each has its rows and heads; values and gradients are those of one."""
  mesh = jax.make_mesh(
      (2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3
  )
  queries, pairs = make_case()
  pairs, masks = pairs[2:], make_masks(rules=True)[2:]
  attend = functools.partial(attention.attend, block=3)

  def run(queries, pairs):
    with sharding.scope(mesh):
      return value_and_gradients(attend, queries, pairs, masks, 0.0)

  heads = sharding.batch_sharding(mesh).spec[0]
  place = functools.partial(jax.NamedSharding, mesh)
  placed = (
      jax.device_put(queries, place(jax.P(heads, None, "tensor"))),
      jax.device_put(pairs, place(jax.P(heads, "tensor"))),
  )
  compiled = jax.jit(run).lower(*placed).compile()
  assert not collectives.transfers(compiled.as_text(), lambda _: 1)
  check_near(
      compiled(*placed),
      value_and_gradients(attention.attend, queries, pairs, masks, 0.0),
      2e-6,
  )


def long_config(tokens, prompts=1):
  """Two completions a prompt, two micro-batches."""
  return make_config(
      prompts_per_step=prompts, group_size=2, rollout__max_tokens=tokens,
      loss__micro_batches=2, loss__head_chunk=64, loss__kl_weight=0.0,
      probe__stride=1, probe__at="sentences", evaluation__batch_size=32,
      model__num_layers=1, model__num_heads=1, model__num_kv_heads=1,
      model__head_dim=8, model__mlp_dim=2048, model__remat=True,
      mesh__data=1,
  )  # fmt: skip


def test_a_pass_of_probes_is_bounded_by_hand():
  """A micro-batch has one completion, of which at most 1,024 tokens count."""
  found = [long_config(t).tokens_per_pass for t in (512, 1024, 2048, 8192)]
  assert found == [512, 1024, 1024, 1024]
  # Four completions, so two in each micro-batch.
  assert long_config(8192, prompts=2).tokens_per_pass == 2048


@pytest.mark.full
def test_memory_of_a_step_grows_with_its_length_not_its_square():
  """Of 2,048, 4,096 and 8,192 tokens, probed at the ends of sentences.

  The arguments hold weights and moments; the temporaries that the compiler
  reports hold those of the weights once more as gradients and for decoding,
  3 · 4 bytes each: for 200,000 weights less than 3 % of the smallest program.
  The rest doubles with the tokens, within 20 %. One array with a score for
  each pair would take 4 · 8,192² bytes, 256 MiB of the longest program.
  """
  temporary = {}
  for tokens in (2048, 4096, 8192):
    setup = setup_on(
        jax.local_devices()[:1], optax.sgd(1.0), long_config(tokens)
    )
    compiled = ahead.train_step(setup.parts, setup.stage)
    weights = setup.stage.spec.shapes.params
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(weights))
    held = compiled.memory_analysis().temp_size_in_bytes
    assert 12 * count < 0.03 * held
    temporary[tokens] = held - 12 * count
    # The largest arrays are gate and up of a completion. The scores of a pass
    # of probes have half as many numbers: 1,024 tokens, each with all slots.
    assert programs.largest(compiled.as_text()) <= (tokens + 1) * 2048
    estimated = memory.of_step(setup.cfg, setup.parts.mesh, setup.stage.spec)
    needed = memory.compiled_bytes(compiled)
    assert 0.5 < estimated.peak / needed < 2, tokens
  for tokens in (2048, 4096):
    ratio = temporary[2 * tokens] / temporary[tokens]
    assert 1.6 < ratio < 2.4, temporary

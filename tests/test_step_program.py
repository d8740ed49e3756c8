"""What the compiled step must not hold: gathers of weights, all logits."""

import math

import jax
import jax.numpy as jnp
import programs
import pytest
from recorded import make_setup

from iapo_jax.core import sharding
from iapo_jax.models import head, transformer
from iapo_jax.rl import policy, rollout
from iapo_jax.tools import ahead, collectives

# Sizes that tell arrays apart: a completion is longer than weights are wide,
# and than the positions of all sequences whose logits may exist at one time.
TOKENS, CHUNK, VOCAB, TENSOR = 96, 8, 202, 2
SIZES = {
    "rollout__max_tokens": TOKENS,
    "loss__head_chunk": CHUNK,
    "model__vocab_size": VOCAB,
    "model__mlp_dim": 88,
    "model__head_dim": 6,
    "model__num_kv_heads": 2,
    "mesh__data": 1,
    "mesh__fsdp": 4,
    "mesh__tensor": TENSOR,
}


@pytest.fixture(name="setup", scope="module")
def make():
  return make_setup(devices=8, **SIZES)


@pytest.fixture(name="step", scope="module")
def compiled_step(setup):
  return ahead.train_step(setup.parts, setup.stage).as_text()


def compile_on(setup, program, *arguments):
  """The text of a program of weights as the state has them."""

  def run(params, *rest):
    with sharding.scope(setup.parts.mesh):
      return program(params, *rest)

  state, _, prompts = ahead.arguments(setup.parts, setup.stage)
  given = {"prompts": prompts}
  compiled = jax.jit(run).lower(
      state.params, *(given.get(x, x) for x in arguments)
  )
  return compiled.compile().as_text()


def sampling(setup, prepare):
  """A program that samples with the weights that `prepare` makes."""
  cfg, vocabulary = setup.cfg, setup.parts.task.vocabulary

  def program(params, prompts):
    return rollout.sample(
        prepare(params),
        prompts,
        jax.random.key(0),
        cfg=cfg.model,
        group_size=cfg.group_size,
        max_tokens=cfg.rollout.max_tokens,
        eos_ids=vocabulary.eos_ids,
        pad_id=vocabulary.pad_id,
        temperature=1.0,
    ).tokens

  return compile_on(setup, program, "prompts")


def test_weights_are_gathered_before_decoding(setup, step):
  shapes = setup.stage.spec.shapes.params
  assert "all-gather" in step  # FSDP does gather, elsewhere
  assert not programs.decoding_gathers(step, shapes, TENSOR)


def test_gathers_while_decoding_would_be_found(setup):
  shapes, axes = setup.stage.spec.shapes.params, setup.stage.spec.param_axes
  good = sampling(
      setup, lambda x: policy.for_decoding(x, axes, cfg=setup.cfg.model)
  )
  assert not programs.decoding_gathers(good, shapes, TENSOR)
  bad = sampling(setup, lambda x: x)  # in the shards that the state has
  assert programs.decoding_gathers(bad, shapes, TENSOR)


def test_the_head_moves_once_a_pass_not_once_a_chunk(setup, step):
  """Neither its weights nor their gradient; of the weights FSDP has parts."""
  model = setup.cfg.model
  sizes = {VOCAB * model.d_model // n for n in (1, TENSOR)}
  moved = [
      x
      # Loops whose trips the compiler does not know are those of passes.
      for x in collectives.transfers(step, lambda _: 1)
      if x.kind in ("all-gather", "all-reduce", "reduce-scatter")
      if any(math.prod(shape) in sizes for _, shape in x.result)
  ]
  # In the phase `reference`, or once for all of it: then of `ref_params`.
  places = {"ref", "update"}
  assert places <= {p for p in places for x in moved if p in x.scope}
  assert {x.times for x in moved} == {1}


def test_no_logits_of_all_positions(step):
  # Of one completion's positions, let alone of a batch's.
  assert not programs.of_the_vocabulary(step, VOCAB, TENSOR, TOKENS)
  # The logits of a chunk are there.
  assert programs.of_the_vocabulary(step, VOCAB, TENSOR, CHUNK)


def test_logits_of_all_positions_would_be_found(setup):
  model = setup.cfg.model

  def program(params, tokens):
    at = jnp.broadcast_to(jnp.arange(TOKENS), tokens.shape)
    hidden, _ = transformer.extend(params, tokens, at, cfg=model)
    scores = head.logits(params, hidden, cfg=model)
    return head.statistics(scores, tokens).entropy

  tokens = jax.ShapeDtypeStruct(
      (8, TOKENS), jnp.int32, sharding=sharding.batch_sharding(setup.parts.mesh)
  )
  text = compile_on(setup, program, tokens)
  assert programs.of_the_vocabulary(text, VOCAB, TENSOR, TOKENS)

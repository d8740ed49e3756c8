"""Whether the fused kernels compile for devices that are not there."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
import tiny
from flax import linen as nn
from jax.sharding import AxisType
from test_fused_attention import answers, everything, gradient_of_scores

from iapo_jax.core import compilation, sharding
from iapo_jax.core.types import Prompts
from iapo_jax.models import transformer
from iapo_jax.tools import ahead

pytestmark = pytest.mark.full

AXES = ("data", "fsdp", "tensor")
MODEL = dataclasses.replace(
    tiny.MODEL,
    vocab_size=32,
    d_model=256,
    head_dim=64,
    mlp_dim=256,
    windows=(100, 0),
    score_cap=30.0,
    dtype="bfloat16",
    remat=True,
    attention="fused",
)


def arguments(cfg, tokens, rows=None, weights=None):
  """The types of what `everything` takes, of 4 prompts and 8 completions."""

  def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)

  boxed = jax.eval_shape(
      functools.partial(transformer.init, cfg=cfg), jax.random.key(0)
  )
  params = nn.unbox(boxed)
  if weights is not None:
    params = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        params,
        sharding.tree_shardings(boxed, weights),
    )
  prompts = Prompts(array(4, 300), array(4), array(4, 1), array(4), array(4))
  return params, prompts, array(8, tokens), array(8)


def test_kernels_lower_for_a_gpu():
  """To Triton's language; only a GPU's compiler turns that into a program."""
  device = jax.sharding.AbstractDevice(
      "NVIDIA H100", num_cores=None, platform="gpu"
  )
  mesh = jax.sharding.AbstractMesh(
      (1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device
  )
  for dtype in ("bfloat16", "float32"):
    cfg = dataclasses.replace(MODEL, dtype=dtype)
    with jax.sharding.use_abstract_mesh(mesh):
      traced = jax.jit(functools.partial(everything, cfg=cfg)).trace(
          *arguments(cfg, 700)
      )
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "xla.gpu.triton" in text
    for name in ("forward", "backward_queries", "backward_segment"):
      assert f"attention_{name}" in text


@pytest.fixture(name="tpus")
def make_tpus():
  """A mesh of four TPUs that nobody needs to have."""
  pytest.importorskip("libtpu", reason="compiles for TPUs: needs libtpu")
  return jax.make_mesh(
      (1, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3,
      devices=ahead.devices("v5e:2x2"),
  )  # fmt: skip


def compile_for(mesh, program, cfg, tokens):
  """The program of four prompts, two completions of each."""

  def run(*arguments):
    with sharding.scope(mesh):
      return program(*arguments, cfg)

  rows = sharding.batch_sharding(mesh)
  traced = jax.jit(run).trace(*arguments(cfg, tokens, rows, mesh))
  with compilation.settings(
      jax_traceback_in_locations_limit=0,
      jax_optimization_level="O0",
  ):
    return traced.lower(lowering_platforms=("tpu",)).compile()


def test_probes_compile_for_tpus(tpus):
  cfg = dataclasses.replace(MODEL, attention="fused")
  compiled = compile_for(tpus, answers, cfg, 700)
  assert "tpu_custom_call" in compiled.as_text()


def test_gradients_compile_for_tpus_and_need_less_memory(tpus):
  """Than the reference with all scores at once, up to 1,024 tokens."""

  def gradient(params, prompts, tokens, _, cfg):
    return gradient_of_scores(params, prompts, tokens, cfg)

  needed = {}
  for kind in ("fused", "reference"):
    cfg = dataclasses.replace(MODEL, attention=kind)
    compiled = compile_for(tpus, gradient, cfg, 1000)
    assert ("tpu_custom_call" in compiled.as_text()) == (kind == "fused")
    needed[kind] = compiled.memory_analysis().temp_size_in_bytes
  assert needed["fused"] < needed["reference"]

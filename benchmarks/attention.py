"""Memory of fused attention and of the reference, compiled for absent TPUs.

Examples:
  python benchmarks/attention.py
  python benchmarks/attention.py --devices=4 --tokens=4096

Needs `pip install libtpu`, and no TPU: programs are compiled for the devices of
a topology and never run, so that this tells bytes and nothing of speed.

  update   the gradient of the completions' log-probabilities, through their
           prompts; layers are recomputed in the backward pass
  probes   the completions run once, then asked after every token

The decoder is small in depth and width and has a usual number of tokens: what
attention needs does not depend on the number of layers.
"""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import linen as nn
from jax.experimental import topologies
from jax.sharding import Mesh

from iapo_jax import config as config_lib
from iapo_jax import memory, policy, probes, sharding
from iapo_jax.config import Config
from iapo_jax.models import transformer
from iapo_jax.types import Array, Params, Prompts, PyTree

_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "Of the TPUs.")
_DEVICES = flags.DEFINE_integer(
    "devices", 1, "1, or 4: data 1 x fsdp 2 x tensor 2."
)
_PROMPTS = flags.DEFINE_integer("prompts", 8, "Prompts of a micro-batch.")
_SAMPLES = flags.DEFINE_integer("samples", 8, "Completions of each prompt.")
_PROMPT_TOKENS = flags.DEFINE_integer("prompt_tokens", 512, "Of each prompt.")
_TOKENS = flags.DEFINE_integer("tokens", 1024, "Of each completion.")
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Compute dtype.")

_ELICITATION = 4


def main(_: list[str]) -> None:
  """Prints bytes by program and attention."""
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  topology = topologies.get_topology_desc(
      platform="tpu", topology_name=_TOPOLOGY.value
  )
  devices = list(topology.devices)[: _DEVICES.value]
  print(f"{len(devices)} x {devices[0].device_kind}, {_DTYPE.value}")
  for name, program in (("update", _update), ("probes", _probes)):
    for kind in ("reference", "fused"):
      cfg = _config(kind)
      mesh = sharding.make_mesh(cfg, devices)
      compiled = _compile(program, cfg, mesh)
      stats = compiled.memory_analysis()
      print(
          f"{name} {kind}: {memory.readable(stats.temp_size_in_bytes)} beside"
          f" arguments of {memory.readable(stats.argument_size_in_bytes)}",
          flush=True,
      )


def _config(kind: str) -> Config:
  """Four layers of width 1,024."""
  side = 2 if _DEVICES.value == 4 else 1
  return config_lib.parse({
      "prompts_per_step": _PROMPTS.value,
      "group_size": _SAMPLES.value,
      "mesh": {"data": 1, "fsdp": side, "tensor": side},
      "model": {
          "vocab_size": 32_000, "num_layers": 4, "d_model": 1024,
          "num_heads": 8, "num_kv_heads": 4, "head_dim": 128,
          "mlp_dim": 2816, "dtype": _DTYPE.value, "remat": True,
          "attention": kind,
      },
  })  # fmt: skip


def _compile(
    program: Callable[..., PyTree], cfg: Config, mesh: Mesh
) -> jax.stages.Compiled:
  """A program for devices that are not there."""
  rows = sharding.batch_sharding(mesh)

  def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)

  boxed = jax.eval_shape(
      functools.partial(transformer.init, cfg=cfg.model), jax.random.key(0)
  )
  params = jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
      nn.unbox(boxed),
      sharding.tree_shardings(boxed, mesh),
  )
  prompts, sequences = _PROMPTS.value, _PROMPTS.value * _SAMPLES.value
  batch = Prompts(
      tokens=array(prompts, _PROMPT_TOKENS.value),
      lengths=array(prompts),
      gold=array(prompts, 1),
      gold_lengths=array(prompts),
  )
  arguments = (params, batch, array(sequences, _TOKENS.value), array(sequences))

  def run(*arguments: PyTree) -> PyTree:
    with sharding.scope(mesh):
      return program(*arguments, cfg)

  traced = jax.jit(run).trace(*arguments)
  return traced.lower(lowering_platforms=("tpu",)).compile()


def _update(
    params: Params, prompts: Prompts, tokens: Array, lengths: Array, cfg: Config
) -> Params:
  """The gradient of the sum of log-probabilities up to `lengths`."""
  live = jnp.arange(tokens.shape[1]) < lengths[:, None]

  def total(params: Params) -> Array:
    summed, _ = policy.token_loss(
        params, prompts, tokens, live, loss=lambda x, live: x * live,
        cfg=cfg.model, group_size=cfg.group_size, temperature=1.0,
        head_chunk=cfg.loss.head_chunk,
    )  # fmt: skip
    return summed

  return jax.grad(total)(params)


def _probes(
    params: Params, prompts: Prompts, tokens: Array, lengths: Array, cfg: Config
) -> Array:
  """Answer entropies [b, t + 1]."""
  _, context = policy.replay(
      params, prompts, tokens, cfg=cfg.model, group_size=cfg.group_size
  )
  return probes.answer_statistics(
      params,
      context,
      policy.first_positions(prompts, cfg.group_size),
      lengths,
      probes.strided(tokens.shape[1] + 1, 1),
      jnp.arange(_ELICITATION),
      jnp.zeros_like(lengths),
      cfg=cfg.model,
      budget=cfg.tokens_per_pass,
  ).entropy


if __name__ == "__main__":
  app.run(main)

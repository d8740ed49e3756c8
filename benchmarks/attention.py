"""Fused attention beside the reference: memory, and speed where there is one.

Examples:
  python benchmarks/attention.py
  python benchmarks/attention.py --devices=4 --tokens=4096
  python benchmarks/attention.py --run                  # needs a GPU or TPU

By default this needs `pip install libtpu`, and no TPU: programs are compiled
for the devices of a topology and never run, so that it tells bytes and nothing
of speed. With `--run` they are compiled for the accelerators that are here, and
run: seconds are medians of calls that take turns, and the difference is the
largest of any array, over the largest number of that array.

  update   the gradient of the completions' log-probabilities, through their
           prompts; layers are recomputed in the backward pass
  probes   the completions run once, then asked after every token

The decoder is small in depth and width and has a usual number of tokens: what
attention needs does not depend on the number of layers.
"""

import functools
import os
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import measuring
import numpy as np
from absl import flags
from flax import linen as nn
from jax.experimental import topologies
from jax.sharding import Mesh

from iapo_jax.cli import command
from iapo_jax.config import parsing as config_lib
from iapo_jax.config.schema import Config
from iapo_jax.core import sharding
from iapo_jax.core.types import Array, Params, Prompts, PyTree
from iapo_jax.models import head, transformer
from iapo_jax.rl import policy, probes
from iapo_jax.run import assembly, memory

_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "Of the TPUs.")
_DEVICES = flags.DEFINE_integer(
    "devices", 1, "1, or 4: data 1 x fsdp 2 x tensor 2."
)
_PROMPTS = flags.DEFINE_integer("prompts", 8, "Prompts of a micro-batch.")
_SAMPLES = flags.DEFINE_integer("samples", 8, "Completions of each prompt.")
_PROMPT_TOKENS = flags.DEFINE_integer("prompt_tokens", 512, "Of each prompt.")
_TOKENS = flags.DEFINE_integer("tokens", 1024, "Of each completion.")
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Compute dtype.")
_RUN = flags.DEFINE_bool("run", False, "On the accelerators that are here.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed calls.", lower_bound=1)

_ELICITATION = 4
_VOCABULARY = 32_000


def main(_: list[str]) -> None:
  """Prints bytes by program and attention; seconds and difference if asked."""
  devices = _devices()
  print(f"{len(devices)} x {devices[0].device_kind}, {_DTYPE.value}")
  meshes = {
      kind: assembly.make_mesh(_config(kind), devices)
      for kind in ("reference", "fused")
  }
  for name, program in (("update", _update), ("probes", _probes)):
    compiled = {}
    for kind, mesh in meshes.items():
      compiled[kind] = _compile(program, _config(kind), mesh)
      stats = compiled[kind].memory_analysis()
      print(
          f"{name} {kind}: {memory.readable(stats.temp_size_in_bytes)} beside"
          f" arguments of {memory.readable(stats.argument_size_in_bytes)}",
          flush=True,
      )
    if _RUN.value:
      shapes = _arguments(_config("reference"), meshes["reference"])
      _compare(name, compiled, shapes)


def _devices() -> list[jax.Device]:
  """Those that are here, or those of a topology."""
  if _RUN.value:
    return jax.devices()[: _DEVICES.value]
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  topology = topologies.get_topology_desc(
      platform="tpu", topology_name=_TOPOLOGY.value
  )
  return list(topology.devices)[: _DEVICES.value]


def _compare(
    name: str, compiled: dict[str, jax.stages.Compiled], shapes: PyTree
) -> None:
  """Runs both on the same random inputs, in turns."""
  inputs = _draw(shapes)
  seconds = measuring.take_turns(
      {
          kind: functools.partial(measuring.stopwatch, program, *inputs)
          for kind, program in compiled.items()
      },
      _ROUNDS.value,
  )
  medians = {kind: statistics.median(x) for kind, x in seconds.items()}
  fused, reference = (
      jax.tree.map(np.asarray, compiled[kind](*inputs))
      for kind in ("fused", "reference")
  )
  found = jax.tree.leaves(jax.tree.map(_difference, fused, reference))
  share = medians["fused"] / medians["reference"]
  print(
      f"{name}: reference {medians['reference']:.4f} s, fused"
      f" {medians['fused']:.4f} s, {share:.2f} of it; they differ by"
      f" {max(found):.1e}",
      flush=True,
  )


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
  """The largest, over the largest number; inf where one is not finite."""
  far = np.abs(ours - theirs).max() / np.abs(theirs).max()
  return float(far) if np.isfinite(far) else float("inf")


def _draw(shapes: PyTree) -> PyTree:
  """Random weights and tokens, all rows full, but the second: it is empty."""
  params, prompts, tokens, lengths = shapes
  placed = jax.tree.map(lambda x: x.sharding, params)
  make = jax.jit(_weights, static_argnums=0, out_shardings=placed)
  rng = np.random.default_rng(0)

  def put(x: jax.ShapeDtypeStruct, values: np.ndarray | int) -> Array:
    whole = np.broadcast_to(np.asarray(values, np.int32), x.shape)
    return jax.device_put(whole, x.sharding)

  def ids(x: jax.ShapeDtypeStruct) -> Array:
    return put(x, rng.integers(_VOCABULARY, size=x.shape))

  ends = np.full(lengths.shape, tokens.shape[1])
  ends[1] = 0
  return (
      make(_config("reference")),
      Prompts(
          tokens=ids(prompts.tokens),
          lengths=put(prompts.lengths, prompts.tokens.shape[1]),
          gold=put(prompts.gold, 0),
          gold_lengths=put(prompts.gold_lengths, 1),
          rows=put(prompts.rows, 0),
      ),
      ids(tokens),
      put(lengths, ends),
  )


def _weights(cfg: Config) -> Params:
  return nn.unbox(transformer.init(jax.random.key(0), cfg.model))


def _config(kind: str) -> Config:
  """Four layers of width 1,024."""
  side = 2 if _DEVICES.value == 4 else 1
  return config_lib.parse({
      "prompts_per_step": _PROMPTS.value,
      "group_size": _SAMPLES.value,
      "mesh": {"data": 1, "fsdp": side, "tensor": side},
      "model": {
          "vocab_size": _VOCABULARY, "num_layers": 4, "d_model": 1024,
          "num_heads": 8, "num_kv_heads": 4, "head_dim": 128,
          "mlp_dim": 2816, "dtype": _DTYPE.value, "remat": True,
          "attention": kind,
      },
  })  # fmt: skip


def _arguments(cfg: Config, mesh: Mesh) -> PyTree:
  """Types and places of weights, prompts, tokens and lengths."""
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
      rows=array(prompts),
  )
  return params, batch, array(sequences, _TOKENS.value), array(sequences)


def _compile(
    program: Callable[..., PyTree], cfg: Config, mesh: Mesh
) -> jax.stages.Compiled:
  """A program for the devices of a mesh, which need not be there."""

  def run(*arguments: PyTree) -> PyTree:
    with sharding.scope(mesh):
      return program(*arguments, cfg)

  traced = jax.jit(run).trace(*_arguments(cfg, mesh))
  platform = mesh.devices.flat[0].platform
  return traced.lower(
      lowering_platforms=("cuda" if platform == "gpu" else platform,)
  ).compile()


def _update(
    params: Params, prompts: Prompts, tokens: Array, lengths: Array, cfg: Config
) -> Params:
  """The gradient of the sum of log-probabilities up to `lengths`."""
  live = jnp.arange(tokens.shape[1]) < lengths[:, None]

  def total(params: Params) -> Array:
    hidden, _ = policy.replay(
        params, prompts, tokens[:, :-1], cfg=cfg.model,
        group_size=cfg.group_size,
    )  # fmt: skip
    summed, _ = head.token_loss(
        params, hidden, tokens, live, loss=lambda x, live: x * live,
        cfg=cfg.model, temperature=1.0, chunk=cfg.loss.head_chunk,
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
      lengths,
      probes.strided(tokens.shape[1] + 1, 1),
      jnp.arange(_ELICITATION),
      jnp.zeros_like(lengths),
      cfg=cfg.model,
      budget=cfg.tokens_per_pass,
  ).entropy


if __name__ == "__main__":
  command.run(main)

"""Compiles the train step for TPUs that this machine does not have.

libtpu describes a topology and compiles for its chips on any machine. Nothing
is allocated or run: memory and transfers of each device are what the compiler
reports. Times are lower bounds from the published peaks of the chips; real
programs are slower by an unknown factor.
"""

import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from iapo_jax.config.schema import Config
from iapo_jax.core import compilation, sharding
from iapo_jax.core.errors import ConfigError
from iapo_jax.core.types import Params, Prompts, TrainState
from iapo_jax.rl import policy
from iapo_jax.rl import state as state_lib
from iapo_jax.run import assembly, costs, memory
from iapo_jax.run.assembly import Assembly, Stage
from iapo_jax.tools import collectives

# libtpu must not query the network, which may be missing, and may be loaded by
# several processes, since none of them holds a chip.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_PHASES = ("rollout", "probes", "reference", "update")
# The compiler's messages after it has tried to fit, and before it tries.
_TOO_LARGE = (
    re.compile(r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm"),
    re.compile(
        r"temporaries \(([\d.]+[KMGT]?)\) exceeds available HBM"
        r" \(([\d.]+[KMGT]?)\)"
    ),
)


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published peaks of one chip, from Google Cloud's pages on its TPUs.

  Attributes:
    flops: bfloat16 operations per second.
    memory: bytes of HBM.
    bandwidth: bytes per second to and from HBM.
    links: bytes per second that it can send to other chips of its slice.
    network: bytes per second that it can send to other slices.
  """

  flops: float
  memory: float
  bandwidth: float
  links: float
  network: float


def chips() -> dict[str, Chip]:
  """Returns the chips by generation, the name before a topology's colon."""
  return {
      "v5e": Chip(197e12, 16e9, 819e9, 200e9, 6.4e12 / 8 / 256),
      "v5p": Chip(459e12, 95e9, 2765e9, 600e9, 50e9 / 8),
      "v6e": Chip(918e12, 32e9, 1638e9, 400e9, 25.6e12 / 8 / 256),
  }


def devices(topology: str, slices: int = 1) -> list[jax.Device]:
  """Returns one device per chip of a topology, such as `v5e:4x4`.

  The chips need not exist. A network connects `slices` copies of the topology.

  Raises:
    ConfigError: if libtpu is not installed or knows no such topology.
  """
  generation = topology.partition(":")[0]
  if generation not in chips():
    raise ConfigError(
        f"--topology = {topology!r}: must begin with one of"
        f" {', '.join(chips())} and a colon, such as v5e:4x4"
    )
  for name, value in _LIBTPU.items():
    os.environ.setdefault(name, value)
  try:
    found = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, num_slices=slices
    )
  except Exception as error:  # whatever libtpu raises
    reason = " ".join(str(error).split())[:200]
    raise ConfigError(
        f"--topology = {topology!r}: cannot be described ({reason}); libtpu"
        " must be installed: pip install 'jax[tpu]'"
    ) from error
  return list(found.devices)


def train_step(
    parts: Assembly, stage: Stage, *, level: str = "UNKNOWN"
) -> jax.stages.Compiled:
  """Compiles the whole step for the devices of the mesh in `parts`.

  Args:
    parts: of the run; its data is not read.
    stage: of reinforcement learning.
    level: JAX's `optimization_level`, the compiler's effort; UNKNOWN is the
      level of a run. With O0 the memory differs a little, and decoding weights
      are gathered before they are cast.

  Raises:
    ConfigError: if the step needs more memory than a device has.
  """
  step = assembly.train_step_of(parts, stage)
  state, reference, prompts = arguments(parts, stage)
  lowered = compilation.lower(step, state, reference, prompts)
  try:
    with compilation.settings(jax_optimization_level=level):
      return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    tried = (pattern.search(str(error)) for pattern in _TOO_LARGE)
    found = next(filter(None, tried), None)
    used = f"{found[1]}B of {found[2]}B" if found else "more than there is"
    raise ConfigError(_advice(used, parts, stage)) from error


def arguments(
    parts: Assembly, stage: Stage
) -> tuple[TrainState, Params | None, Prompts]:
  """Returns the shapes and placements of a step's arguments.

  These are the state, the reference policy (None if `loss.kl_weight` is 0) and
  the prompts.
  """
  cfg, spec = parts.cfg, stage.spec
  rows = sharding.batch_sharding(parts.mesh)

  def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
        (cfg.prompts_per_step, *shape), jnp.int32, sharding=rows
    )

  state = sharding.placed_shapes(spec.shapes, spec.shardings)
  prompts = Prompts(
      tokens=array(cfg.data.max_prompt_tokens),
      lengths=array(),
      gold=array(cfg.data.max_gold_tokens),
      gold_lengths=array(),
      rows=array(),
  )
  if not cfg.loss.kl_weight:
    return state, None, prompts
  reference = state_lib.reference_shapes(spec, cfg.model.dtype)
  placed = sharding.placed_shapes(reference, spec.shardings.params)
  return state, placed, prompts


def check_fits(found: dict[str, Any], parts: Assembly, stage: Stage) -> None:
  """Raises ConfigError if the step of a `report` does not fit the chip.

  The limit is the published memory; the compiler allows a little more: 15.75
  GiB of 16 GB.
  """
  used, there = found["memory"]["peak_bytes"], found["memory"]["device_bytes"]
  if used > there:
    sizes = f"{memory.readable(used)} of {memory.readable(there)}"
    raise ConfigError(_advice(sizes, parts, stage))


def _advice(used: str, parts: Assembly, stage: Stage) -> str:
  """Returns an error: the size, its parts and how to shrink the largest."""
  needed = memory.of_step(parts.cfg, parts.mesh, stage.spec)
  sizes = dataclasses.asdict(needed)
  names = sorted(sizes, key=lambda name: -sizes[name])
  by_part = ", ".join(
      f"{name} {memory.readable(sizes[name])}" for name in names if sizes[name]
  )
  fix = {
      "state": "shard it: mesh.fsdp or mesh.tensor",
      "reference": "shard it: mesh.fsdp or mesh.tensor; or loss.kl_weight = 0",
      "decoding": "split the decoding weights: mesh.tensor",
      "cache": "fewer prompts_per_step, or more devices in mesh.fsdp",
      "probes": "raise loss.micro_batches or probe.stride",
      "update": "raise loss.micro_batches, lower loss.head_chunk, or set"
      " model.remat",
  }[names[0]]
  return (
      f"the step needs {used} on a device. Estimated parts: {by_part}. The"
      f" largest is {names[0]}: {fix}"
  )


def report(
    parts: Assembly, stage: Stage, compiled: jax.stages.Compiled, chip: Chip
) -> dict[str, Any]:
  """Returns the costs of the step that `train_step` compiled.

  Values are JSON-ready; bytes, operations and seconds are those of one device.
  `roofline_seconds` are lower bounds, by phase and by the resource that limits.
  """
  sent = dict.fromkeys((*_PHASES, "rest"), 0.0)
  between = dict(sent)
  for transfer in collectives.transfers(
      compiled.as_text(), lambda name: _trips(parts.cfg, name)
  ):
    outside = transfer.kind == collectives.BETWEEN_SLICES
    to = between if outside else sent
    to[_phase(transfer.scope)] += transfer.sent_bytes
  found = {
      "devices": parts.mesh.size,
      "mesh": dict(parts.mesh.shape),
      "memory": _memory(compiled) | {"device_bytes": chip.memory},
      "flops": _flops(parts),
      "read_bytes": _reads(parts, stage),
      "collective_bytes": sent,
      "network_bytes": between,
  }
  roofline = {
      phase: {
          "compute": found["flops"][phase] / chip.flops,
          "memory": found["read_bytes"][phase] / chip.bandwidth,
          "links": sent[phase] / chip.links,
          "network": between[phase] / chip.network,
      }
      for phase in _PHASES
  }
  return found | {"roofline_seconds": roofline}


def lines(found: dict[str, Any]) -> Iterator[str]:
  """Formats a `report` for people, line by line."""
  sizes = {name: memory.readable(x) for name, x in found["memory"].items()}
  yield (
      f"memory     {sizes['peak_bytes']} of {sizes['device_bytes']} a device:"
      f" {sizes['argument_bytes']} of arguments, {sizes['temp_bytes']} while"
      " running"
  )
  yield f"{'':<11}{'Tflop':>9}{'GB read':>9}{'GB sent':>9}  seconds at least"
  for phase in _PHASES:
    bounds = found["roofline_seconds"][phase]
    name = max(bounds, key=bounds.get)
    yield (
        f"{phase:<11}{found['flops'][phase] / 1e12:>9.3g}"
        f"{found['read_bytes'][phase] / 1e9:>9.3g}"
        f"{found['collective_bytes'][phase] / 1e9:>9.3g}"
        f"  {bounds[name]:.3g} ({name})"
    )


def _memory(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Returns the memory that the compiled program needs, in bytes per device.

  `temp_bytes` is JAX's number. It includes gaps between arrays, for TPUs more
  than the compiler leaves. `peak_bytes` is the compiler's number, arguments
  included, plus the size of the program.
  """
  stats = compiled.memory_analysis()
  code = stats.generated_code_size_in_bytes
  return {
      "argument_bytes": stats.argument_size_in_bytes,
      "temp_bytes": stats.temp_size_in_bytes,
      "output_bytes": stats.output_size_in_bytes,
      "alias_bytes": stats.alias_size_in_bytes,
      "code_bytes": code,
      "peak_bytes": stats.peak_memory_in_bytes + code,
  }


def _flops(parts: Assembly) -> dict[str, float]:
  """Returns operations per device by phase, for completions of full length."""
  cfg = parts.cfg
  batch = costs.batch_of(cfg)
  forward = costs.pass_flops(batch)
  probed = 0.0
  if cfg.probe.stride:
    width = len(parts.task.vocabulary.elicitation)
    width += cfg.probe.shown_tokens
    layers = cfg.probe.layers or cfg.model.num_layers
    model = dataclasses.replace(batch.model, num_layers=layers)
    asked = dataclasses.replace(batch, model=model)
    probed = costs.probe_flops(asked, cfg.probe.stride, width)
  # A forward pass and a backward pass (2 x) of the rows that learn; a
  # sequence's ratio needs one more forward pass.
  passes = 3 * cfg.update_rows / cfg.sequences_per_step
  passes += cfg.loss.ratio == "sequence"
  by_phase = {
      "rollout": forward,
      "probes": probed,
      "reference": forward if cfg.loss.kl_weight else 0.0,
      "update": cfg.loss.num_updates * passes * forward,
  }
  return {name: x / parts.mesh.size for name, x in by_phase.items()}


def _reads(parts: Assembly, stage: Stage) -> dict[str, float]:
  """Returns the least bytes that one device reads from memory, by phase.

  Decoding reads its weights and its part of the cache at every token. An update
  reads and writes gradients, weights and moments once, and reads the weights in
  the compute dtype three times per micro-batch. Activations are not counted.
  """
  cfg, mesh = parts.cfg, parts.mesh
  batch, width = costs.batch_of(cfg), memory.width(cfg)
  tensor, shards = mesh.shape["tensor"], mesh.size // mesh.shape["tensor"]
  weights = costs.weight_reads(batch, width) / tensor
  cache = costs.cache_reads(batch, width) / tensor / shards
  once = weights / batch.new_tokens
  passes = cfg.loss.micro_batches
  state = memory.tree_bytes(stage.spec.shapes, stage.spec.shardings)
  return {
      "rollout": weights + cache,
      "probes": once * passes if cfg.probe.stride else 0.0,
      "reference": once * passes if cfg.loss.kl_weight else 0.0,
      "update": cfg.loss.num_updates * (3 * once * passes + 2 * state),
  }


def _phase(scope: str) -> str:
  """Returns the phase of an operation from the scope that it was traced in."""
  names = re.findall(r"\w+", scope)
  return next((x for x in names if x in _PHASES), "rest")


def _trips(cfg: Config, scope: str) -> int:
  """Returns how often a loop runs, by its name, for full-length completions.

  The compiler for TPUs states no trip count, and a loop that ends with the data
  has none before it runs.
  """
  tokens = cfg.rollout.max_tokens
  path = scope.split("/")
  if "Decoder" in path[-2:]:
    return cfg.model.num_layers
  phase = _phase(scope)
  depth = path.count("while")
  chunks = -(-tokens // cfg.loss.head_chunk)
  if phase == "rollout":
    return -(-tokens // len(policy.stages(tokens)))
  if phase == "reference":
    return (cfg.loss.micro_batches, chunks)[min(depth, 2) - 1]
  if phase == "update":
    by_depth = (cfg.loss.num_updates, cfg.loss.micro_batches, chunks)
    return by_depth[min(depth, 3) - 1]
  return 1

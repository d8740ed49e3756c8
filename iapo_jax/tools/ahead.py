"""The train step, compiled for TPUs that are not there.

libtpu describes a topology and compiles for its chips on any machine; nothing
is allocated and nothing runs. So what is known is what the compiler says: the
memory of each device and what moves between them. Times are bounds from the
published peaks of the chips: no program is faster, and how much slower it is
nobody measured.
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

# Read by libtpu: no questions over the network, which there may not be; and
# several processes at a time, as none of them holds a chip.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_PHASES = ("rollout", "probes", "reference", "update")
# What the compiler says when it has tried everything, and when it need not try.
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
    flops: operations a second, bfloat16.
    memory: bytes of HBM.
    bandwidth: of it, bytes a second.
    links: to other chips of the slice, bytes a second that it can send.
    network: to other slices, bytes a second.
  """

  flops: float
  memory: float
  bandwidth: float
  links: float
  network: float


def chips() -> dict[str, Chip]:
  """By the name that a topology begins with."""
  return {
      "v5e": Chip(197e12, 16e9, 819e9, 200e9, 6.4e12 / 8 / 256),
      "v5p": Chip(459e12, 95e9, 2765e9, 600e9, 50e9 / 8),
      "v6e": Chip(918e12, 32e9, 1638e9, 400e9, 25.6e12 / 8 / 256),
  }


def devices(topology: str, slices: int = 1) -> list[jax.Device]:
  """Of a topology, such as `v5e:4x4`: chips that may not be there.

  Args:
    topology: of a slice, as libtpu names it.
    slices: how many of them a network connects.

  Returns:
    One device a chip.

  Raises:
    ConfigError: where libtpu is not installed or knows no such topology.
  """
  generation = topology.partition(":")[0]
  if generation not in chips():
    raise ConfigError(
        f"topology {topology!r}: must begin with one of"
        f" {', '.join(chips())}, and a colon"
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
        f"topology {topology!r}: cannot be described ({reason}); libtpu must be"
        " installed: pip install 'jax[tpu]'"
    ) from error
  return list(found.devices)


def train_step(
    parts: Assembly, stage: Stage, *, level: str = "UNKNOWN"
) -> jax.stages.Compiled:
  """The whole step, compiled for the devices of the parts' mesh.

  Args:
    parts: of a run; its data is not looked at.
    stage: of reinforcement learning.
    level: JAX's `optimization_level`, the compiler's effort for a fast program;
      UNKNOWN is what a run gets. With O0 memory differs a little, and decoding
      weights are gathered before they are cast.

  Returns:
    The program.

  Raises:
    ConfigError: where it needs more memory than a device has.
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
  """The types of a step's arguments, placed as a run places them.

  Args:
    parts: of a run; its data is not looked at.
    stage: of reinforcement learning.

  Returns:
    The state, the reference policy where the loss has one, and the prompts.
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
  )
  if not cfg.loss.kl_weight:
    return state, None, prompts
  reference = state_lib.reference_shapes(spec, cfg.model.dtype)
  placed = sharding.placed_shapes(reference, spec.shardings.params)
  return state, placed, prompts


def check_fits(found: dict[str, Any], parts: Assembly, stage: Stage) -> None:
  """Whether a step that was compiled fits what is published of its chip.

  The compiler allows a little more: 15.75 GiB of 16 GB.

  Args:
    found: of `report`.
    parts: of the run.
    stage: of reinforcement learning.

  Raises:
    ConfigError: where it does not.
  """
  told = found["memory"]
  if told["peak_bytes"] > told["device_bytes"]:
    used, there = (
        memory.readable(told[name]) for name in ("peak_bytes", "device_bytes")
    )
    raise ConfigError(_advice(f"{used} of {there}", parts, stage))


def _advice(used: str, parts: Assembly, stage: Stage) -> str:
  """What was too large, what it is made of, and what makes it smaller."""
  needed = memory.of_step(parts.cfg, parts.mesh, stage.spec)
  by_part = ", ".join(
      f"{name} {memory.readable(size)}"
      for name, size in sorted(
          dataclasses.asdict(needed).items(), key=lambda x: -x[1]
      )
      if size
  )
  largest = max(dataclasses.asdict(needed).items(), key=lambda x: x[1])[0]
  fix = {
      "state": "shard it: mesh.fsdp or mesh.tensor",
      "reference": "shard it: mesh.fsdp or mesh.tensor; or loss.kl_weight = 0",
      "decoding": "split the decoding weights: mesh.tensor",
      "cache": "fewer prompts_per_step, or more devices in mesh.fsdp",
      "probes": "raise loss.micro_batches or probe.stride",
      "update": "raise loss.micro_batches, lower loss.head_chunk, or set"
      " model.remat",
  }[largest]
  return (
      f"the step needs {used} on a device. By the library's account: {by_part}."
      f" Of the {largest}: {fix}"
  )


def report(
    parts: Assembly, stage: Stage, compiled: jax.stages.Compiled, chip: Chip
) -> dict[str, Any]:
  """What is known of a step that was compiled ahead of time.

  Args:
    parts: of the run.
    stage: of reinforcement learning.
    compiled: of `train_step`.
    chip: that it was compiled for.

  Returns:
    Values of JSON; bytes, operations and seconds are those of one device.
  """
  cfg, mesh = parts.cfg, parts.mesh
  moved = collectives.transfers(
      compiled.as_text(), lambda name: _trips(cfg, name)
  )
  sent = dict.fromkeys((*_PHASES, "rest"), 0.0)
  between = dict(sent)
  for transfer in moved:
    outside = transfer.kind == collectives.BETWEEN_SLICES
    to = between if outside else sent
    to[_phase(transfer.scope)] += transfer.sent_bytes
  found = {
      "devices": mesh.size,
      "mesh": dict(mesh.shape),
      "memory": _memory(compiled) | {"device_bytes": chip.memory},
      "flops": _flops(parts),
      "read_bytes": _reads(parts, stage),
      "collective_bytes": sent,
      "network_bytes": between,
  }
  return found | {"roofline_seconds": _roofline(found, chip)}


def lines(found: dict[str, Any]) -> Iterator[str]:
  """A report for people to read.

  Args:
    found: of `report`.

  Yields:
    Lines.
  """
  told = found["memory"]
  yield (
      f"memory     {memory.readable(told['peak_bytes'])} of"
      f" {memory.readable(told['device_bytes'])} a device:"
      f" {memory.readable(told['argument_bytes'])} of arguments,"
      f" {memory.readable(told['temp_bytes'])} while it runs"
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


def _roofline(found: dict[str, Any], chip: Chip) -> dict[str, dict[str, float]]:
  """Seconds that a chip needs at least, by phase and by what bounds it."""
  return {
      phase: {
          "compute": found["flops"][phase] / chip.flops,
          "memory": found["read_bytes"][phase] / chip.bandwidth,
          "links": found["collective_bytes"][phase] / chip.links,
          "network": found["network_bytes"][phase] / chip.network,
      }
      for phase in _PHASES
  }


def _memory(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Bytes of a device.

  `temp_bytes` is what JAX reports and counts the gaps between arrays as well,
  for TPUs more of them than the compiler leaves. The peak is the compiler's
  own: what lives at the fullest moment, arguments included; to that the
  program itself is added.
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
  """Operations of one device by phase: all completions, full and shared out."""
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
  # Of rows that learn forward and twice back; for a sequence's ratio once more.
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
  """Bytes that one device must read from its memory, at least.

  Decoding reads its weights and its part of the cache at every token; an
  update reads gradients, weights and moments once and writes them, and the
  weights in the compute dtype three times a micro-batch. Activations are not
  counted.
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
  """Which phase an operation belongs to, by the scope it was traced in."""
  names = re.findall(r"[\w]+", scope)
  return next((x for x in names if x in _PHASES), "rest")


def _trips(cfg: Config, scope: str) -> int:
  """How often a loop runs, by its name, where all completions are full.

  The compiler for TPUs does not say of any loop, and of those that end with
  the data nobody can.
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

"""Estimated memory of a run's programs, before they are compiled.

Weights, moments and cache are counted exactly. Activations follow a model of
what the compiler keeps, which may fuse or reorder better or worse: use the
estimate to choose a mesh and micro-batches. After compiling, the program's
reported size is printed too.
"""

import dataclasses
import math

import jax
from jax.sharding import Mesh

from iapo_jax.config.schema import Config
from iapo_jax.core.types import PyTree
from iapo_jax.models import attention, fused_attention
from iapo_jax.rl import probes
from iapo_jax.rl import state as state_lib
from iapo_jax.rl.state import StateSpec

_FP32 = 4


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Bytes on each device while a program runs.

  Attributes:
    state: weights and moments, held throughout the stage.
    reference: the starting policy in the compute dtype, if the loss compares
      with it.
    decoding: weights in the compute dtype, gathered for decoding.
    cache: keys and values of prompts and completions.
    probes: activations of one pass of probes, and the cache of its part.
    update: gradients, and activations of a micro-batch.
  """

  state: int
  reference: int = 0
  decoding: int = 0
  cache: int = 0
  probes: int = 0
  update: int = 0

  @property
  def peak(self) -> int:
    """Bytes held throughout plus the larger of the two phases."""
    held = self.state + self.reference
    return held + max(self.decoding + self.cache + self.probes, self.update)


def programs(c: Config, mesh: Mesh, spec: StateSpec) -> dict[str, Estimate]:
  """Estimates every program that a run will compile.

  Returns those of `warm start`, `rl step` and `evaluation` that will run.
  """
  found = {}
  if c.warm_start.num_steps:
    found["warm start"] = of_warm_start(c, mesh, spec)
  if c.num_steps:
    found["rl step"] = of_step(c, mesh, spec)
  return found | {"evaluation": of_evaluation(c, mesh, spec)}


def of_warm_start(c: Config, mesh: Mesh, spec: StateSpec) -> Estimate:
  """Estimates one supervised step."""
  rows = c.warm_start.batch_size // _shards(mesh)
  return Estimate(
      state=tree_bytes(spec.shapes, spec.shardings),
      update=_update_bytes(c, mesh, spec, rows, rows),
  )


def of_evaluation(c: Config, mesh: Mesh, spec: StateSpec) -> Estimate:
  """Estimates one call of the sampler, plus the state that training holds."""
  sequences = c.evaluation.batch_size
  return Estimate(
      state=tree_bytes(spec.shapes, spec.shardings),
      reference=_reference_bytes(c, spec),
      decoding=_decoding_bytes(c, mesh, spec),
      cache=_cache_bytes(c, mesh, sequences // c.evaluation.samples, sequences),
  )


def of_step(c: Config, mesh: Mesh, spec: StateSpec) -> Estimate:
  """Estimates one step of reinforcement learning."""
  m, tensor = c.model, mesh.shape["tensor"]
  rows = c.sequences_per_step // _shards(mesh)
  # Approximate tokens of a probe, without asking the tokenizer.
  elicitation = 4 + c.probe.shown_tokens
  cache = _cache_bytes(c, mesh, c.prompts_per_step, c.sequences_per_step)
  asked = copied = 0  # probes in a pass; cache of its part of the batch
  positions = probes.most(c)
  if positions:
    parts, chunk = probes.passes(
        c.sequences_per_step,
        c.prompts_per_step,
        positions,
        elicitation,
        budget=c.tokens_per_pass,
        shards=_shards(mesh),
    )
    asked, copied = rows // parts * chunk, cache // parts
  # A probe's few tokens are one block of attention.
  probe = elicitation * _layer_bytes(c, mesh, share=1.0)
  head = m.vocab_size // tensor * _FP32
  return Estimate(
      state=tree_bytes(spec.shapes, spec.shardings),
      reference=_reference_bytes(c, spec),
      decoding=_decoding_bytes(c, mesh, spec),
      cache=cache,
      probes=asked * (probe + head) + copied,
      update=_update_bytes(
          c,
          mesh,
          spec,
          c.prompts_per_step // _shards(mesh),
          c.update_rows // _shards(mesh) // c.loss.micro_batches,
      ),
  )


def _shards(mesh: Mesh) -> int:
  return mesh.shape["data"] * mesh.shape["fsdp"]


def width(c: Config) -> int:
  """Returns the bytes of a number in the compute dtype."""
  return 2 if c.model.dtype == "bfloat16" else 4


def _reference_bytes(c: Config, spec: StateSpec) -> int:
  if not (c.num_steps and c.loss.kl_weight):
    return 0
  shapes = state_lib.reference_shapes(spec, c.model.dtype)
  return tree_bytes(shapes, spec.shardings.params)


def _decoding_bytes(c: Config, mesh: Mesh, spec: StateSpec) -> int:
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(spec.shapes.params))
  return count * width(c) // mesh.shape["tensor"]


def _cache_bytes(c: Config, mesh: Mesh, prompts: int, sequences: int) -> int:
  m = c.model
  slots = prompts * c.data.max_prompt_tokens
  slots += sequences * (c.rollout.max_tokens + 1)
  size = 2 * slots * m.num_layers * m.num_kv_heads * m.head_dim * width(c)
  return size // (_shards(mesh) * mesh.shape["tensor"])


def _update_bytes(
    c: Config, mesh: Mesh, spec: StateSpec, prompts: int, rows: int
) -> int:
  """Returns bytes to hold `prompts` and update on a micro-batch of `rows`."""
  m, tensor = c.model, mesh.shape["tensor"]
  # Those of the micro-batch, and their sum.
  gradients = 2 * tree_bytes(spec.shapes.params, spec.shardings.params)
  kept = _kept_bytes(c, tensor)
  pair = 2 * m.num_kv_heads * m.head_dim // tensor * _FP32
  slots = prompts * c.data.max_prompt_tokens * m.num_layers
  # The backward pass recomputes one layer at a time: values and gradients.
  share = _scored_share(c)
  layers = m.num_layers * kept + 2 * _layer_bytes(c, mesh, share)
  tokens = rows * c.rollout.max_tokens
  chunk = rows * min(c.loss.head_chunk, c.rollout.max_tokens)
  logits = 3 * chunk * (m.vocab_size // tensor) * _FP32
  return gradients + slots * (kept + 2 * pair) + tokens * layers + logits


def _scored_share(c: Config) -> float:
  """Returns the share of a completion's tokens whose scores exist at once."""
  tokens = c.rollout.max_tokens
  slots = max(tokens, c.data.max_prompt_tokens)
  return attention.block_size(tokens, slots) / tokens


def _layer_bytes(c: Config, mesh: Mesh, share: float) -> int:
  """Returns activations of a token in a layer: residual, heads, MLP, scores.

  `share` is that of the tokens whose scores exist at once.
  """
  m, tensor = c.model, mesh.shape["tensor"]
  heads = (2 * m.num_heads + 2 * m.num_kv_heads) * m.head_dim // tensor
  scores = c.data.max_prompt_tokens + c.rollout.max_tokens
  if fused_attention.chosen(m.attention, mesh.devices.flat[0].platform):
    # The kernels hold only blocks of scores, and an output for each segment.
    scores = m.head_dim
  dense = 4 * m.d_model + heads + 3 * m.mlp_dim // tensor
  scored = 2 * m.num_heads // tensor * scores * _FP32
  return dense * width(c) + int(share * scored)


def _kept_bytes(c: Config, tensor: int) -> int:
  """Returns what a layer keeps of one token for its backward pass."""
  m = c.model
  if m.remat:
    return m.d_model * width(c)
  heads = (2 * m.num_heads + 2 * m.num_kv_heads) * m.head_dim // tensor
  products = 2 * m.d_model + heads + 2 * m.mlp_dim // tensor
  return products * width(c) + m.num_heads // tensor * _FP32


def tree_bytes(shapes: PyTree, shardings: PyTree) -> int:
  """Returns the bytes of a tree on one device."""
  sizes = jax.tree.map(
      lambda x, where: (
          math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize
      ),
      shapes,
      shardings,
  )
  return sum(jax.tree.leaves(sizes))


def readable(count: float) -> str:
  """Formats bytes for people, such as 13.4 MiB."""
  units = ("B", "KiB", "MiB", "GiB", "TiB")
  power = 0
  while count >= 1024 and power < len(units) - 1:
    count, power = count / 1024, power + 1
  return f"{count:.1f} {units[power]}" if power else f"{count:.0f} B"


def compiled_bytes(compiled: jax.stages.Compiled) -> int | None:
  """Returns a compiled program's bytes on each device, None if unknown."""
  stats = compiled.memory_analysis()
  if stats is None:
    return None
  held = stats.argument_size_in_bytes + stats.output_size_in_bytes
  return held - stats.alias_size_in_bytes + stats.temp_size_in_bytes

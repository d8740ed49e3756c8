"""How much memory a step will need, before it is compiled.

Weights, moments and cache are counted exactly. Activations are a model of what
the compiler keeps, and it may fuse or reorder better or worse: the estimate is
for choosing a mesh and micro-batches. The compiled program's own account is
printed when there is one.
"""

import dataclasses
import math

import jax
from jax.sharding import Mesh

from iapo_jax.config import Config
from iapo_jax.state import StateSpec
from iapo_jax.types import PyTree

_FP32 = 4


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Bytes on each device.

  Attributes:
    state: weights and moments, for as long as the run lasts.
    reference: the starting policy, where the loss compares with it.
    decoding: weights in the compute dtype, gathered for decoding.
    cache: keys and values of prompts and completions.
    probes: activations of a chunk of probes.
    update: gradients, and activations of a micro-batch.
  """

  state: int
  reference: int
  decoding: int
  cache: int
  probes: int
  update: int

  @property
  def peak(self) -> int:
    """What lives throughout, and the larger of the two phases."""
    held = self.state + self.reference
    return held + max(self.decoding + self.cache + self.probes, self.update)


def estimate(c: Config, mesh: Mesh, spec: StateSpec) -> Estimate:
  """The estimate for one training step.

  Args:
    c: the checked configuration.
    mesh: devices.
    spec: of the state.

  Returns:
    Bytes on each device, by purpose.
  """
  m, tensor = c.model, mesh.shape["tensor"]
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  width = 2 if m.dtype == "bfloat16" else 4
  weights = tree_bytes(spec.shapes.params, spec.shardings.params)
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(spec.shapes.params))
  slots = c.prompts_per_step * c.data.max_prompt_tokens
  slots += c.sequences_per_step * (c.rollout.max_tokens + 1)
  cache = 2 * slots * m.num_layers * m.num_kv_heads * m.head_dim * width
  context = c.data.max_prompt_tokens + c.rollout.max_tokens
  chunk = min(c.probe.chunk, c.rollout.max_tokens + 1)
  probed = c.sequences_per_step // shards * chunk
  trained = c.sequences_per_step // shards // c.loss.micro_batches
  trained *= c.rollout.max_tokens
  elicitation = 4  # tokens, about: the tokenizer is not asked
  head = m.vocab_size // tensor * _FP32
  return Estimate(
      state=tree_bytes(spec.shapes, spec.shardings),
      reference=weights if c.loss.kl_weight else 0,
      decoding=count * width // tensor,
      cache=cache // (shards * tensor),
      probes=probed * (elicitation * _layer_bytes(c, context, tensor) + head),
      update=weights + _stored_bytes(c, trained, context, tensor),
  )


def _layer_bytes(c: Config, context: int, tensor: int) -> int:
  """Activations of one token in one layer: residuals, heads, MLP, scores."""
  m = c.model
  heads = (2 * m.num_heads + 2 * m.num_kv_heads) * m.head_dim // tensor
  scores = 2 * m.num_heads // tensor * context * _FP32
  width = 2 if m.dtype == "bfloat16" else 4
  return (4 * m.d_model + heads + 3 * m.mlp_dim // tensor) * width + scores


def _stored_bytes(c: Config, tokens: int, context: int, tensor: int) -> int:
  """What the backward pass of one micro-batch needs of the forward pass."""
  m = c.model
  width = 2 if m.dtype == "bfloat16" else 4
  layer = 2 * _layer_bytes(c, context, tensor)  # values and their gradients
  if m.remat:
    layers = m.num_layers * m.d_model * width + layer
  else:
    layers = m.num_layers * layer
  rows = tokens // c.rollout.max_tokens
  chunk = rows * min(c.loss.head_chunk, c.rollout.max_tokens)
  return tokens * layers + 3 * chunk * (m.vocab_size // tensor) * _FP32


def tree_bytes(shapes: PyTree, shardings: PyTree) -> int:
  """Bytes of a tree on one device."""
  sizes = jax.tree.map(
      lambda x, where: (
          math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize
      ),
      shapes,
      shardings,
  )
  return sum(jax.tree.leaves(sizes))


def readable(count: float) -> str:
  """Bytes for people: 13.4 MiB."""
  units = ("B", "KiB", "MiB", "GiB", "TiB")
  power = 0
  while count >= 1024 and power < len(units) - 1:
    count, power = count / 1024, power + 1
  return f"{count:.1f} {units[power]}" if power else f"{count:.0f} B"


def compiled_bytes(compiled: jax.stages.Compiled) -> int | None:
  """What a compiled program needs on each device; None where it cannot say."""
  stats = compiled.memory_analysis()
  if stats is None:
    return None
  held = stats.argument_size_in_bytes + stats.output_size_in_bytes
  return held - stats.alias_size_in_bytes + stats.temp_size_in_bytes

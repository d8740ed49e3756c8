"""Encodes prompts and runs completions, for rollout, probes and update.

Slots of a completion segment: slot 0 holds the last prompt token, slot i the
completion's token i, at position (prompt length − 1 + i). The hidden state of
slot i predicts the next token, so sampling and scoring need no special first
token. The prompt segment holds the tokens before slot 0.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from iapo_jax.config.model import ModelConfig
from iapo_jax.core import sharding
from iapo_jax.core.types import (
  Array,
  Context,
  KVSegment,
  Params,
  Prompts,
  PyTree,
)
from iapo_jax.models import transformer


@jax.named_scope("rollout")
def for_decoding(
    params: Params, axes: PyTree, *, cfg: ModelConfig
) -> Params:
  """Prepares weights for rollout and probes, once per step.

  Casts fp32 weights to the compute dtype, gathers them along FSDP and lays them
  out for many calls. `axes` are their `sharding.logical_axes`.
  """
  gathered = sharding.gather_for_decoding(params, axes, cfg.dtype)
  return transformer.for_decoding(gathered)


def stages(slots: int) -> list[int]:
  """Returns the number of cache slots that each stage of a loop reads.

  Early stages read only the slots that are written by then. The program has one
  loop per stage. Stages are quarters of the cache, or eighths of a long one; a
  short one has a single stage.
  """
  parts = 8 if slots >= 512 else 4 if slots >= 64 else 1
  return [slots * (n + 1) // parts for n in range(parts)]


def prefill(params: Params, prompts: Prompts, *, cfg: ModelConfig) -> KVSegment:
  """Encodes each prompt once, for all samples of its group.

  Returns a segment of q rows and p slots, in which the last prompt token and
  padding are not visible.
  """
  slots = jnp.arange(prompts.tokens.shape[1])
  positions = jnp.broadcast_to(slots, prompts.tokens.shape)
  _, segment = transformer.extend(params, prompts.tokens, positions, cfg=cfg)
  return segment.replace(visible=slots < prompts.lengths[:, None] - 1)


def shallow(
    params: Params, context: Context, cfg: ModelConfig, layers: int
) -> tuple[Params, Context, ModelConfig]:
  """Returns a decoder of the first `layers` layers, and their context.

  The decoder keeps the final norm and the head.
  """
  first = jax.tree.map(lambda x: x[:layers], params["layers"])
  context = tuple(
      segment.replace(
          keys=segment.keys[:layers], values=segment.values[:layers]
      )
      for segment in context
  )
  cfg = dataclasses.replace(
      cfg,
      num_layers=layers,
      windows=cfg.windows[:layers],
      rotary=cfg.rotary[:layers],
  )
  return params | {"layers": first}, context, cfg


@struct.dataclass
class Starts:
  """Slot 0 of each completion, the last prompt token.

  Attributes:
    tokens: int32[b].
    positions: int32[b].
    prompts: int32[b], the index of the prompt within its data shard; None where
      completions are prompt-major.
  """

  tokens: Array
  positions: Array
  prompts: Array | None = None


def starts(prompts: Prompts, group_size: int) -> Starts:
  """Returns the starts of prompt-major completions."""
  last = prompts.lengths - 1
  tokens = jnp.take_along_axis(prompts.tokens, last[:, None], axis=1)[:, 0]
  return Starts(
      tokens=jnp.repeat(tokens, group_size),
      positions=jnp.repeat(last, group_size),
  )


def replay(
    params: Params,
    prompts: Prompts,
    tokens: Array,
    *,
    cfg: ModelConfig,
    group_size: int,
) -> tuple[Array, Context]:
  """Runs given completions in one differentiable pass.

  The prompt is encoded once per group, and gradients flow through it. `tokens`
  int32[b, t], prompt-major; values after the end do not matter.

  Returns:
    The hidden states [b, t + 1, d] of slots 0..t, and the context that a
    rollout of these completions leaves.
  """
  encoded = prefill(params, prompts, cfg=cfg)
  return follow(params, encoded, starts(prompts, group_size), tokens, cfg=cfg)


def follow(
    params: Params,
    encoded: KVSegment,
    starts: Starts,
    tokens: Array,
    *,
    cfg: ModelConfig,
) -> tuple[Array, Context]:
  """Does what `replay` does, with prompts that `prefill` has encoded."""
  encoded = encoded.replace(rows=starts.prompts)
  inputs = jnp.concatenate([starts.tokens[:, None], tokens], axis=1)
  positions = starts.positions[:, None] + jnp.arange(inputs.shape[1])
  hidden, completion = transformer.extend(
      params, inputs, positions, (encoded,), cfg=cfg
  )
  return hidden, (encoded, completion)

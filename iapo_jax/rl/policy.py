"""Uses of `extend` that several rooms share: encode prompts, run and score.

Slots of a completion segment: slot 0 holds the last prompt token, slot i the
completion's token i; slot i sits at position (prompt length − 1 + i). What
follows slot i is predicted by the hidden state of slot i, so sampling and
scoring need no special first token. The prompt segment holds the tokens before
slot 0.
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
  TokenStatistics,
)
from iapo_jax.models import head, transformer


@jax.named_scope("rollout")
def for_decoding(
    params: Params, axes: PyTree, *, cfg: ModelConfig
) -> Params:
  """Weights as rollout and probes read them; made once a step.

  In the compute dtype, whole along FSDP, and laid out for many calls.

  Args:
    params: fp32 weights.
    axes: their logical axes (`sharding.logical_axes`).
    cfg: the decoder.

  Returns:
    Weights for `transformer.extend` and the head.
  """
  gathered = sharding.gather_for_decoding(params, axes, cfg.dtype)
  return transformer.for_decoding(gathered)


def stages(slots: int) -> list[int]:
  """How many slots of a cache are read, growing with how many there are to.

  Every stage is a loop of its own in a program: quarters of the cache, eighths
  of a long one, but no loops for a dozen slots.
  """
  parts = 8 if slots >= 512 else 4 if slots >= 64 else 1
  return [slots * (n + 1) // parts for n in range(parts)]


def prefill(params: Params, prompts: Prompts, *, cfg: ModelConfig) -> KVSegment:
  """Encodes each prompt once, for all samples of its group.

  Args:
    params: the decoder's weights.
    prompts: q prompts.
    cfg: the decoder.

  Returns:
    A segment of q rows and p slots; the last prompt token and padding are not
    visible.
  """
  slots = jnp.arange(prompts.tokens.shape[1])
  positions = jnp.broadcast_to(slots, prompts.tokens.shape)
  _, segment = transformer.extend(params, prompts.tokens, positions, cfg=cfg)
  return segment.replace(visible=slots < prompts.lengths[:, None] - 1)


@struct.dataclass
class Prefix:
  """What completions follow.

  Attributes:
    prompts: encoded, as `prefill` has them.
    tokens: int32[b], in slot 0 of every completion.
    positions: int32[b], of slot 0.
  """

  prompts: KVSegment
  tokens: Array
  positions: Array


def shallow(
    params: Params, context: Context, cfg: ModelConfig, layers: int
) -> tuple[Params, Context, ModelConfig]:
  """The decoder of the first layers, and what they wrote of a context.

  Args:
    params: weights.
    context: segments of all layers.
    cfg: the decoder.
    layers: 1 .. `cfg.num_layers`.

  Returns:
    All three for `layers` layers; the final norm and the head stay.
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


def last_prompt_tokens(prompts: Prompts, group_size: int) -> Array:
  """int32[b]: the token in slot 0 of every sequence."""
  last = jnp.take_along_axis(
      prompts.tokens, prompts.lengths[:, None] - 1, axis=1
  )[:, 0]
  return jnp.repeat(last, group_size)


def first_positions(prompts: Prompts, group_size: int) -> Array:
  """int32[b]: the position of slot 0 of every sequence."""
  return jnp.repeat(prompts.lengths - 1, group_size)


def replay(
    params: Params,
    prompts: Prompts,
    tokens: Array,
    *,
    cfg: ModelConfig,
    group_size: int,
) -> tuple[Array, Context]:
  """Runs given completions; differentiable, and all of it in one pass.

  The prompt is encoded once per group and gradients flow through it.

  Args:
    params: the decoder's weights.
    prompts: q prompts.
    tokens: int32[b, t], prompt-major; values after the end do not matter.
    cfg: the decoder.
    group_size: g, with b = q · g.

  Returns:
    The hidden states [b, t + 1, d] of slots 0..t, and the context that a
    rollout of these completions leaves.
  """
  prefix = Prefix(
      prompts=prefill(params, prompts, cfg=cfg),
      tokens=last_prompt_tokens(prompts, group_size),
      positions=first_positions(prompts, group_size),
  )
  return follow(params, prefix, tokens, cfg=cfg)


def follow(
    params: Params, prefix: Prefix, tokens: Array, *, cfg: ModelConfig
) -> tuple[Array, Context]:
  """`replay` after prompts that are encoded.

  Args:
    params: the decoder's weights.
    prefix: of b completions.
    tokens: int32[b, t].
    cfg: the decoder.

  Returns:
    As of `replay`.
  """
  inputs = jnp.concatenate([prefix.tokens[:, None], tokens], axis=1)
  positions = prefix.positions[:, None] + jnp.arange(inputs.shape[1])
  hidden, completion = transformer.extend(
      params, inputs, positions, (prefix.prompts,), cfg=cfg
  )
  return hidden, (prefix.prompts, completion)


@jax.named_scope("score")
def score(
    params: Params,
    prompts: Prompts,
    tokens: Array,
    *,
    cfg: ModelConfig,
    group_size: int,
    temperature: float,
    head_chunk: int,
) -> TokenStatistics:
  """Log-probabilities and entropies of completions, differentiable.

  Args:
    params: the decoder's weights.
    prompts: q prompts.
    tokens: int32[b, t], prompt-major; values after the end do not matter.
    cfg: the decoder.
    group_size: g, with b = q · g.
    temperature: of the distribution.
    head_chunk: positions whose logits exist at one time.

  Returns:
    Statistics [b, t] of each completion token.
  """
  # Nothing is predicted by the last token.
  hidden, _ = replay(
      params, prompts, tokens[:, :-1], cfg=cfg, group_size=group_size
  )
  return head.token_statistics(
      params,
      hidden,
      tokens,
      cfg=cfg,
      temperature=temperature,
      chunk=head_chunk,
  )


@jax.named_scope("loss")
def token_loss(
    params: Params,
    prompts: Prompts,
    tokens: Array,
    known: PyTree,
    *,
    loss: head.TokenLoss,
    cfg: ModelConfig,
    group_size: int,
    temperature: float,
    head_chunk: int,
) -> tuple[Array, TokenStatistics]:
  """A loss of the completions' log-probabilities, summed over all tokens.

  Its gradient costs less than that of a function of `score`
  (`head.token_loss`).

  Args:
    params: the decoder's weights.
    prompts: q prompts.
    tokens: int32[b, t], prompt-major; values after the end do not matter.
    known: of [b, t], constants that `loss` is given, too.
    loss: of each token; 0 after the end.
    cfg: the decoder.
    group_size: g, with b = q · g.
    temperature: of the distribution.
    head_chunk: positions whose logits exist at one time.

  Returns:
    fp32[], and the statistics [b, t], constants for the gradient.
  """
  hidden, _ = replay(
      params, prompts, tokens[:, :-1], cfg=cfg, group_size=group_size
  )
  return head.token_loss(
      params,
      hidden,
      tokens,
      known,
      loss=loss,
      cfg=cfg,
      temperature=temperature,
      chunk=head_chunk,
  )

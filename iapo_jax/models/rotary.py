"""Rotary position embeddings (arXiv 2104.09864) and their longer contexts.

Frequencies are known before any tracing: NumPy, float64, rounded once.
"""

import math

import jax.numpy as jnp
import numpy as np

from iapo_jax.config.model import ModelConfig, RopeConfig
from iapo_jax.core.types import Array


def frequencies(rope: RopeConfig, head_dim: int) -> tuple[np.ndarray, float]:
  """Radians per position of every rotated pair, and the tables' amplitude.

  Pair i turns by theta^(−2i/w), w = fraction · h, before the kind's scaling.

  Args:
    rope: the embedding.
    head_dim: h.

  Returns:
    float64[w/2], and the amplitude.
  """
  width = int(head_dim * rope.fraction)
  plain = rope.theta ** (-np.arange(0, width, 2) / width)
  if rope.kind == "default":
    return plain, 1.0
  if rope.kind == "linear":
    return plain / rope.factor, 1.0
  if rope.kind == "llama3":
    turns = rope.original_positions * plain / (2 * math.pi)
    kept = (turns - rope.low_freq) / (rope.high_freq - rope.low_freq)
    amplitude = 1.0
  else:
    kept = _yarn_kept(rope, width)
    amplitude = rope.amplitude or max(0.1 * math.log(rope.factor), 0.0) + 1.0
  kept = np.clip(kept, 0.0, 1.0)
  return plain * (kept + (1 - kept) / rope.factor), amplitude


def _yarn_kept(rope: RopeConfig, width: int) -> np.ndarray:
  """How far each pair keeps its frequency, not clipped (arXiv 2309.00071).

  Falls along the pairs' indices, from the pair that makes `beta_fast` turns
  within the original length to the one that makes `beta_slow`; both rounded
  outwards.
  """

  def pair_of(turns: float) -> float:
    wavelength = rope.original_positions / (turns * 2 * math.pi)
    return width * math.log(wavelength) / (2 * math.log(rope.theta))

  first = max(math.floor(pair_of(rope.beta_fast)), 0)
  last = min(math.ceil(pair_of(rope.beta_slow)), width - 1)
  span = last - first or 1e-3
  return 1 - (np.arange(width // 2) - first) / span


def tables(positions: Array, cfg: ModelConfig) -> tuple[Array, Array]:
  """Cosines and sines for each entry of `kinds`.

  A layer without positions has angle 0: cosine 1 and sine 0 change nothing.

  Args:
    positions: int32[b, x].
    cfg: the decoder.

  Returns:
    Two fp32[e, b, x, w/2], e kinds.
  """
  cosines, sines = [], []
  for kind in kinds(cfg):
    rope = cfg.local_rope if kind == "local" else cfg.rope
    turning, amplitude = frequencies(rope, cfg.head_dim)
    if kind == "none":
      turning, amplitude = 0 * turning, 1.0
    angles = positions[..., None] * jnp.asarray(turning, jnp.float32)
    cosines.append(amplitude * jnp.cos(angles))
    sines.append(amplitude * jnp.sin(angles))
  return jnp.stack(cosines), jnp.stack(sines)


def kinds(cfg: ModelConfig) -> tuple[str, ...]:
  """The kinds of positions that layers have, each once, in order."""
  return tuple(dict.fromkeys(cfg.rotary)) or ("global",)


def apply(x: Array, pair: tuple[Array, Array]) -> Array:
  """Rotates each head's first half against its second half.

  Args:
    x: [b, x, heads, h].
    pair: cosines and sines fp32[b, x, w/2]; of h only the first w numbers are
      rotated.

  Returns:
    Like `x`; computed in fp32.
  """
  cos, sin = (table[:, :, None, :] for table in pair)
  half = cos.shape[-1]
  first, second, rest = jnp.split(x, [half, 2 * half], axis=-1)
  first, second = first.astype(jnp.float32), second.astype(jnp.float32)
  rotated = jnp.concatenate(
      [first * cos - second * sin, second * cos + first * sin], axis=-1
  ).astype(x.dtype)
  return jnp.concatenate([rotated, rest], axis=-1) if rest.size else rotated

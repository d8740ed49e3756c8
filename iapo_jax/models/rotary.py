"""Rotary position embeddings (arXiv 2104.09864), also for longer contexts.

Frequencies are computed before tracing, in NumPy float64, and rounded once.
"""

import math

import jax.numpy as jnp
import numpy as np

from iapo_jax.config.model import LONGROPE, ModelConfig, RopeConfig
from iapo_jax.core.types import Array


def frequencies(
    rope: RopeConfig, head_dim: int, factors: str = "auto"
) -> tuple[np.ndarray, float]:
  """Returns radians per position float64[w/2] and the tables' amplitude.

  Pair i turns by theta^(−2i/w), w = fraction · h, before the kind's scaling.
  `factors` is `ModelConfig.rope_factors`; longrope needs it resolved.
  """
  width = int(head_dim * rope.fraction)
  plain = rope.theta ** (-np.arange(0, width, 2) / width)
  if rope.kind == "default":
    return plain, 1.0
  if rope.kind == "linear":
    return plain / rope.factor, 1.0
  if rope.kind == LONGROPE:
    return plain / _longrope_factors(rope, factors), _longrope_amplitude(rope)
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
  """Returns the share of its frequency that each pair keeps, not yet clipped.

  As in YaRN (arXiv 2309.00071), the share falls linearly with the index of the
  pair: from 1 at `beta_fast` turns within the original length to 0 at
  `beta_slow` turns. Both indices are rounded outwards.
  """

  def pair_of(turns: float) -> float:
    wavelength = rope.original_positions / (turns * 2 * math.pi)
    return width * math.log(wavelength) / (2 * math.log(rope.theta))

  first = max(math.floor(pair_of(rope.beta_fast)), 0)
  last = min(math.ceil(pair_of(rope.beta_slow)), width - 1)
  span = last - first or 1e-3
  return 1 - (np.arange(width // 2) - first) / span


def _longrope_factors(rope: RopeConfig, factors: str) -> np.ndarray:
  """Returns the factors of longrope (arXiv 2402.13753), float64[w/2]."""
  if factors == "auto":
    raise ValueError("rope_factors = 'auto': needs config.model.for_length")
  chosen = rope.short_factors if factors == "short" else rope.long_factors
  return np.array(chosen, np.float64)


def _longrope_amplitude(rope: RopeConfig) -> float:
  """Returns the amplitude, which short and long factors share."""
  if rope.amplitude:
    return rope.amplitude
  longer = math.log(rope.factor) / math.log(rope.original_positions)
  return math.sqrt(1 + longer)


def tables(positions: Array, cfg: ModelConfig) -> tuple[Array, Array]:
  """Returns cosines and sines fp32[e, b, x, w/2] of positions int32[b, x].

  e counts the entries of `kinds`. A layer without positions has angle 0:
  cosine 1 and sine 0 change nothing.
  """
  cosines, sines = [], []
  for kind in kinds(cfg):
    rope = cfg.local_rope if kind == "local" else cfg.rope
    turning, amplitude = frequencies(rope, cfg.head_dim, cfg.rope_factors)
    if kind == "none":
      turning, amplitude = 0 * turning, 1.0
    angles = positions[..., None] * jnp.asarray(turning, jnp.float32)
    cosines.append(amplitude * jnp.cos(angles))
    sines.append(amplitude * jnp.sin(angles))
  return jnp.stack(cosines), jnp.stack(sines)


def kinds(cfg: ModelConfig) -> tuple[str, ...]:
  """Returns the kinds of positions that layers have, each once, in order."""
  return tuple(dict.fromkeys(cfg.rotary)) or ("global",)


def apply(x: Array, pair: tuple[Array, Array]) -> Array:
  """Rotates each head's first half against its second half, in fp32.

  Args:
    x: [b, x, heads, h], of which the first w of h numbers rotate.
    pair: cosines and sines fp32[b, x, w/2].
  """
  cos, sin = (table[:, :, None, :] for table in pair)
  half = cos.shape[-1]
  first, second, rest = jnp.split(x, [half, 2 * half], axis=-1)
  first, second = first.astype(jnp.float32), second.astype(jnp.float32)
  rotated = jnp.concatenate(
      [first * cos - second * sin, second * cos + first * sin], axis=-1
  ).astype(x.dtype)
  return jnp.concatenate([rotated, rest], axis=-1) if rest.size else rotated

"""A decoder whose one primitive is `extend`.

The same weights encode a prompt, decode a token, probe "answer now" and score
a completion. These differ only in what the new tokens may attend to, so there
is one function: new tokens, their positions, and the key/value segments before
them. Parameters are a plain pytree; keys and values are results; nothing is
mutated.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from iapo_jax import sharding
from iapo_jax.config import ModelConfig
from iapo_jax.models import attention
from iapo_jax.types import Array, Context, KVSegment, Params


def _weight(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    fan_in: int,
) -> Array:
  """Declares a matmul weight once: shape, logical axes and initial spread."""
  init = nn.initializers.truncated_normal(stddev=fan_in**-0.5)
  return module.param(
      name, nn.with_logical_partitioning(init, axes), shape, jnp.float32
  )


class RMSNorm(nn.Module):
  """x / rms(x) · scale over the last axis, in fp32."""

  eps: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises [..., w]."""
    scale = self.param(
        "scale",
        nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
        (x.shape[-1],),
        jnp.float32,
    )
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + self.eps)
    return (wide * inverse * scale).astype(x.dtype)


class Attention(nn.Module):
  """Grouped-query attention of the new tokens over context and themselves."""

  cfg: ModelConfig

  @nn.compact
  def __call__(
      self,
      x: Array,
      rotary: tuple[Array, Array],
      context: tuple[tuple[Array, Array], ...],
      masks: tuple[Array, ...],
  ) -> tuple[Array, tuple[Array, Array]]:
    """Attends.

    Args:
      x: [b, x, d].
      rotary: tables of the new tokens.
      context: (keys, values) [r, s, k, h] of each segment, of this layer.
      masks: bool[m, 1, s] of each segment, and bool[1, x, x] of the new
        tokens among themselves.

    Returns:
      [b, x, d], and the new keys and values [b, x, k, h].
    """
    c = self.cfg
    queries = self._project("q", x, "heads", c.num_heads)
    keys = self._project("k", x, "kv_heads", c.num_kv_heads)
    values = self._project("v", x, "kv_heads", c.num_kv_heads)
    if c.qk_norm:
      queries = RMSNorm(c.norm_eps, name="q_norm")(queries)
      keys = RMSNorm(c.norm_eps, name="k_norm")(keys)
    queries = attention.apply_rotary(queries, rotary)
    keys = attention.apply_rotary(keys, rotary)
    segments = [
        (*pair, mask)
        for pair, mask in zip((*context, (keys, values)), masks, strict=True)
    ]
    mixed = attention.attend(queries, segments)
    out = _weight(
        self,
        "o_kernel",
        (c.num_heads, c.head_dim, c.d_model),
        ("heads", "head_dim", "embed"),
        c.num_heads * c.head_dim,
    )
    return jnp.einsum("bxnh,nhd->bxd", mixed, out.astype(x.dtype)), (
        keys,
        values,
    )

  def _project(self, name: str, x: Array, axis: str, heads: int) -> Array:
    """[b, x, d] -> [b, x, heads, h]."""
    c = self.cfg
    kernel = _weight(
        self,
        f"{name}_kernel",
        (c.d_model, heads, c.head_dim),
        ("embed", axis, "head_dim"),
        c.d_model,
    )
    y = jnp.einsum("bxd,dnh->bxnh", x, kernel.astype(x.dtype))
    if c.qkv_bias:
      bias = self.param(
          f"{name}_bias",
          nn.with_logical_partitioning(
              nn.initializers.zeros, (axis, "head_dim")
          ),
          (heads, c.head_dim),
          jnp.float32,
      )
      y += bias.astype(x.dtype)
    return sharding.constrain(y, "batch", "length", axis, "head_dim")


class MLP(nn.Module):
  """SwiGLU (arXiv 2002.05202)."""

  cfg: ModelConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[b, x, d] -> [b, x, d]."""
    c = self.cfg
    shape, axes = (c.d_model, c.mlp_dim), ("embed", "mlp")
    gate = _weight(self, "gate_kernel", shape, axes, c.d_model)
    up = _weight(self, "up_kernel", shape, axes, c.d_model)
    down = _weight(
        self, "down_kernel", shape[::-1], axes[::-1], c.mlp_dim
    )
    hidden = nn.silu(jnp.einsum("bxd,df->bxf", x, gate.astype(x.dtype)))
    hidden *= jnp.einsum("bxd,df->bxf", x, up.astype(x.dtype))
    hidden = sharding.constrain(hidden, "batch", "length", "mlp")
    return jnp.einsum("bxf,fd->bxd", hidden, down.astype(x.dtype))


class Block(nn.Module):
  """One pre-norm layer; the body of the scan over layers."""

  cfg: ModelConfig

  @nn.compact
  def __call__(
      self,
      x: Array,
      rotary: tuple[Array, Array],
      context: tuple[tuple[Array, Array], ...],
      masks: tuple[Array, ...],
  ) -> tuple[Array, tuple[Array, Array]]:
    """Arguments and results as of `Attention`."""
    c = self.cfg
    mixed, new = Attention(c, name="attention")(
        RMSNorm(c.norm_eps, name="attention_norm")(x), rotary, context, masks
    )
    x = x + mixed
    x = x + MLP(c, name="mlp")(RMSNorm(c.norm_eps, name="mlp_norm")(x))
    return sharding.constrain(x, "batch", "length", "width"), new


class Decoder(nn.Module):
  """Embedding, scanned layers, final norm; the head is in `models.head`."""

  cfg: ModelConfig

  @nn.compact
  def __call__(
      self, tokens: Array, positions: Array, context: Context
  ) -> tuple[Array, tuple[Array, Array]]:
    """Arguments and results as of `extend`."""
    c = self.cfg
    table_shape, axes = (c.vocab_size, c.d_model), ("vocab", "embed")
    embedding = _weight(self, "embedding", table_shape, axes, c.d_model)
    if not c.tie_embeddings:
      _weight(self, "head", table_shape, axes, c.d_model)
    # Whole along FSDP like any weight in use, so that the look-up needs no
    # rearranging of activations.
    table = sharding.constrain(embedding.astype(c.dtype), "vocab", "width")
    x = table[tokens]
    x = sharding.constrain(x, "batch", "length", "width")
    rotary = attention.rotary_tables(positions, c.head_dim, c.rope_theta)
    causal = jnp.tri(tokens.shape[1], dtype=bool)[None]
    masks = (*(segment.visible[:, None] for segment in context), causal)
    block = nn.remat(Block, prevent_cse=False) if c.remat else Block
    layers = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, 0, nn.broadcast),
        length=c.num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    pairs = tuple((segment.keys, segment.values) for segment in context)
    x, new = layers(c, name="layers")(x, rotary, pairs, masks)
    return RMSNorm(c.norm_eps, name="final_norm")(x), new


def init(key: Array, cfg: ModelConfig) -> Params:
  """Fresh fp32 weights, boxed with their logical axes.

  Args:
    key: a PRNG key.
    cfg: the decoder.

  Returns:
    The parameters; `flax.linen.unbox` gives the plain tree.
  """
  tokens = jnp.zeros((1, 1), jnp.int32)
  return Decoder(cfg).init(key, tokens, tokens, ())["params"]


@functools.partial(jax.named_call, name="extend")
def extend(
    params: Params,
    tokens: Array,
    positions: Array,
    context: Context = (),
    *,
    cfg: ModelConfig,
) -> tuple[Array, KVSegment]:
  """Runs new tokens after a context.

  A new token sees the context's visible slots and, of the new tokens of its
  row, itself and those before it. Rotary positions are the caller's, so that
  padding and slot order never matter.

  Args:
    params: the decoder's plain weights.
    tokens: int32[b, x].
    positions: int32[b, x], 0 for the first token of a sequence.
    context: the segments before, each of r rows with r dividing b.
    cfg: the decoder.

  Returns:
    The final hidden states [b, x, d] in the compute dtype, and the new tokens'
    keys and values as a segment of b rows in which every slot is visible.
  """
  with attention.matmul_precision(cfg.dtype):
    hidden, (keys, values) = Decoder(cfg).apply(
        {"params": params}, tokens, positions, context
    )
  visible = jnp.ones((1, tokens.shape[1]), bool)
  return hidden, KVSegment(keys, values, visible)

"""A decoder whose one primitive is `extend`.

Encoding a prompt, decoding a token, probing "answer now" and scoring a
completion differ only in the tokens that new tokens may attend to. So there is
one function of new tokens, their positions and the key/value segments before
them. Parameters are a plain pytree; keys and values are results; nothing is
mutated.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from iapo_jax.config.model import ModelConfig
from iapo_jax.core import sharding
from iapo_jax.core.types import Array, Context, KVSegment, Params
from iapo_jax.models import attention, dense, fused_attention, rotary


def _weight(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    fan_in: int,
) -> Array:
  """Declares a matmul weight: shape, logical axes and initial spread."""
  init = nn.initializers.truncated_normal(stddev=fan_in**-0.5)
  return module.param(
      name, nn.with_logical_partitioning(init, axes), shape, jnp.float32
  )


def _product(
    module: nn.Module,
    name: str,
    x: Array,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    inputs: int = 1,
) -> Array:
  """Multiplies x by a kernel: its first `inputs` axes are the last of x."""
  fan_in = math.prod(shape[:inputs])
  kernel = _weight(module, f"{name}_kernel", shape, axes, fan_in)
  return dense.product(x, kernel, inputs)


def _biased(module: nn.Module, name: str, x: Array, *axes: str) -> Array:
  """Adds a bias, initially zero, over the last axes of x."""
  init = nn.with_logical_partitioning(nn.initializers.zeros, axes)
  shape = x.shape[-len(axes) :]
  bias = module.param(f"{name}_bias", init, shape, jnp.float32)
  return dense.biased(x, bias)


def _kept(module: nn.Module, name: str) -> Array | None:
  """Returns a kernel that `for_decoding` joined, or None."""
  known = module.has_variable("params", name)
  return module.get_variable("params", name) if known else None


class RMSNorm(nn.Module):
  """The norm x / rms(x) · scale over the last axis, in fp32.

  With a unit offset the factor is 1 + scale (Gemma).
  """

  cfg: ModelConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises [..., w]."""
    offset = self.cfg.norm_unit_offset
    start = nn.initializers.zeros if offset else nn.initializers.ones
    scale = self.param(
        "scale",
        nn.with_logical_partitioning(start, ("norm",)),
        (x.shape[-1],),
        jnp.float32,
    )
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide**2, -1, keepdims=True)
    inverse = jax.lax.rsqrt(mean_square + self.cfg.norm_eps)
    return (wide * inverse * (1 + scale if offset else scale)).astype(x.dtype)


@struct.dataclass
class _Layer:
  """Differences between layers besides their weights.

  Attributes:
    window: int32[l], tokens seen, 0 for all; None if no layer has a window.
    rotary: int32[l], index of the rotary table; None if all share one.
  """

  window: Array | None
  rotary: Array | None


@struct.dataclass
class _Shared:
  """Inputs that all layers share; the last segment is the new tokens.

  Attributes:
    tables: cosines and sines, fp32[e, b, x, w/2].
    positions: int32[b, x], of the new tokens.
    slots: int32[r, s], positions of each segment's slots.
    masks: of each segment, windows left out.
    rows: `KVSegment.rows` of each segment but the last.
  """

  tables: tuple[Array, Array]
  positions: Array
  slots: tuple[Array, ...]
  masks: tuple[attention.Mask, ...]
  rows: tuple[Array | None, ...]


class Attention(nn.Module):
  """Grouped-query attention of new tokens over context and themselves."""

  cfg: ModelConfig

  @nn.compact
  def __call__(
      self,
      x: Array,
      layer: _Layer,
      context: tuple[tuple[Array, Array], ...],
      shared: _Shared,
  ) -> tuple[Array, tuple[Array, Array]]:
    """Attends from [b, x, d].

    `context` has keys [r, k, h, s] and values [r, k, s, h] of each segment in
    this layer.

    Returns:
      [b, x, d], and the new keys [b, k, h, x] and values [b, k, x, h].
    """
    c = self.cfg
    queries, keys, values = self._project(x)
    if c.qk_norm != "none":
      queries = self._normalise("q", queries)
      keys = self._normalise("k", keys)
    kind = layer.rotary if c.rotary else 0
    table = tuple(entry[kind] for entry in shared.tables)
    queries, keys = rotary.apply(queries, table), rotary.apply(keys, table)
    masks = shared.masks
    if c.windows:
      masks = [
          mask.replace(
              window=layer.window, queries=shared.positions, slots=slots
          )
          for mask, slots in zip(masks, shared.slots, strict=True)
      ]
    keys, values = keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)
    before = [
        tuple(_read(x, rows) for x in pair)
        for pair, rows in zip(context, shared.rows, strict=True)
    ]
    pairs = (*before, (keys, values))
    mixed = _attend_of(c, queries)(
        queries,
        [(*pair, mask) for pair, mask in zip(pairs, masks, strict=True)],
        scale=(c.query_scalar or c.head_dim) ** -0.5,
        cap=c.score_cap,
    )
    return self._output(mixed), (keys, values)

  def _project(self, x: Array) -> list[Array]:
    """Maps [b, x, d] to queries [b, x, n, h], keys and values [b, x, k, h]."""
    c = self.cfg
    heads = {
        "q": (c.num_heads, "heads"),
        "k": (c.num_kv_heads, "kv_heads"),
        "v": (c.num_kv_heads, "kv_heads"),
    }
    joint = _kept(self, "qkv_kernel")
    if joint is None:
      products = [
          _product(
              self,
              name,
              x,
              (c.d_model, count, c.head_dim),
              ("embed", axis, "head_dim"),
          )
          for name, (count, axis) in heads.items()
      ]
    else:
      shared = c.num_heads // c.num_kv_heads
      all_heads = dense.product(x, joint)
      products = jnp.split(all_heads, [shared, shared + 1], axis=3)
    found = []
    for (name, (count, axis)), y in zip(heads.items(), products, strict=True):
      y = y.reshape(*x.shape[:2], count, c.head_dim)
      if c.qkv_bias:
        y = _biased(self, name, y, axis, "head_dim")
      found.append(sharding.constrain(y, "batch", "length", axis, "head_dim"))
    return found

  def _normalise(self, name: str, x: Array) -> Array:
    """Normalises [b, x, heads, h], each head alone or all as one vector."""
    norm = RMSNorm(self.cfg, name=f"{name}_norm")
    if self.cfg.qk_norm == "head":
      return norm(x)
    return norm(x.reshape(*x.shape[:2], -1)).reshape(x.shape)

  def _output(self, mixed: Array) -> Array:
    """Maps [b, x, n, h] to [b, x, d]."""
    c = self.cfg
    y = _product(
        self,
        "o",
        mixed,
        (c.num_heads, c.head_dim, c.d_model),
        ("heads", "head_dim", "embed"),
        inputs=2,
    )
    return _biased(self, "o", y, "width") if c.output_bias else y


def _read(x: Array, rows: Array | None) -> Array:
  """Returns x [r, ...], or its `rows` if they are not None."""
  return x if rows is None else sharding.take_rows(x, rows)


def _attend_of(cfg: ModelConfig, queries: Array) -> Callable[..., Array]:
  """Returns the attention function; one query per row needs no kernel."""
  fused = fused_attention.chosen(cfg.attention, sharding.platform())
  if fused and queries.shape[1] > 1:
    return fused_attention.attend
  return attention.attend


class MLP(nn.Module):
  """A gated MLP (arXiv 2002.05202)."""

  cfg: ModelConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [b, x, d] to [b, x, d]."""
    c = self.cfg
    activation = {
        "silu": nn.silu,
        "gelu": functools.partial(nn.gelu, approximate=False),
        "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    }[c.activation]
    joint = _kept(self, "gate_up_kernel")
    if joint is None:
      shape, axes = (c.d_model, c.mlp_dim), ("embed", "mlp")
      gate = _product(self, "gate", x, shape, axes)
      up = _product(self, "up", x, shape, axes)
    else:
      gate, up = jnp.unstack(dense.product(x, joint), axis=-2)
    if c.mlp_bias:
      gate = _biased(self, "gate", gate, "mlp")
      up = _biased(self, "up", up, "mlp")
    hidden = activation(gate) * up
    hidden = sharding.constrain(hidden, "batch", "length", "mlp")
    shape, axes = (c.mlp_dim, c.d_model), ("mlp", "embed")
    y = _product(self, "down", hidden, shape, axes)
    # FSDP splits neither activations of width d nor their bias.
    return _biased(self, "down", y, "width") if c.mlp_bias else y


class Block(nn.Module):
  """One layer, two residual branches; the body of the scan over layers."""

  cfg: ModelConfig

  @nn.compact
  def __call__(
      self,
      x: Array,
      layer: _Layer,
      context: tuple[tuple[Array, Array], ...],
      shared: _Shared,
  ) -> tuple[Array, tuple[Array, Array]]:
    """Applies the layer; arguments and results are those of `Attention`."""
    c = self.cfg
    mixed, new = Attention(c, name="attention")(
        self._norm("attention_norm", x, unless="after"), layer, context, shared
    )
    x = x + self._norm("attention_post_norm", mixed, unless="before")
    mixed = MLP(c, name="mlp")(self._norm("mlp_norm", x, unless="after"))
    x = x + self._norm("mlp_post_norm", mixed, unless="before")
    return sharding.constrain(x, "batch", "length", "width"), new

  def _norm(self, name: str, x: Array, *, unless: str) -> Array:
    """Normalises x, unless `norm_position` is `unless`."""
    skip = self.cfg.norm_position == unless
    return x if skip else RMSNorm(self.cfg, name=name)(x)


def _rematerialised(cfg: ModelConfig) -> type[Block]:
  """Returns a layer that keeps few arrays for its backward pass.

  A scan copies the arrays that it keeps to and from stacks of all layers. For
  anything cheaper than a product with weights, recomputing costs less.
  """
  kept = () if cfg.remat else (*dense.KEPT, *attention.KEPT)
  policy = jax.checkpoint_policies.save_only_these_names(*kept)
  return nn.remat(Block, prevent_cse=False, policy=policy)


class Decoder(nn.Module):
  """Embedding, scanned layers and final norm; the head is in `models.head`."""

  cfg: ModelConfig

  @nn.compact
  def __call__(
      self, tokens: Array, positions: Array, context: Context
  ) -> tuple[Array, tuple[Array, Array]]:
    """Returns hidden states, and keys and values; see `extend`."""
    c = self.cfg
    x = self._embed(tokens)
    causal = attention.causal(tokens.shape[1])
    shared = _Shared(
        tables=rotary.tables(positions, c),
        positions=positions,
        slots=(
            *(_read(segment.positions, segment.rows) for segment in context),
            positions,
        ),
        masks=(
            *(
                attention.Mask(_read(segment.visible, segment.rows)[:, None])
                for segment in context
            ),
            causal,
        ),
        rows=tuple(segment.rows for segment in context),
    )
    layers = nn.scan(
        _rematerialised(c),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, 0, nn.broadcast),
        length=c.num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
        # No variable is broadcast, and the check traces the layer once more. It
        # also moves the keys of `init`, whose weights stay what they were.
        check_constancy_invariants=self.is_initializing(),
    )
    pairs = tuple((segment.keys, segment.values) for segment in context)
    x, new = layers(c, name="layers")(x, _layers(c), pairs, shared)
    return RMSNorm(c, name="final_norm")(x), new

  def _embed(self, tokens: Array) -> Array:
    """Maps int32[b, x] to [b, x, d]; also declares the head's table."""
    c = self.cfg
    table_shape, axes = (c.vocab_size, c.d_model), ("vocab", "embed")
    embedding = _weight(self, "embedding", table_shape, axes, c.d_model)
    if not c.tie_embeddings:
      _weight(self, "head", table_shape, axes, c.d_model)
    x = dense.look_up(embedding, tokens, c.dtype)
    if c.scale_embeddings:
      x *= jnp.asarray(c.d_model**0.5, x.dtype)
    return sharding.constrain(x, "batch", "length", "width")


def _layers(cfg: ModelConfig) -> _Layer:
  """Returns the differences between layers as arrays to scan over."""
  kinds = rotary.kinds(cfg)
  tables = [kinds.index(kind) for kind in cfg.rotary]
  return _Layer(
      window=jnp.asarray(cfg.windows, jnp.int32) if cfg.windows else None,
      rotary=jnp.asarray(tables, jnp.int32) if tables else None,
  )


def init(key: Array, cfg: ModelConfig) -> Params:
  """Initialises fp32 weights, boxed with their logical axes.

  `flax.linen.unbox` gives the plain tree.
  """
  tokens = jnp.zeros((1, 1), jnp.int32)
  return Decoder(cfg).init(key, tokens, tokens, ())["params"]


def for_decoding(params: Params) -> Params:
  """Joins kernels that read the same activations, for fewer products per token.

  Only `extend` and the head accept the result.
  """
  layers = dict(params["layers"])
  mixer, mlp = dict(layers["attention"]), dict(layers["mlp"])
  # [..., d, n, h], [..., d, k, h] twice -> [..., d, k, n / k + 2, h]
  *rest, heads, width = mixer["k_kernel"].shape
  mixer["qkv_kernel"] = jnp.concatenate(
      [
          mixer.pop(f"{name}_kernel").reshape(*rest, heads, -1, width)
          for name in "qkv"
      ],
      axis=-2,
  )
  mlp["gate_up_kernel"] = jnp.stack(
      [mlp.pop("gate_kernel"), mlp.pop("up_kernel")], axis=-2
  )
  return params | {"layers": layers | {"attention": mixer, "mlp": mlp}}


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

  A new token sees the visible slots of the context, the new tokens before it in
  its row, and itself. A layer with a window restricts these to positions inside
  it. The caller passes positions, so padding and slot order do not matter.

  Args:
    params: the decoder's plain weights.
    tokens: int32[b, x].
    positions: int32[b, x], 0 for the first token of a sequence.
    context: the segments before, each of r rows with r dividing b.
    cfg: the decoder.

  Returns:
    The final hidden states [b, x, d] in the compute dtype, and the new tokens'
    keys and values as a segment of b rows, every slot visible.
  """
  with attention.matmul_precision(cfg.dtype):
    hidden, (keys, values) = Decoder(cfg).apply(
        {"params": params}, tokens, positions, context
    )
  visible = jnp.ones((1, tokens.shape[1]), bool)
  return hidden, KVSegment(keys, values, visible, positions)

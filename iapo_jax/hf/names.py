"""Maps Hugging Face tensors to our weights, as pure data.

A `Part` gives the axes of a Hugging Face tensor (`theirs`) and of our weight
(`ours`) in the shape letters of `types`. "nh d" to "d n h" splits the matrix
[n · h, d] into heads and puts the model width first.
"""

import dataclasses
import math

from iapo_jax.config.model import ModelConfig
from iapo_jax.hf.families import FAMILIES

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Part:
  """Rows of a tensor that hold one of our weights, or one layer of it.

  Attributes:
    path: the weight's path in our tree.
    theirs: axes of the tensor; letters of a joint axis stand together.
    ours: axes of our weight, without the axis of layers.
  """

  path: Path
  theirs: str
  ours: str

  @property
  def groups(self) -> list[list[str]]:
    """For each axis of the tensor, the axes of our weight that it joins."""
    ours = self.ours.split()
    return [
        [axis] if axis in ours else list(axis) for axis in self.theirs.split()
    ]


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A Hugging Face tensor.

  Attributes:
    name: the tensor's name, with {} for the number of the layer if each layer
      has such a tensor.
    parts: the parts, in the order of their rows.
  """

  name: str
  parts: tuple[Part, ...]

  @property
  def in_layers(self) -> bool:
    """Whether each layer has such a tensor."""
    return "{}" in self.name


def tensors(cfg: ModelConfig) -> tuple[Tensor, ...]:
  """Returns every tensor of a decoder's checkpoint; a tied head has none."""
  found = [_one("model.embed_tokens.weight", ("embedding",), "v d")]
  found += _norms(cfg) + _attention(cfg) + _mlp(cfg)
  found.append(_one("model.norm.weight", ("final_norm", "scale"), "d"))
  if not cfg.tie_embeddings:
    found.append(_one("lm_head.weight", ("head",), "v d"))
  return tuple(found)


def sizes(cfg: ModelConfig) -> dict[str, int]:
  """Returns the size of every shape letter."""
  return {
      "v": cfg.vocab_size,
      "d": cfg.d_model,
      "n": cfg.num_heads,
      "k": cfg.num_kv_heads,
      "h": cfg.head_dim,
      "f": cfg.mlp_dim,
  }


def shape(axes: str, letters: dict[str, int]) -> tuple[int, ...]:
  """Returns the shape of axes such as "nh d"."""
  return tuple(
      math.prod(letters[letter] for letter in axis) for axis in axes.split()
  )


def tensor_shape(tensor: Tensor, letters: dict[str, int]) -> tuple[int, ...]:
  """Returns the shape of a Hugging Face tensor."""
  parts = [shape(part.theirs, letters) for part in tensor.parts]
  return (sum(part[0] for part in parts), *parts[0][1:])


def _one(name: str, path: Path, axes: str) -> Tensor:
  return Tensor(name, (Part(path, axes, axes),))


def _in_layer(name: str, *parts: tuple[str, str, str]) -> Tensor:
  """Returns a tensor of every layer; paths of parts use slashes."""
  return Tensor(
      f"model.layers.{{}}.{name}",
      tuple(
          Part(("layers", *path.split("/")), theirs, ours)
          for path, theirs, ours in parts
      ),
  )


def _norms(cfg: ModelConfig) -> list[Tensor]:
  """Returns the norms around attention and MLP."""
  names = {
      "before": {
          "attention_norm": "input_layernorm",
          "mlp_norm": "post_attention_layernorm",
      },
      "after": {
          "attention_post_norm": "post_attention_layernorm",
          "mlp_post_norm": "post_feedforward_layernorm",
      },
      "both": {
          "attention_norm": "input_layernorm",
          "attention_post_norm": "post_attention_layernorm",
          "mlp_norm": "pre_feedforward_layernorm",
          "mlp_post_norm": "post_feedforward_layernorm",
      },
  }[cfg.norm_position]
  return [
      _in_layer(f"{theirs}.weight", (f"{ours}/scale", "d", "d"))
      for ours, theirs in names.items()
  ]


def _attention(cfg: ModelConfig) -> list[Tensor]:
  heads = {"q": "n", "k": "k", "v": "k"}
  weights = {
      name: (f"attention/{name}_kernel", f"{axis}h d", f"d {axis} h")
      for name, axis in heads.items()
  }
  if FAMILIES[cfg.family].fused:
    found = [_in_layer("self_attn.qkv_proj.weight", *weights.values())]
  else:
    found = [
        _in_layer(f"self_attn.{name}_proj.weight", part)
        for name, part in weights.items()
    ]
  found.append(
      _in_layer(
          "self_attn.o_proj.weight", ("attention/o_kernel", "d nh", "n h d")
      )
  )
  if cfg.qkv_bias:
    found += [
        _in_layer(
            f"self_attn.{name}_proj.bias",
            (f"attention/{name}_bias", f"{axis}h", f"{axis} h"),
        )
        for name, axis in heads.items()
    ]
  if cfg.output_bias:
    part = ("attention/o_bias", "d", "d")
    found.append(_in_layer("self_attn.o_proj.bias", part))
  widths = {"head": ("h", "h"), "projection": ("nh", "kh"), "none": ()}
  for name, axis in zip("qk", widths[cfg.qk_norm], strict=False):
    part = (f"attention/{name}_norm/scale", axis, axis)
    found.append(_in_layer(f"self_attn.{name}_norm.weight", part))
  return found


def _mlp(cfg: ModelConfig) -> list[Tensor]:
  wide = {
      name: (f"mlp/{name}_kernel", "f d", "d f") for name in ("gate", "up")
  }
  if FAMILIES[cfg.family].fused:
    found = [_in_layer("mlp.gate_up_proj.weight", *wide.values())]
  else:
    found = [
        _in_layer(f"mlp.{name}_proj.weight", part)
        for name, part in wide.items()
    ]
  down = ("mlp/down_kernel", "d f", "f d")
  found.append(_in_layer("mlp.down_proj.weight", down))
  if cfg.mlp_bias:
    found += [
        _in_layer(f"mlp.{name}_proj.bias", (f"mlp/{name}_bias", axis, axis))
        for name, axis in (("gate", "f"), ("up", "f"), ("down", "d"))
    ]
  return found

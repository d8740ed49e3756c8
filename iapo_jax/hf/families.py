"""Conversion between Hugging Face configurations and `ModelConfig`.

A family is data: the fields that it fixes, and Hugging Face's names of the
others. Below, `theirs` is Hugging Face's side and `ours` that of `ModelConfig`.
An unsupported setting raises an error that names it.
"""

# Evaluated annotations would make transformers import torch, if installed.
from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import transformers

from iapo_jax.config import model as model_config
from iapo_jax.config.model import ModelConfig, RopeConfig
from iapo_jax.core.errors import ConfigError

# Fields of every family: our name to Hugging Face's.
_COMMON = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "mlp_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "max_positions": "max_position_embeddings",
}
_ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
}
_ROPE = {
    "theta": "rope_theta",
    "fraction": "partial_rotary_factor",
    "factor": "factor",
    "original_positions": "original_max_position_embeddings",
    "low_freq": "low_freq_factor",
    "high_freq": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "amplitude": "attention_factor",
}
# The fields that each kind of rotary embedding uses.
_ROPE_ALL = ("theta", "fraction")
_ROPE_LONGER = (*_ROPE_ALL, "factor", "original_positions")
_ROPE_FIELDS = {
    "default": _ROPE_ALL,
    "linear": (*_ROPE_ALL, "factor"),
    "llama3": (*_ROPE_LONGER, "low_freq", "high_freq"),
    "yarn": (*_ROPE_LONGER, "beta_fast", "beta_slow", "amplitude"),
}
_ROPE_OPTIONAL = (
    "partial_rotary_factor", "attention_factor", "beta_fast", "beta_slow",
)  # fmt: skip
_ROPE_KIND = ("rope_type", "type")
_ROPE_IMPLIED = {"truncate": True}  # the only value we support
_ATTENTION_BIAS = {
    "qkv_bias": "attention_bias",
    "output_bias": "attention_bias",
}
_BIASES = _ATTENTION_BIAS | {"mlp_bias": "mlp_bias"}
_GEMMA = {
    "norm_position": "both",
    "norm_unit_offset": True,
    "scale_embeddings": True,
}
_GEMMA_FIELDS = _ATTENTION_BIAS | {
    "query_scalar": "query_pre_attn_scalar",
    "logit_cap": "final_logit_softcapping",
}


@dataclasses.dataclass(frozen=True)
class Family:
  """Properties of a `model_type`.

  Attributes:
    architecture: the class name in transformers, whose own table needs torch.
    fixed: values of our fields that the family fixes.
    fields: further fields, our name to Hugging Face's.
    windows: layers with the sliding window: `none`, `all`, or `listed` (those
      that `layer_types` lists).
    window_switch: whether windows also need `use_sliding_window`.
    activation: Hugging Face's name of the activation field.
    refused: unsupported fields, which must be unset.
    partial: whether rotary embeddings may rotate only a part of each head.
    fused: whether projections that read the same input are one tensor.
  """

  architecture: str
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
  windows: str = "none"
  window_switch: bool = False
  activation: str = "hidden_act"
  refused: tuple[str, ...] = ()
  partial: bool = False
  fused: bool = False

  @property
  def names(self) -> dict[str, str]:
    """All fields of the family, our name to Hugging Face's."""
    return _COMMON | dict(self.fields)


FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM", fields=_BIASES),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        fixed={"qkv_bias": True},
        windows="listed",
        window_switch=True,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        fixed={"qk_norm": "head"},
        fields=_ATTENTION_BIAS,
        windows="listed",
        window_switch=True,
    ),
    "mistral": Family(
        "MistralForCausalLM", windows="all", refused=("layer_types",)
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        fixed=_GEMMA,
        fields=_GEMMA_FIELDS | {"score_cap": "attn_logit_softcapping"},
        windows="listed",
        activation="hidden_activation",
        refused=("use_bidirectional_attention",),
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        fixed=_GEMMA | {"qk_norm": "head"},
        fields=_GEMMA_FIELDS,
        windows="listed",
        activation="hidden_activation",
        refused=("use_bidirectional_attention", "attn_logit_softcapping"),
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        fixed={"norm_position": "after", "qk_norm": "projection"},
        fields=_ATTENTION_BIAS,
    ),
    "phi3": Family("Phi3ForCausalLM", windows="all", partial=True, fused=True),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        fields=_BIASES,
        windows="listed",
        window_switch=True,
    ),
}
_NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
_CAPS = ("score_cap", "logit_cap")
_FULL, _SLIDING = "full_attention", "sliding_attention"


def model_of(theirs: transformers.PreTrainedConfig) -> ModelConfig:
  """Converts a configuration, as transformers reads it, to a decoder.

  Fields of `model_config.OF_RUN` keep their defaults. Raises `ConfigError` for
  unsupported settings.
  """
  name = theirs.model_type
  family = family_of(name, "config.json model_type")
  for field in (*family.refused, "quantization_config"):
    value = getattr(theirs, field, None)
    if value:
      _refuse(field, value, f"is not supported (model_type {name})")
  values = {
      ours: getattr(theirs, field) for ours, field in family.names.items()
  }
  values |= {cap: float(values[cap] or 0) for cap in _CAPS if cap in values}
  if "query_scalar" in values:
    values["query_scalar"] = float(values["query_scalar"])
  heads = theirs.num_attention_heads
  if type(heads) is not int or heads < 1:
    _refuse("num_attention_heads", heads, "must be an integer of at least 1")
  width = getattr(theirs, "head_dim", None) or theirs.hidden_size // heads
  positions = _positions(theirs, family)
  values["max_positions"] = max(
      values["max_positions"] or 0, _extended(positions["rope"])
  )
  return ModelConfig(
      family=name,
      head_dim=width,
      activation=_activation(getattr(theirs, family.activation), family),
      windows=_windows(theirs, family),
      **positions,
      **family.fixed,
      **values,
  )


def family_of(name: Any, field: str) -> Family:
  """Returns the family `name`, or raises `ConfigError` that names `field`."""
  if not isinstance(name, str) or name not in FAMILIES:
    raise ConfigError(
        f"{field} = {name!r}: must be one of {', '.join(FAMILIES)}"
    )
  return FAMILIES[name]


def _refuse(field: str, value: Any, rule: str) -> NoReturn:
  raise ConfigError(f"config.json {field} = {value!r}: {rule}")


def _activation(name: str, family: Family) -> str:
  known = {theirs: ours for ours, theirs in _ACTIVATIONS.items()}
  if name not in known:
    _refuse(family.activation, name, f"must be one of {', '.join(known)}")
  return known[name]


def _windows(
    theirs: transformers.PreTrainedConfig, family: Family
) -> tuple[int, ...]:
  """Returns the window of each layer, or () if none has one."""
  count, window = theirs.num_hidden_layers, None
  if family.windows != "none":
    window = theirs.sliding_window
  types = [_SLIDING if window else _FULL] * count
  if family.windows == "listed":
    types = theirs.layer_types
  for kind in types:
    if kind not in (_FULL, _SLIDING):
      _refuse("layer_types", kind, f"must be {_FULL} or {_SLIDING}")
  if len(types) != count:
    rule = f"must have num_hidden_layers = {count} entries"
    _refuse("layer_types", types, rule)
  if family.window_switch and not theirs.use_sliding_window:
    window = None
  if _SLIDING not in types:
    return ()
  if not window:
    rule = "lists sliding layers, but sliding_window is not set or not used"
    _refuse("layer_types", types, rule)
  return tuple(window if kind == _SLIDING else 0 for kind in types)


def _positions(
    theirs: transformers.PreTrainedConfig, family: Family
) -> dict[str, Any]:
  """Returns the fields `rope`, `local_rope` and `rotary`."""
  name, found = theirs.model_type, theirs.rope_parameters
  if name == "gemma3_text":
    return {
        "rope": _rope(found[_FULL], family),
        "local_rope": _rope(found[_SLIDING], family),
        "rotary": tuple(
            "local" if kind == _SLIDING else "global"
            for kind in theirs.layer_types
        ),
    }
  rotary: tuple[str, ...] = ()
  if name == "smollm3" and not all(theirs.no_rope_layers):
    listed = theirs.no_rope_layers  # 1 for a layer with positions, else 0
    rotary = tuple("global" if has else "none" for has in listed)
  return {"rope": _rope(found, family), "rotary": rotary}


def _extended(rope: RopeConfig) -> int:
  """Returns the length that an extended embedding was made for, in tokens.

  Most published instructions for YaRN leave `max_position_embeddings` at the
  original length. 0 where the original length is not known: then that field
  has the last word.
  """
  return int(rope.factor * rope.original_positions)


def _rope(found: Mapping[str, Any], family: Family) -> RopeConfig:
  kind = found.get("rope_type", "default")
  if not isinstance(kind, str) or kind not in _ROPE_FIELDS:
    rule = f"must be one of {', '.join(_ROPE_FIELDS)}"
    _refuse("rope_parameters rope_type", kind, rule)
  used = {_ROPE[ours]: ours for ours in _ROPE_FIELDS[kind]}
  values = {}
  for name, value in found.items():
    if name in used:
      if value is None and name in _ROPE_OPTIONAL:
        continue
      if type(value) not in (int, float) or not 0 < value < math.inf:
        _refuse(f"rope_parameters {name}", value, "must be a positive number")
      whole = used[name] == "original_positions"
      values[used[name]] = int(value) if whole else float(value)
    elif name not in _ROPE_KIND and value not in (
        None, _ROPE_IMPLIED.get(name)
    ):
      rule = f"is not supported with rope_type {kind}"
      _refuse(f"rope_parameters {name}", value, rule)
  if values.get("fraction", 1.0) != 1.0 and not family.partial:
    rule = "must be 1 for this model_type"
    _refuse("partial_rotary_factor", values["fraction"], rule)
  return RopeConfig(kind=kind, **values)


def config_of(
    model: ModelConfig, **extra: Any
) -> transformers.PreTrainedConfig:
  """Converts a decoder to the Hugging Face configuration of its family.

  `extra` gives further fields, such as token ids. Raises `ConfigError` if
  `model_of` would not give the same decoder again.
  """
  theirs = _written(model, extra)
  ours = _bare(model)
  if field := model_config.difference(ours, _bare(model_of(theirs))):
    able = [name for name in FAMILIES if _can_hold(model, name)]
    hint = f"; use {' or '.join(able)}" if able else ""
    raise ConfigError(
        f"config.model.family = {model.family!r}: has no models with {field} ="
        f" {getattr(ours, field)!r}{hint}"
    )
  return theirs


def _can_hold(model: ModelConfig, family: str) -> bool:
  model = dataclasses.replace(model, family=family)
  try:
    return _bare(model_of(_written(model, {}))) == _bare(model)
  except ConfigError:
    return False


def _bare(model: ModelConfig) -> ModelConfig:
  """Resets the fields that no checkpoint stores or the decoder does not use."""
  default = ModelConfig()
  rope, local = map(_used, (model.rope, model.local_rope))
  return dataclasses.replace(
      model,
      **{field: getattr(default, field) for field in model_config.OF_RUN},
      query_scalar=model.query_scalar or float(model.head_dim),
      rope=rope,
      local_rope=local if "local" in model.rotary else RopeConfig(),
      rotary=model.rotary if set(model.rotary) - {"global"} else (),
      windows=model.windows if any(model.windows) else (),
      max_positions=default.max_positions,
  )


def _used(rope: RopeConfig) -> RopeConfig:
  """Resets the fields that the kind of embedding does not use."""
  names = ("kind", *_ROPE_FIELDS[rope.kind])
  return RopeConfig(**{name: getattr(rope, name) for name in names})


def _written(
    model: ModelConfig, extra: Mapping[str, Any]
) -> transformers.PreTrainedConfig:
  """Writes as much of a decoder as the configuration of its family can hold."""
  family = family_of(model.family, "config.model.family")
  ours = {field: getattr(model, field) for field in family.names}
  ours |= {cap: ours[cap] or None for cap in _CAPS if cap in ours}
  if "query_scalar" in ours:
    scalar = model.query_scalar or model.head_dim
    ours["query_scalar"] = int(scalar) if scalar == int(scalar) else scalar
  values = {family.names[field]: value for field, value in ours.items()}
  if not model.max_positions:
    del values["max_position_embeddings"]
  values[family.activation] = _ACTIVATIONS[model.activation]
  values |= _written_windows(model, family) | _written_positions(model)
  config_class = transformers.CONFIG_MAPPING[model.family]
  has_width = hasattr(config_class(), "head_dim")
  if has_width or model.head_dim * model.num_heads != model.d_model:
    values["head_dim"] = model.head_dim
  try:
    return config_class(**values | _NO_TOKENS | dict(extra))
  except Exception as error:  # its validation raises many kinds
    text = " ".join(str(error).split())
    raise ConfigError(f"config.model.family = {model.family!r}: {text}") from (
        error
    )


def _written_windows(model: ModelConfig, family: Family) -> dict[str, Any]:
  if family.windows == "none":
    return {}
  window = max(model.windows, default=0) or None
  values: dict[str, Any] = {"sliding_window": window}
  if family.windows == "listed":
    values["layer_types"] = [
        _SLIDING if size else _FULL
        for size in model.windows or (0,) * model.num_layers
    ]
  if family.window_switch:
    values["use_sliding_window"] = window is not None
  return values


def _written_positions(model: ModelConfig) -> dict[str, Any]:
  rope = _written_rope(model.rope)
  if model.family == "gemma3_text":
    local = _written_rope(model.local_rope)
    return {"rope_parameters": {_FULL: rope, _SLIDING: local}}
  values: dict[str, Any] = {"rope_parameters": rope}
  if model.family == "smollm3":
    rotary = model.rotary or ("global",) * model.num_layers
    values["no_rope_layers"] = [int(kind != "none") for kind in rotary]
  return values


def older_positions(model: ModelConfig) -> dict[str, Any]:
  """Returns rotary embeddings in the fields of transformers before version 5.

  A decoder that these versions do not have gives fields that they refuse.
  """
  scaling = _written_rope(model.rope)
  values: dict[str, Any] = {
      name: scaling.pop(name)
      for name in ("rope_theta", "partial_rotary_factor")
      if name in scaling
  }
  if model.family == "olmo2":
    scaling["type"] = scaling.pop("rope_type")  # all that it reads
  values["rope_scaling"] = None if model.rope.kind == "default" else scaling
  if model.family == "gemma3_text":
    local = model.local_rope
    plain = local.kind == "default"
    values["rope_local_base_freq"] = local.theta if plain else None
  return values


def _written_rope(rope: RopeConfig) -> dict[str, Any]:
  values = {
      _ROPE[ours]: getattr(rope, ours) for ours in _ROPE_FIELDS[rope.kind]
  }
  if rope.kind == "yarn" and not rope.amplitude:
    values["attention_factor"] = None
  if rope.fraction == 1:
    del values["partial_rotary_factor"]
  return {"rope_type": rope.kind, **values}

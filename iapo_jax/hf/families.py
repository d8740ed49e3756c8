"""Conversion between Hugging Face configurations and `ModelConfig`.

A family is data: the fields that it fixes, and Hugging Face's names of the
others. Below, `theirs` is Hugging Face's side and `ours` that of `ModelConfig`.
An unsupported setting raises an error that names it.
"""

# Evaluated annotations would make transformers import torch, if installed.
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import transformers

from iapo_jax.config import model as model_config
from iapo_jax.config.model import LONGROPE, ModelConfig, RopeConfig
from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import positions
from iapo_jax.hf.positions import FULL, SLIDING, Positions
from iapo_jax.hf.refusals import refuse, refuse_type

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
_OLMO = {"norm_position": "after", "qk_norm": "projection"}


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
    positions: rotary embeddings.
    fused: whether projections that read the same input are one tensor.
  """

  architecture: str
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
  windows: str = "none"
  window_switch: bool = False
  activation: str = "hidden_act"
  refused: tuple[str, ...] = ()
  positions: Positions = dataclasses.field(default_factory=Positions)
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
        positions=Positions(layers="by_type"),
    ),
    "olmo2": Family("Olmo2ForCausalLM", fixed=_OLMO, fields=_ATTENTION_BIAS),
    "olmo3": Family(
        "Olmo3ForCausalLM",
        fixed=_OLMO,
        fields=_ATTENTION_BIAS,
        windows="listed",
        positions=Positions(layers="by_type"),
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        windows="all",
        positions=Positions(kinds=("default", LONGROPE), partial=True),
        fused=True,
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        fields=_BIASES,
        windows="listed",
        window_switch=True,
        positions=Positions(layers="listed"),
    ),
}
_NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
_CAPS = ("score_cap", "logit_cap")


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
      refuse(field, value, f"is not supported (model_type {name})")
  values = {
      ours: getattr(theirs, field) for ours, field in family.names.items()
  }
  values |= {cap: float(values[cap] or 0) for cap in _CAPS if cap in values}
  if "query_scalar" in values:
    values["query_scalar"] = float(values["query_scalar"])
  heads = theirs.num_attention_heads
  if type(heads) is not int or heads < 1:
    refuse("num_attention_heads", heads, "must be an integer of at least 1")
  width = getattr(theirs, "head_dim", None) or theirs.hidden_size // heads
  placed = positions.read(theirs, family.positions)
  values["max_positions"] = max(
      values["max_positions"] or 0, positions.extended(placed["rope"])
  )
  return ModelConfig(
      family=name,
      head_dim=width,
      activation=_activation(getattr(theirs, family.activation), family),
      windows=_windows(theirs, family),
      **placed,
      **family.fixed,
      **values,
  )


def family_of(
    name: Any, field: str, raw: Mapping[str, Any] | None = None
) -> Family:
  """Returns the family `name`.

  Args:
    name: a `model_type`.
    field: where it stands, for the error.
    raw: the content of config.json, if it stands there.

  Raises:
    ConfigError: if there is no such family; it says why.
  """
  if not isinstance(name, str) or name not in FAMILIES:
    refuse_type(name, field, FAMILIES, raw or {})
  return FAMILIES[name]


def _activation(name: str, family: Family) -> str:
  known = {theirs: ours for ours, theirs in _ACTIVATIONS.items()}
  if name not in known:
    refuse(family.activation, name, f"must be one of {', '.join(known)}")
  return known[name]


def _windows(
    theirs: transformers.PreTrainedConfig, family: Family
) -> tuple[int, ...]:
  """Returns the window of each layer, or () if none has one."""
  count, window = theirs.num_hidden_layers, None
  if family.windows != "none":
    window = theirs.sliding_window
  types = [SLIDING if window else FULL] * count
  if family.windows == "listed":
    types = theirs.layer_types
  for kind in types:
    if kind not in (FULL, SLIDING):
      refuse("layer_types", kind, f"must be {FULL} or {SLIDING}")
  if len(types) != count:
    rule = f"must have num_hidden_layers = {count} entries"
    refuse("layer_types", types, rule)
  if family.window_switch and not theirs.use_sliding_window:
    window = None
  if SLIDING not in types:
    return ()
  if not window:
    rule = "lists sliding layers, but sliding_window is not set or not used"
    refuse("layer_types", types, rule)
  return tuple(window if kind == SLIDING else 0 for kind in types)


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
  rope, local = map(positions.used, (model.rope, model.local_rope))
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
  values |= _written_windows(model, family) | positions.written(
      model, family.positions
  )
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
        SLIDING if size else FULL
        for size in model.windows or (0,) * model.num_layers
    ]
  if family.window_switch:
    values["use_sliding_window"] = window is not None
  return values

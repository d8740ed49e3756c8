"""Conversion of rotary embeddings between Hugging Face and `ModelConfig`."""

# Evaluated annotations would make transformers import torch, if installed.
from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import transformers

from iapo_jax.config.model import LONGROPE, ModelConfig, RopeConfig
from iapo_jax.hf.refusals import refuse

FULL, SLIDING = "full_attention", "sliding_attention"
_ROTARY = {FULL: "global", SLIDING: "local"}
_ROPE = {
    "theta": "rope_theta",
    "fraction": "partial_rotary_factor",
    "factor": "factor",
    "original_positions": "original_max_position_embeddings",
    "low_freq": "low_freq_factor",
    "high_freq": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "short_factors": "short_factor",
    "long_factors": "long_factor",
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
    LONGROPE: (*_ROPE_LONGER, "short_factors", "long_factors", "amplitude"),
}
_ROPE_LISTS = ("short_factor", "long_factor")
_ROPE_OPTIONAL = (
    "partial_rotary_factor", "attention_factor", "beta_fast", "beta_slow",
)  # fmt: skip
_ROPE_KIND = ("rope_type", "type")
_ROPE_IMPLIED = {"truncate": True}  # the only value we support


@dataclasses.dataclass(frozen=True)
class Positions:
  """Rotary embeddings of a family.

  Attributes:
    kinds: supported values of `rope_type`.
    layers: `all` share one embedding; `by_type`: sliding layers have one of
      their own; `listed`: some layers have none, those that are 0 in
      `no_rope_layers`.
    partial: whether an embedding may rotate only a part of each head.
  """

  kinds: tuple[str, ...] = ("default", "linear", "llama3", "yarn")
  layers: str = "all"
  partial: bool = False


def read(
    theirs: transformers.PreTrainedConfig, rules: Positions
) -> dict[str, Any]:
  """Returns the fields `rope`, `local_rope` and `rotary`."""
  found = theirs.rope_parameters
  if rules.layers == "by_type":
    for name in sorted(found.keys() - _ROTARY.keys()):  # else ignored
      rule = f"must be in {FULL} or {SLIDING}"
      refuse(f"rope_parameters {name}", found[name], rule)
    rope, local = (
        _rope(found[kind], rules, theirs) for kind in (FULL, SLIDING)
    )
    if theirs.model_type == "olmo3":
      _check_olmo3(rope, local)
    if local == rope:
      return {"rope": rope}
    rotary = tuple(_ROTARY.get(kind, kind) for kind in theirs.layer_types)
    return {"rope": rope, "local_rope": local, "rotary": rotary}
  fields: dict[str, Any] = {"rope": _rope(found, rules, theirs)}
  if rules.layers == "listed" and not all(theirs.no_rope_layers):
    listed = theirs.no_rope_layers  # 1 for a layer with positions, else 0
    fields["rotary"] = tuple("global" if has else "none" for has in listed)
  return fields


def _check_olmo3(rope: RopeConfig, local: RopeConfig) -> None:
  """Checks that transformers 4 and 5 read the same rotary embeddings.

  Without `rope_parameters`, version 5 takes the default base for sliding
  layers, version 4 takes `rope_theta` for all layers.
  """
  if local != RopeConfig(theta=rope.theta):
    rule = (
        f"must be a default embedding of rope_theta = {rope.theta:g}, as in the"
        " full layers; write both in rope_parameters"
    )
    refuse("rope_parameters sliding_attention", _written_rope(local), rule)


def extended(rope: RopeConfig) -> int:
  """Returns the length that an extended embedding was made for, in tokens.

  Most published instructions for YaRN leave `max_position_embeddings` at the
  original length. 0 where the original length is not known: then that field
  has the last word.
  """
  return int(rope.factor * rope.original_positions)


def _rope(
    found: Mapping[str, Any],
    rules: Positions,
    theirs: transformers.PreTrainedConfig,
) -> RopeConfig:
  kind = found.get("rope_type", "default")
  if not isinstance(kind, str) or kind not in rules.kinds:
    rule = f"must be one of {', '.join(rules.kinds)}"
    rule += f" (model_type {theirs.model_type})"
    refuse("rope_parameters rope_type", kind, rule)
  used = {_ROPE[ours]: ours for ours in _ROPE_FIELDS[kind]}
  values = {}
  for name, value in found.items():
    if name in used:
      if value is None and name in _ROPE_OPTIONAL:
        continue
      values[used[name]] = _rope_value(name, value)
    elif name not in _ROPE_KIND and value not in (
        None, _ROPE_IMPLIED.get(name)
    ):
      rule = f"is not supported with rope_type {kind}"
      refuse(f"rope_parameters {name}", value, rule)
  if values.get("fraction", 1.0) != 1.0 and not rules.partial:
    rule = "must be 1 for this model_type"
    refuse("partial_rotary_factor", values["fraction"], rule)
  if kind == LONGROPE and "factor" not in values:
    ratio = theirs.max_position_embeddings / values["original_positions"]
    values["factor"] = max(ratio, 1.0)  # a lesser factor scales nothing
  return RopeConfig(kind=kind, **values)


def _rope_value(name: str, value: Any) -> float | int | tuple[float, ...]:
  """Checks a field of a rotary embedding, and converts it to our type."""
  if name in _ROPE_LISTS:
    if not isinstance(value, list) or not all(map(_is_positive, value)):
      refuse(f"rope_parameters {name}", value, "must be positive numbers")
    return tuple(map(float, value))
  if not _is_positive(value):
    refuse(f"rope_parameters {name}", value, "must be a positive number")
  whole = name == _ROPE["original_positions"]
  return int(value) if whole else float(value)


def _is_positive(value: Any) -> bool:
  return type(value) in (int, float) and 0 < value < math.inf


def used(rope: RopeConfig) -> RopeConfig:
  """Resets the fields that the kind of embedding does not use."""
  names = ("kind", *_ROPE_FIELDS[rope.kind])
  return RopeConfig(**{name: getattr(rope, name) for name in names})


def written(model: ModelConfig, rules: Positions) -> dict[str, Any]:
  """Returns rotary embeddings in the fields of transformers 5."""
  rope = _written_rope(model.rope)
  if rules.layers == "by_type":
    local = model.local_rope if "local" in model.rotary else model.rope
    return {"rope_parameters": {FULL: rope, SLIDING: _written_rope(local)}}
  values: dict[str, Any] = {"rope_parameters": rope}
  if model.rope.kind == LONGROPE:  # takes precedence over `rope_parameters`
    name = _ROPE["original_positions"]
    values[name] = rope[name]
  if rules.layers == "listed":
    rotary = model.rotary or ("global",) * model.num_layers
    values["no_rope_layers"] = [int(kind != "none") for kind in rotary]
  return values


def older(model: ModelConfig) -> dict[str, Any]:
  """Returns rotary embeddings in the fields of transformers before version 5.

  A decoder that these versions do not have gives fields that they refuse.
  """
  scaling = _written_rope(model.rope)
  values: dict[str, Any] = {
      name: scaling.pop(name)
      for name in ("rope_theta", "partial_rotary_factor")
      if name in scaling
  }
  if model.family in ("olmo2", "phi3"):
    scaling["type"] = scaling.pop("rope_type")  # all that they read
  if model.rope.kind == LONGROPE:
    values |= _pop_longrope(scaling, model)
  values["rope_scaling"] = None if model.rope.kind == "default" else scaling
  if model.family == "gemma3_text":
    local = model.local_rope if "local" in model.rotary else model.rope
    plain = local.kind == "default"
    values["rope_local_base_freq"] = local.theta if plain else None
  return values


def _pop_longrope(
    scaling: dict[str, Any], model: ModelConfig
) -> dict[str, Any]:
  """Moves what version 4 reads outside of `rope_scaling` out of it.

  It refuses any further field. The factor follows from two others.
  """
  rope, name = model.rope, _ROPE["original_positions"]
  if model.max_positions == rope.factor * rope.original_positions:
    del scaling["factor"]
  if not rope.amplitude:
    del scaling["attention_factor"]
  return {name: scaling.pop(name)}


def _written_rope(rope: RopeConfig) -> dict[str, Any]:
  values = {
      _ROPE[ours]: getattr(rope, ours) for ours in _ROPE_FIELDS[rope.kind]
  }
  values |= {name: list(values[name]) for name in _ROPE_LISTS if name in values}
  if not values.get("attention_factor", True):
    values["attention_factor"] = None
  if rope.fraction == 1:
    del values["partial_rotary_factor"]
  return {"rope_type": rope.kind, **values}

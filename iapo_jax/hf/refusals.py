"""Refuses what config.json asks for and the decoder cannot do, by name."""

import fnmatch
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NoReturn

from iapo_jax.core.errors import ConfigError

_MULTIMODAL = "a multimodal model"
_EXPERTS = "a mixture of experts"
_HYBRID = "hybrid attention (recurrent or linear-attention layers)"
# Patterns of `model_type`.
_TYPES = {
    _MULTIMODAL: ("*_vl", "*_vl_*", "*omni*", "phi4mm", "phi4_multimodal"),
    _EXPERTS: (
        "*moe*", "bailing_hybrid", "dbrx", "deepseek_v[2-9]*", "dots1",
        "gpt_oss", "jamba", "kimi_k2*", "kimi_linear", "llama4*", "longcat*",
        "minimax*", "mixtral", "qwen3_next",
    ),
    _HYBRID: (
        "*mamba*", "bailing_hybrid", "bamba", "falcon_h1", "granitemoehybrid",
        "jamba", "kimi_linear", "lfm2*", "minimax", "nemotron_h*",
        "olmo_hybrid", "qwen3_5*", "qwen3_next", "recurrent_gemma", "rwkv*",
        "xlstm", "zamba*",
    ),
}  # fmt: skip
# Fields that name what a `model_type` without a pattern is.
_SIGNS = {
    _HYBRID: (
        "hybrid_override_pattern", "layers_block_type", "linear_num_key_heads",
        "mamba_d_state", "ssm_state_size",
    ),
    _EXPERTS: (
        "moe_intermediate_size", "n_routed_experts", "num_experts",
        "num_local_experts",
    ),
    _MULTIMODAL: ("audio_config", "text_config", "vision_config"),
}  # fmt: skip
_TEXT = "text_config"  # the language model inside a multimodal one


def refuse(field: str, value: Any, rule: str) -> NoReturn:
  """Raises a `ConfigError` about a field of config.json."""
  raise ConfigError(f"config.json {field} = {value!r}: {rule}")


def refuse_type(
    name: Any, field: str, supported: Collection[str], raw: Mapping[str, Any]
) -> NoReturn:
  """Raises a `ConfigError` that says why a `model_type` is not supported.

  Args:
    name: the value of `field`.
    field: where the name stands.
    supported: the names that are supported.
    raw: the content of config.json; empty if there is none.
  """
  found = set(_kinds(name, raw))
  first, *others = [kind for kind in _TYPES if kind in found] or [""]
  why = " with ".join([first, *filter(None, [" and ".join(others)])])
  why += " is not supported; " if why else ""
  text = raw.get(_TEXT)
  inside = text.get("model_type") if isinstance(text, Mapping) else None
  if isinstance(inside, str) and inside in supported:
    why += f"save its language model ({_TEXT}, {inside}) alone; "
  raise ConfigError(
      f"{field} = {name!r}: {why}must be one of {', '.join(supported)}"
  )


def _kinds(name: Any, raw: Mapping[str, Any]) -> Iterator[str]:
  """Yields what a model is, perhaps more than once."""
  for kind, patterns in _TYPES.items():
    if any(fnmatch.fnmatchcase(str(name), pattern) for pattern in patterns):
      yield kind
    if any(raw.get(sign) for sign in _SIGNS[kind]):
      yield kind
  text = raw.get(_TEXT)
  if isinstance(text, Mapping):
    yield from _kinds(text.get("model_type"), text)

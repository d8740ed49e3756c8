"""The config.json that the metadata of a GGUF file stands for.

llama.cpp's converter leaves out what its programs derive from the architecture,
such as Gemma's windows, and writes llama3's rotary scaling as a tensor. Both
are put back here. A key of the architecture that is not known is refused: it
may change what the model computes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from iapo_jax.hf.families import FAMILIES
from iapo_jax.hf.gguf_header import Header, Numbers

_ARCHITECTURE = "general.architecture"
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
ROPE_FREQS = "rope_freqs.weight"
# Phi-3's factors of longrope, by Hugging Face's name of them.
LONGROPE = {
    "long_factor": "rope_factors_long.weight",
    "short_factor": "rope_factors_short.weight",
}
FACTORS = (ROPE_FREQS, *LONGROPE.values())
# llama.cpp's name of an architecture to `model_type`.
_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
}
_SIZES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
# Keys that say nothing about what the model computes.
_IDLE = ("tensor_data_layout", "rope.scaling.finetuned")
# Keys that must be absent or have this value.
_FIXED = {"attention.causal": True, "expert_count": 0, "expert_used_count": 0}
_EPSILON = "attention.layer_norm_rms_epsilon"
# Layers of the models whose scores are divided by the root of the width that
# the heads share, instead of that of a head. No key says so.
_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
_GEMMA3_PATTERN = 6  # every sixth layer sees all tokens
_CLOSE = 1e-5  # relative error of a recomputed float32


# Hugging Face's names of tensors, by those in the file: outside of layers,
# parts of a layer, and what else the parts are called in some architectures.
_OUTSIDE = {
    EMBEDDING: "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    HEAD: "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PARTS = {
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "phi3": {
        "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj",
    },
}  # fmt: skip


class Keys:
  """The keys of an architecture; refuses those that nobody asked for."""

  def __init__(self, header: Header) -> None:
    """Raises `ConfigError` if there is no architecture that we know."""
    self._header, self._asked = header, set()
    self.architecture = header.metadata.get(_ARCHITECTURE)
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
      header.fail(f"general.type = {kind!r}: must be model")
    parts = header.metadata.get("split.count", 0)
    if parts not in (0, 1):
      header.fail(
          f"split.count = {parts!r}: must be one whole file; join the parts"
          " with `llama-gguf-split --merge`"
      )
    if self.architecture not in _TYPES:
      header.fail(
          f"{_ARCHITECTURE} = {self.architecture!r}: must be one of"
          f" {', '.join(_TYPES)}"
      )

  @property
  def _prefix(self) -> str:
    return f"{self.architecture}."

  def get(self, name: str) -> Any:
    """Returns a value, None if the key is missing."""
    self._asked.add(name)
    return self._header.metadata.get(self._prefix + name)

  def size(
      self, name: str, default: int | None = None, *, least: int = 1
  ) -> int:
    """Returns an integer; of a list, the entry that all are."""
    value = self.get(name)
    if isinstance(value, Numbers) and len({*value.values.tolist()}) == 1:
      value = value.values[0].item()
    if value is None and default is not None:
      return default
    if type(value) is not int or value < least:
      rule = f"must be one integer for all layers, at least {least}"
      self.fail(name, "nothing" if value is None else value, rule)
    return value

  def number(self, name: str) -> float | None:
    """Returns a positive number, None if the key is missing."""
    value = self.get(name)
    if value is None:
      return None
    if type(value) not in (int, float) or not 0 < value < math.inf:
      self.fail(name, value, "must be a positive number")
    return _short(value)

  def fail(self, name: str, value: Any, rule: str) -> NoReturn:
    """Raises a `ConfigError` about a key."""
    self._header.fail(f"{self._prefix}{name} = {value!r}: {rule}")

  def check_all_asked(self) -> None:
    """Raises `ConfigError` if there is another key of the architecture."""
    for name, value in _FIXED.items():
      if self.get(name) not in (None, value):
        self.fail(name, self.get(name), f"must be {value}")
    for key, value in self._header.metadata.items():
      name = key.removeprefix(self._prefix)
      if key == name or name in self._asked or name in _IDLE:
        continue
      self.fail(name, value, f"is not supported with {self.architecture}")


def _short(value: float) -> float:
  """Returns the shortest number that is the same in float32.

  1e-5 became 9.99999974e-06 on its way into the file.
  """
  return float(str(np.float32(value))) if type(value) is float else value


def config_of(
    header: Header, factors: Mapping[str, np.ndarray], ends: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the content of a config.json.

  Args:
    header: of the file.
    factors: the content of those of the tensors `FACTORS` that there are.
    ends: special token ids by the fields of config.json.

  Raises:
    ConfigError: if a key is missing, not known or has a wrong value.
  """
  keys = Keys(header)
  model_type = _TYPES[keys.architecture]
  config = {
      "model_type": model_type,
      "architectures": [FAMILIES[model_type].architecture],
      **{field: keys.size(name) for field, name in _SIZES.items()},
  }
  layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
  if layers > len(header.tensors):
    keys.fail("block_count", layers, "has more layers than the file tensors")
  if EMBEDDING not in header.tensors:
    header.fail(f"has no tensor {EMBEDDING}")
  rows = header.tensors[EMBEDDING].shape[0]
  width = head_width(keys)
  if (other := keys.size("attention.value_length", width)) != width:
    keys.fail("attention.value_length", other, f"must be {width}, as the key's")
  config |= {
      "vocab_size": keys.size("vocab_size", rows),
      "num_key_value_heads": keys.size("attention.head_count_kv", heads),
      "head_dim": width,
      "rms_norm_eps": keys.number(_EPSILON),
      "tie_word_embeddings": HEAD not in header.tensors,
      **_particular(keys, config, width, header.tensors),
      **_positions(keys, config, width, factors),
      **ends,
  }
  if config["rms_norm_eps"] is None:
    keys.fail(_EPSILON, "nothing", "must be a positive number")
  keys.check_all_asked()
  return config


def head_width(keys: Keys) -> int:
  """Returns the width of a head."""
  width = keys.size(_SIZES["hidden_size"])
  width = max(width // keys.size(_SIZES["num_attention_heads"]), 1)
  if keys.architecture != "phi3":  # which may rotate only a part of a head
    width = keys.size("rope.dimension_count", width)
  return keys.size("attention.key_length", width)


def _particular(
    keys: Keys,
    config: Mapping[str, Any],
    width: int,
    tensors: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns the fields that only some architectures have."""
  match keys.architecture:
    case "llama":
      return {
          "attention_bias": "blk.0.attn_q.bias" in tensors,
          "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
      }
    case "qwen2":
      return {"use_sliding_window": False}
    case "qwen3":
      return {
          "use_sliding_window": False,
          "attention_bias": "blk.0.attn_q.bias" in tensors,
      }
    case "phi3":
      # 0 is none, in Phi-4.
      window = keys.size("attention.sliding_window", 0, least=0)
      return {"sliding_window": window or None}
  return _gemma(keys, config, width)


def _gemma(
    keys: Keys, config: Mapping[str, Any], width: int
) -> dict[str, Any]:
  layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
  scalar: float = width
  if layers == _BY_WIDTH[keys.architecture]:
    scalar = config["hidden_size"] // heads
  if scale := keys.number("attention.scale"):
    scalar = float(f"{scale**-2:.6g}")  # of a float32
    scalar = int(scalar) if scalar.is_integer() else scalar
  pattern = 2
  fields = {"query_pre_attn_scalar": scalar}
  if keys.architecture == "gemma2":
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    for name, usual in caps.items():  # the first files had none of these keys
      cap = keys.number(name)
      fields[name] = usual if cap is None else cap
  else:
    fields["final_logit_softcapping"] = keys.number("final_logit_softcapping")
    pattern = keys.get("attention.sliding_window_pattern")
    pattern = _GEMMA3_PATTERN if pattern is None else pattern
  return fields | {
      "sliding_window": keys.size("attention.sliding_window"),
      "layer_types": _layer_types(keys, pattern, layers),
  }


def _layer_types(keys: Keys, pattern: Any, layers: int) -> list[str]:
  """Returns the kind of each layer: all but every nth one slide, or a list."""
  if isinstance(pattern, Numbers) and len(pattern.values) == layers:
    slides = pattern.values.astype(bool).tolist()
  elif type(pattern) is int and pattern > 0:
    slides = [(layer + 1) % pattern != 0 for layer in range(layers)]
  else:
    rule = "must be an integer of at least 1, or a flag for each layer"
    keys.fail("attention.sliding_window_pattern", pattern, rule)
  return [f"{'sliding' if one else 'full'}_attention" for one in slides]


def _positions(
    keys: Keys,
    config: Mapping[str, Any],
    width: int,
    factors: Mapping[str, np.ndarray],
) -> dict[str, Any]:
  """Returns the fields of rotary embeddings."""
  theta = keys.number("rope.freq_base") or 10_000.0
  rope: dict[str, Any] = {"rope_theta": theta, **_scaling(keys)}
  rotated = keys.size("rope.dimension_count", width)
  if rotated != width:
    rope["partial_rotary_factor"] = rotated / width
  fields: dict[str, Any] = {}
  if ROPE_FREQS in factors:
    longest = config["max_position_embeddings"]
    found = llama3(factors[ROPE_FREQS], theta, longest)
    if found is None or rope["rope_type"] != "default":
      shown = Numbers(factors[ROPE_FREQS])
      keys.fail(ROPE_FREQS, shown, "is not llama3's scaling")
    rope |= found
  if {*LONGROPE.values()} & factors.keys():
    if missing := {*LONGROPE.values()} - factors.keys():
      keys.fail("rope.scaling", "longrope", f"lacks {missing.pop()}")
    original = keys.size("rope.scaling.original_context_length", least=2)
    ours = {
        field: [_short(float(x)) for x in factors[name]]
        for field, name in LONGROPE.items()
    }
    rope |= {"rope_type": "longrope", **ours} | _amplitude(
        keys, config["max_position_embeddings"], original
    )
    rope["original_max_position_embeddings"] = original
    fields["original_max_position_embeddings"] = original
  elif keys.architecture == "phi3":
    keys.get("rope.scaling.original_context_length")  # without factors, unused
  if keys.architecture == "gemma3":
    local = keys.number("rope.freq_base_swa") or 10_000.0
    rope = {
        "full_attention": rope,
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }
  return fields | {"rope_parameters": rope}


def _scaling(keys: Keys) -> dict[str, Any]:
  """Returns the scaling that keys name, without the base."""
  factor = keys.number("rope.scaling.factor")
  old = keys.number("rope.scale_linear")  # before there was a type
  usual = "linear" if factor or old else "none"
  kind = keys.get("rope.scaling.type")
  match usual if kind is None else kind:
    case "none":
      return {"rope_type": "default"}
    case "linear":
      return {"rope_type": "linear", "factor": factor or old or 1.0}
    case "yarn":
      betas = {
          name: keys.number(f"rope.scaling.yarn_{name}")
          for name in ("beta_fast", "beta_slow")
      }
      return {
          "rope_type": "yarn",
          "factor": factor or 1.0,
          "original_max_position_embeddings": keys.size(
              "rope.scaling.original_context_length"
          ),
          **{name: value for name, value in betas.items() if value},
      }
  keys.fail("rope.scaling.type", kind, "must be none, linear or yarn")


def _amplitude(keys: Keys, longest: int, original: int) -> dict[str, Any]:
  """Returns longrope's amplitude, unless it is the one that follows."""
  given = keys.number("rope.scaling.attn_factor")
  follows = 1.0
  if longest > original:
    follows = math.sqrt(1 + math.log(longest / original) / math.log(original))
  if given is None or math.isclose(given, follows, rel_tol=_CLOSE):
    return {}
  return {"attention_factor": given}


def llama3(
    found: np.ndarray, theta: float, longest: int
) -> dict[str, Any] | None:
  """Returns the llama3 scaling that divides frequencies by these numbers.

  A frequency that makes t turns within the original length is divided by
  `factor` if t is at most `low`, by 1 if it is at least `high`, and between
  them by a blend whose inverse is linear in t. The same numbers follow from
  k times the length and both limits, so `low` is 1, as in every published
  model.

  Args:
    found: numbers of [h / 2], by which the file divides.
    theta: base of the frequencies.
    longest: of the model, in tokens.

  Returns:
    Fields of `rope_parameters`; None if no scaling of this kind fits.
  """
  found = found.astype(np.float64)
  factor = float(found.max(initial=1.0))
  if factor <= 1:
    return {} if (found == 1).all() else None
  turns = theta ** -(np.arange(len(found)) / len(found)) / (2 * math.pi)
  inside = (found > 1 + _CLOSE) & (found < factor * (1 - _CLOSE))
  share = ((1 / found - 1 / factor) / (1 - 1 / factor))[inside]
  candidates = [(longest / factor, 4.0), (8192.0, 4.0)]
  if inside.any():  # share = (length turns - 1) / (high - 1)
    length = np.median((share * 3 + 1) / turns[inside])
    candidates.insert(0, (float(length), 4.0))
  if inside.sum() > 1:
    slope, shift = np.polyfit(turns[inside], share, 1)
    if shift < 0 < slope:
      high = 1 - 1 / shift
      candidates.append((slope * (high - 1), round(high, 3)))
  for length, high in candidates:
    whole = max(round(length), 1)
    blend = np.clip((whole * turns - 1) / (high - 1), 0, 1)
    ours = 1 / (blend + (1 - blend) / factor)
    if np.allclose(ours, found, rtol=_CLOSE, atol=0):
      return {
          "rope_type": "llama3",
          "factor": _short(factor),
          "low_freq_factor": 1.0,
          "high_freq_factor": high,
          "original_max_position_embeddings": whole,
      }
  return None


def stored_names(
    architecture: str, tensors: Sequence[str]
) -> dict[str, str]:
  """Maps Hugging Face's names of tensors to those in the file.

  A tensor that is not known keeps its name, so that it is refused.
  """
  inside = _LAYER | _PARTS.get(architecture, {})
  found = {}
  for stored in tensors:
    if stored in FACTORS:
      continue
    block, layer, rest = (*stored.split(".", 2), "", "")[:3]
    part, _, end = rest.rpartition(".")
    if stored in _OUTSIDE:
      found[_OUTSIDE[stored]] = stored
    elif block == "blk" and layer.isascii() and layer.isdecimal() and (
        part in inside and end in ("weight", "bias")
    ):
      found[f"model.layers.{layer}.{inside[part]}.{end}"] = stored
    else:
      found[stored] = stored
  return found

"""Writes GGUF files from Hugging Face folders, as llama.cpp's converter does.

Names come from the `gguf` package's own tables, not from ours.
"""

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from iapo_jax.core import files
from iapo_jax.hf import weights

ARCHITECTURES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2",
    "gemma3_text": "gemma3", "phi3": "phi3",
}  # fmt: skip
_TYPES = {"normal": 1, "control": 3, "user": 4}


def write(
    path, folder, *, kind="F32", tok=None, pre="gpt-2", spm=False, more=None,
    change=None,
):
  """Writes the model of a folder.

  Args:
    path: the file to write.
    folder: a Hugging Face folder.
    kind: how matrices are stored; norms and biases are F32.
    tok: a tokenizer; None writes one letter a row.
    pre: the name of its pre-tokenizer.
    spm: whether it is one of SentencePiece, whose merges become scores.
    more: metadata to set instead or to leave out (None), by key.
    change: a function that changes the tensors, by their names in the file.
  """
  config = files.read_json(folder / "config.json")
  name = ARCHITECTURES[config["model_type"]]
  tensors = stored(folder, config, name)
  tensors |= _factors(config)
  if change:
    change(tensors)
  keys = {
      f"{name}.{key}": value for key, value in parameters(config, name).items()
  } | tokens(tok, config["vocab_size"], pre, spm)
  if not spm:
    keys.pop("tokenizer.ggml.scores", None)
  writer = gguf.GGUFWriter(path, name)
  for key, value in (keys | (more or {})).items():
    if value is not None:
      _add(writer, key, value)
  for tensor, value in tensors.items():
    stored_as = Kind[kind] if value.ndim > 1 else Kind.F32
    data = gguf.quantize(value.astype(np.float32), stored_as)
    writer.add_tensor(tensor, data, raw_dtype=stored_as)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def _add(writer, key, value):
  if isinstance(value, bool):
    writer.add_bool(key, value)
  elif isinstance(value, int):
    writer.add_uint32(key, value)
  elif isinstance(value, float):
    writer.add_float32(key, value)
  elif isinstance(value, str):
    writer.add_string(key, value)
  else:
    writer.add_array(key, value)


def stored(folder, config, name):
  """The tensors by their names in a file, as float32."""
  layers = config["num_hidden_layers"]
  arch = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == name)
  table = gguf.get_tensor_name_map(arch, layers)
  reader, found = weights.Reader(folder), {}
  for theirs in reader.names:
    value = reader.read(theirs, (slice(None),)).astype(np.float32)
    base, _, end = theirs.rpartition(".")
    if name == "llama" and base.endswith(("q_proj", "k_proj")):
      heads = config[
          "num_attention_heads"
          if base.endswith("q_proj")
          else "num_key_value_heads"
      ]
      halves = value.reshape(heads, 2, -1, *value.shape[1:])
      value = halves.swapaxes(1, 2).reshape(value.shape)
    if name.startswith("gemma") and theirs.endswith("norm.weight"):
      value = value + 1
    found[f"{table.get_name(base)}.{end}"] = value
  return found


def parameters(config, name):
  """Metadata of the architecture, without its prefix."""
  rope = config["rope_parameters"]
  local = rope.get("sliding_attention")
  rope = rope.get("full_attention", rope)
  heads = config["num_attention_heads"]
  width = config.get("head_dim") or config["hidden_size"] // heads
  share = rope.get("partial_rotary_factor", 1)
  found = {
      "block_count": config["num_hidden_layers"],
      "context_length": config["max_position_embeddings"],
      "embedding_length": config["hidden_size"],
      "feed_forward_length": config["intermediate_size"],
      "attention.head_count": heads,
      "attention.head_count_kv": config["num_key_value_heads"],
      "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
      "rope.freq_base": float(rope["rope_theta"]),
      "rope.dimension_count": int(share * width),
      "vocab_size": config["vocab_size"],
  }
  if name in ("qwen3", "gemma2", "gemma3"):
    found |= {"attention.key_length": width, "attention.value_length": width}
  if name.startswith("gemma"):
    found |= {
        "attention.sliding_window": config["sliding_window"],
        "attention.scale": config["query_pre_attn_scalar"] ** -0.5,
    }
  if name == "gemma2":
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
      found[cap] = config[cap]
  if name == "gemma3":
    kinds = [kind == "sliding_attention" for kind in config["layer_types"]]
    found["attention.sliding_window_pattern"] = kinds
    found["rope.freq_base_swa"] = local["rope_theta"]
  original = rope.get(
      "original_max_position_embeddings",
      config.get("original_max_position_embeddings"),
  )
  if name == "phi3":
    found["attention.sliding_window"] = config.get("sliding_window") or 0
    found["rope.scaling.original_context_length"] = original or found[
        "context_length"
    ]
  kind = rope.get("rope_type")
  if kind in ("linear", "yarn"):
    found |= {"rope.scaling.type": kind, "rope.scaling.factor": rope["factor"]}
  if kind == "yarn":
    found["rope.scaling.original_context_length"] = original
  if kind == "longrope":
    scale = found["context_length"] / original
    found["rope.scaling.attn_factor"] = float(
        np.sqrt(1 + np.log(scale) / np.log(original))
    )
  return found


def _factors(config):
  """The tensors of factors: llama3's and longrope's."""
  rope = config["rope_parameters"]
  if rope.get("rope_type") == "longrope":
    return {
        f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"])
        for kind in ("long", "short")
    }
  if rope.get("rope_type") != "llama3":
    return {}
  heads = config["num_attention_heads"]
  width = config.get("head_dim") or config["hidden_size"] // heads
  return {"rope_freqs.weight": llama3_factors(width, **rope)}


def llama3_factors(
    width, rope_theta, factor, low_freq_factor, high_freq_factor,
    original_max_position_embeddings, **_,
):  # fmt: skip
  """What llama3's scaling divides each frequency by, wave by wave."""
  found = []
  for i in range(width // 2):
    length = 2 * np.pi * rope_theta ** (2 * i / width)
    turns = original_max_position_embeddings / length
    share = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
    if turns > high_freq_factor:
      found.append(1.0)
    elif turns < low_freq_factor:
      found.append(factor)
    else:
      found.append(1 / ((1 - share) / factor + share))
  return np.array(found)


def tokens(tok, rows, pre, spm):
  """Metadata of a tokenizer that fills up the rows of a model."""
  import json

  if tok is None:
    letters = [chr(ord("Ā") + i) for i in range(rows)]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": letters,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (rows - 3),
        "tokenizer.ggml.merges": [f"{letters[5]} {letters[6]}"],
        "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip
  model = json.loads(tok.backend_tokenizer.to_str())["model"]
  merges = [
      tuple(m) if isinstance(m, list) else tuple(m.split(" "))
      for m in model["merges"]
  ]
  names, kinds = {i: t for t, i in model["vocab"].items()}, {}
  for i, token in tok.added_tokens_decoder.items():
    names[i] = token.content
    kinds[i] = 3 if token.special else 4
  size = max(rows, max(names) + 1)
  listed = [names.get(i, f"[PAD{i}]") for i in range(size)]
  types = [kinds.get(i, 1 if i in names else 5) for i in range(size)]
  found = {
      "tokenizer.ggml.model": "llama" if spm else "gpt2",
      "tokenizer.ggml.pre": "default" if spm else pre,
      "tokenizer.ggml.tokens": listed,
      "tokenizer.ggml.token_type": types,
      "tokenizer.chat_template": tok.chat_template,
  }
  for key, token in (
      ("bos", tok.bos_token_id), ("eos", tok.eos_token_id),
      ("unknown", tok.unk_token_id), ("padding", tok.pad_token_id),
  ):  # fmt: skip
    if token is not None:
      found[f"tokenizer.ggml.{key}_token_id"] = token
  if spm:
    rank = {"".join(pair): -1.0 - i for i, pair in enumerate(merges)}
    scores = [rank.get(token, -1e4) for token in listed]
    return found | {"tokenizer.ggml.scores": scores}
  return found | {
      "tokenizer.ggml.merges": [" ".join(pair) for pair in merges]
  }

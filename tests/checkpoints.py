"""Small random Hugging Face checkpoints of every family, made with torch.

Each configuration is one of the family's, shrunk, with every feature of the
family in use: windows shorter than the sequences of the tests, scaled rotary
embeddings, biases, heads that are no equal parts of the width.

  python tests/checkpoints.py    # makes tests/golden anew; needs torch
"""

import pathlib

import numpy as np

_SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
_OLMO3_ROPE = {
    "full_attention": _YARN | {"attention_factor": 1.3, "beta_fast": 16.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
}
_GEMMA3_ROPE = {
    "full_attention": {
        "rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}  # fmt: skip

CONFIGS = {
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2_window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
    "qwen3": {
        "model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True,
    },
    "qwen3_yarn": {
        "model_type": "qwen3", "head_dim": 8, "rope_parameters": _YARN,
        "attention_bias": True,
    },
    "llama": {"model_type": "llama", "rope_parameters": _LLAMA3},
    "llama_biases": {
        "model_type": "llama", "attention_bias": True, "mlp_bias": True,
        "hidden_act": "gelu", "tie_word_embeddings": True, "head_dim": 10,
    },
    "mistral": {"model_type": "mistral", "sliding_window": 5, "head_dim": 8},
    "gemma2": {
        "model_type": "gemma2", "sliding_window": 5, "head_dim": 8,
        "query_pre_attn_scalar": 12, "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
    },
    "gemma3": {
        "model_type": "gemma3_text", "sliding_window": 5, "head_dim": 8,
        "query_pre_attn_scalar": 12, "rope_parameters": _GEMMA3_ROPE,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
    },
    "olmo2": {"model_type": "olmo2"},
    # Three sliding layers and a full one, which alone is extended.
    "olmo3": {
        "model_type": "olmo3", "sliding_window": 5, "num_hidden_layers": 4,
        "rope_parameters": _OLMO3_ROPE,
    },
    "olmo3_plain": {
        "model_type": "olmo3", "sliding_window": 5, "num_hidden_layers": 4,
        "attention_bias": True, "tie_word_embeddings": True,
    },
    "phi3": {
        "model_type": "phi3", "sliding_window": 6, "hidden_size": 32,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 100.0,
            "partial_rotary_factor": 0.5,
        },
    },
    # Factors are short up to 48 tokens. With weights of 0.4, torch's float32 is
    # up to 2e-4 from its float64.
    "phi3_longrope": {
        "model_type": "phi3", "hidden_size": 32, "initializer_range": 0.3,
        "original_max_position_embeddings": 48,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 100.0,
            "partial_rotary_factor": 0.75, "short_factor": [1.0, 1.1, 1.3],
            "long_factor": [1.2, 2.5, 5.0],
        },
    },
    "smollm3": {
        "model_type": "smollm3", "no_rope_layer_interval": 2,
        "use_sliding_window": True, "sliding_window": 5,
    },
}  # fmt: skip


def rebased(cfg):
  """A decoder with another base than the default of transformers 4, 10,000.

  Without `rope_parameters`, transformers 5 takes 500,000 in the sliding layers
  of OLMo 3, which always have the base of the others.
  """
  import dataclasses

  olmo3 = cfg.family == "olmo3"
  theta = 500_000.0 if olmo3 else 300.0
  rope, local = (
      dataclasses.replace(x, theta=theta) for x in (cfg.rope, cfg.local_rope)
  )
  if not (olmo3 and "local" in cfg.rotary):
    local = cfg.local_rope
  return dataclasses.replace(cfg, rope=rope, local_rope=local)


def make(name, seed=0, **changes):
  """A model with noise in every weight, so that each matters."""
  import torch
  import transformers

  config = transformers.AutoConfig.for_model(
      **(_SIZES | CONFIGS[name] | changes), attn_implementation="eager"
  )
  torch.manual_seed(seed)
  model = transformers.AutoModelForCausalLM.from_config(
      config, dtype=torch.float32
  ).eval()
  for parameter in model.parameters():
    if parameter.ndim == 1:  # norms and biases start as constants
      parameter.data += 0.2 * torch.randn_like(parameter)
    # bfloat16 numbers: half the bytes on disk, and the same numbers again.
    parameter.data = parameter.data.bfloat16().float()
  return model


# Ragged: prompts of 9, 4 and 1 tokens, completions of 20, 13 and 7.
LENGTHS = ((9, 20), (4, 13), (1, 7))
LONGEST = 48  # no sequence of a test that compares families is longer
POSTFIX = (17, 4, 9)
GREEDY = 32


def sequences(seed=0):
  """(prompt, completion) ids of the lengths above."""
  rng = np.random.default_rng(seed)
  return [
      tuple(rng.integers(3, _SIZES["vocab_size"], n).tolist() for n in lengths)
      for lengths in LENGTHS
  ]


def log_distribution(model, ids):
  """log π after each of some ids, by torch: float64[x, v]."""
  import torch

  with torch.no_grad():
    logits = model(torch.tensor([list(ids)])).logits[0]
  return torch.log_softmax(logits.double(), -1).numpy()


def expected(model, prompt, completion, postfix=POSTFIX):
  """What torch says of a completion, every prefix encoded anew.

  Returns log-probabilities [t], entropies [t], answer entropies [t + 1].
  """

  def entropy(logp):
    return -np.sum(np.exp(logp) * logp, axis=-1)

  whole = log_distribution(model, [*prompt, *completion])
  logp = whole[len(prompt) - 1 : -1]
  answers = [
      entropy(
          log_distribution(model, [*prompt, *completion[:end], *postfix])[-1]
      )
      for end in range(len(completion) + 1)
  ]
  chosen = logp[np.arange(len(completion)), list(completion)]
  return chosen, entropy(logp), np.array(answers)


def continuation(model, prompt, count=GREEDY):
  """The most probable next token, again and again, every prefix anew."""
  ids = list(prompt)
  for _ in range(count):
    ids.append(int(log_distribution(model, ids)[-1].argmax()))
  return ids[len(prompt) :]


def write_golden(folder):
  """Makes every golden folder anew: weights, config and what torch says."""
  import shutil

  import safetensors.numpy
  import transformers

  for name in CONFIGS:
    model, place = make(name), folder / name
    shutil.rmtree(place, ignore_errors=True)
    arrays = {}
    for i, (prompt, completion) in enumerate(sequences()):
      found = expected(model, prompt, completion)
      kinds = ("logprobs", "entropies", "answer_entropies")
      for kind, values in zip(kinds, found, strict=True):
        arrays[f"{kind}.{i}"] = values.astype(np.float32)
      arrays[f"greedy.{i}"] = np.array(continuation(model, prompt), np.int32)
    model.bfloat16().save_pretrained(place)
    (place / "generation_config.json").unlink(missing_ok=True)
    safetensors.numpy.save_file(arrays, place / "expected.safetensors")
    print(name, transformers.__version__)


if __name__ == "__main__":
  write_golden(pathlib.Path(__file__).parent / "golden")

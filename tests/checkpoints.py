"""Small random Hugging Face checkpoints of every family, made with torch.

Each configuration is one of the family's, shrunk, with every feature of the
family in use: windows shorter than the sequences of the tests, scaled rotary
embeddings, biases, heads that are no equal parts of the width.
"""

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
    "phi3": {
        "model_type": "phi3", "sliding_window": 6, "hidden_size": 32,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 100.0,
            "partial_rotary_factor": 0.5,
        },
    },
    "smollm3": {
        "model_type": "smollm3", "no_rope_layer_interval": 2,
        "use_sliding_window": True, "sliding_window": 5,
    },
}  # fmt: skip


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

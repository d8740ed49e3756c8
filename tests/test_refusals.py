"""Models that are not supported: the error says what they are."""

import json

import pytest

from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import families, folder

HYBRID = "hybrid attention (recurrent or linear-attention layers)"
EXPERTS = "a mixture of experts"
MULTIMODAL = "a multimodal model"
SUPPORTED = f"must be one of {', '.join(families.FAMILIES)}"


def refusal(place, raw):
  (place / "config.json").write_text(json.dumps(raw))
  with pytest.raises(ConfigError) as error:
    folder.read_model(place)
  head, _, why = str(error.value).partition(": ")
  name = raw.get("model_type")
  assert head == f"{place / 'config.json'} model_type = {name!r}"
  assert why.endswith(SUPPORTED)
  assert "\n" not in why
  return why.removesuffix(SUPPORTED)


@pytest.mark.parametrize(
    ("what", "names"),
    [
        (HYBRID, "falcon_h1 bamba lfm2 mamba mamba2 falcon_mamba zamba2"
         " recurrent_gemma nemotron_h olmo_hybrid qwen3_5 qwen3_5_text"),
        (EXPERTS, "qwen2_moe qwen3_moe mixtral olmoe flex_olmo_moe deepseek_v2"
         " deepseek_v3 deepseek_v32 gpt_oss phimoe llama4 llama4_text glm4_moe"
         " granitemoe minimax_m2 ernie4_5_moe dbrx kimi_k2"),
        (f"{EXPERTS} with {HYBRID}", "qwen3_next qwen3_5_moe jamba minimax"
         " granitemoehybrid lfm2_moe kimi_linear bailing_hybrid"),
        (MULTIMODAL, "qwen3_vl qwen2_5_vl phi4mm"),
        (f"{MULTIMODAL} with {EXPERTS}", "qwen3_vl_moe qwen3_omni_moe"),
        ("", "bert gemma qwen2x deepseek_v1 llama5"),
    ],
)  # fmt: skip
def test_types_that_are_known(what, names, tmp_path):
  """By the name alone, as in `config.model.family`, too."""
  why = f"{what} is not supported; " if what else ""
  for name in names.split():
    assert refusal(tmp_path, {"model_type": name}) == why, name
    with pytest.raises(ConfigError) as error:
      families.family_of(name, "config.model.family")
    rule = f"{why}{SUPPORTED}"
    assert str(error.value) == f"config.model.family = {name!r}: {rule}"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ({"model_type": "brand_new"}, ""),
        ({}, ""),
        ({"model_type": None}, ""),
        ({"model_type": "brand_new", "num_experts": 8},
         f"{EXPERTS} is not supported; "),
        ({"model_type": "brand_new", "num_experts": 0}, ""),
        ({"model_type": "brand_new", "linear_num_key_heads": 16},
         f"{HYBRID} is not supported; "),
        ({"model_type": "gemma3",
          "text_config": {"model_type": "gemma3_text"}},
         f"{MULTIMODAL} is not supported; save its language model"
         " (text_config, gemma3_text) alone; "),
        ({"model_type": "mistral3", "vision_config": {"hidden_size": 8},
          "text_config": {"model_type": "ministral3"}},
         f"{MULTIMODAL} is not supported; "),
        ({"model_type": "gemma4", "text_config":
          {"model_type": "gemma4_text", "num_experts": 128}},
         f"{MULTIMODAL} with {EXPERTS} is not supported; "),
        ({"model_type": "qwen3_5", "text_config":
          {"model_type": "qwen3_5_text", "linear_num_key_heads": 16}},
         f"{MULTIMODAL} with {HYBRID} is not supported; "),
        ({"model_type": "qwen3_5_moe", "text_config":
          {"model_type": "qwen3_5_moe_text", "num_experts": 256}},
         f"{MULTIMODAL} with {EXPERTS} and {HYBRID} is not supported; "),
    ],
)  # fmt: skip
def test_what_else_config_json_says(raw, why, tmp_path):
  assert refusal(tmp_path, raw) == why

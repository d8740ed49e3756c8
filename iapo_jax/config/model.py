"""What a decoder is: the numbers and choices in which families differ.

Families of models (Llama, Qwen, Gemma, ...) are values of these fields; there
is one decoder, and nothing in it asks for a family's name.
"""

import dataclasses

from iapo_jax.config.fields import at_least, field, one_of, positive

# Platforms that have kernels. `auto` takes them where they have run and won:
# on GPUs they ran, and took longer for probes; on TPUs they never ran.
FUSED_PLATFORMS = ("gpu", "tpu")
AUTO_FUSED = ()
# Fields that a run sets where everything else comes from a pretrained model.
OF_RUN = ("pretrained", "dtype", "remat", "attention")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """A rotary position embedding; `models.rotary` has the formulas."""

  kind: str = field(
      "default",
      "how contexts were made longer: linear divides positions by factor,"
      " llama3 low frequencies; yarn is arXiv 2309.00071",
      one_of("default", "linear", "llama3", "yarn"),
  )
  theta: float = field(10_000.0, "the base", positive())
  fraction: float = field(1.0, "share of each head's width that is rotated")
  factor: float = field(
      1.0, "how much longer contexts are, for all kinds but default",
      at_least(1),
  )  # fmt: skip
  original_positions: int = field(
      0, "context length before that, in tokens; for llama3 and yarn"
  )
  low_freq: float = field(
      1.0,
      "llama3: a frequency of at most so many turns in that length is divided"
      " by factor",
      positive(),
  )
  high_freq: float = field(
      4.0, "llama3: a frequency of at least so many turns stays as it is"
  )
  beta_fast: float = field(
      32.0,
      "yarn: a frequency of at least so many turns stays as it is",
      positive(),
  )
  beta_slow: float = field(
      1.0,
      "yarn: a frequency of at most so many turns is divided by factor",
      positive(),
  )
  amplitude: float = field(
      0.0, "yarn: multiplies the tables; 0 takes 0.1 ln(factor) + 1",
      at_least(0),
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The decoder."""

  pretrained: str = field(
      "",
      "Hugging Face folder or hub name that gives weights, tokenizer and every"
      " other field but dtype, remat and attention",
      aliases=("model_name", "model_name_or_path", "model_path", "path"),
  )
  family: str = field(
      "llama", "Hugging Face model_type that the policy is exported as"
  )
  vocab_size: int | None = field(
      None,
      "v, rows of the embedding; None takes the tokenizer's size, or the"
      " pretrained model's",
      at_least(1),
  )
  num_layers: int = field(
      2, "l", at_least(1), aliases=("num_hidden_layers", "n_layers", "layers")
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
  head_dim: int = field(32, "h, even", at_least(2))
  mlp_dim: int = field(
      256, "f, width of the MLP", at_least(1), aliases=("intermediate_size",)
  )
  rope: RopeConfig = RopeConfig()
  local_rope: RopeConfig = RopeConfig()
  rotary: tuple[str, ...] = field(
      (),
      "rotary embedding of each layer: global takes rope, local local_rope;"
      " () makes all global",
      one_of("global", "local", "none"),
  )
  windows: tuple[int, ...] = field(
      (),
      "for each layer, tokens that a token sees, itself included; 0 is all;"
      " () is 0 for every layer",
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
      0.0, "attention scores are divided by its square root; 0 takes head_dim",
      at_least(0),
  )  # fmt: skip
  score_cap: float = field(
      0.0, "c of attention scores c tanh(score / c); 0 is no cap", at_least(0)
  )
  logit_cap: float = field(0.0, "the same for the logits", at_least(0))
  activation: str = field(
      "silu", "of the gated MLP", one_of("silu", "gelu", "gelu_tanh"),
      aliases=("hidden_act",),
  )  # fmt: skip
  scale_embeddings: bool = field(False, "embeddings times sqrt(d) (Gemma)")
  tie_embeddings: bool = field(
      True, "the head reads the embedding table",
      aliases=("tie_word_embeddings",),
  )  # fmt: skip
  max_positions: int = field(
      0, "longest sequence that it was trained for, in tokens; 0 is unknown",
      at_least(0), aliases=("max_position_embeddings",),
  )  # fmt: skip
  dtype: str = field(
      "float32", "of matmuls and the cache; master weights are float32",
      one_of("float32", "bfloat16"),
      aliases=("torch_dtype", "bf16", "precision"),
  )  # fmt: skip
  remat: bool = field(
      False,
      "keep only the input of each layer for the backward pass: less memory,"
      " more time",
      aliases=("gradient_checkpointing",),
  )
  attention: str = field(
      "auto",
      "reference (XLA), fused (a kernel for GPUs and TPUs), or auto: fused"
      " where it has run and was faster, which is nowhere yet",
      one_of("auto", "reference", "fused"),
      aliases=("attn_implementation",),
  )

  @property
  def is_read(self) -> bool:
    """Whether the decoder is complete.

    It is not before a tokenizer or a pretrained model gave `vocab_size`.
    """
    return self.vocab_size is not None


def difference(ours: ModelConfig, theirs: ModelConfig) -> str | None:
  """The first field in which two decoders differ; None if they are equal."""
  for known in dataclasses.fields(ModelConfig):
    if getattr(ours, known.name) != getattr(theirs, known.name):
      return known.name
  return None

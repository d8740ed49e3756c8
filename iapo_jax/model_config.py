"""What a decoder is: the numbers and choices in which families differ.

Families of models (Llama, Qwen, Gemma, ...) are values of these fields; there
is one decoder, and nothing in it asks for a family's name.
"""

import dataclasses

# Of `RopeConfig.kind`, `ModelConfig.rotary`, ...: the values that are allowed.
ROPE_KINDS = ("default", "linear", "llama3", "yarn")
ROTARY = ("global", "local", "none")
NORM_POSITIONS = ("before", "after", "both")
QK_NORMS = ("none", "head", "projection")
ATTENTIONS = ("auto", "reference", "fused")
# Platforms that have kernels, and those where `auto` takes them.
FUSED_PLATFORMS = ("gpu", "tpu")
AUTO_FUSED = ("tpu",)
# Fields that a run sets where everything else comes from a pretrained model.
OF_RUN = ("pretrained", "dtype", "remat", "attention")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """A rotary position embedding; `models.rotary` has the formulas.

  Attributes:
    kind: `default`, or how contexts were made longer: `linear` (positions over
      `factor`), `llama3` (low frequencies over `factor`), `yarn` (arXiv
      2309.00071).
    theta: the base.
    fraction: of each head's width that is rotated.
    factor: of the kinds but `default`, by how much longer contexts are.
    original_positions: of `llama3` and `yarn`, the length trained before that.
    low_freq: of `llama3`, the most turns within that length at which a
      frequency is divided by all of `factor`.
    high_freq: of `llama3`, the least turns at which it is left alone.
    beta_fast: of `yarn`, the least turns at which a frequency is left alone.
    beta_slow: of `yarn`, the most turns at which it is divided by all.
    amplitude: of `yarn`, times the tables; 0 takes 0.1 · ln(factor) + 1.
  """

  kind: str = "default"
  theta: float = 10_000.0
  fraction: float = 1.0
  factor: float = 1.0
  original_positions: int = 0
  low_freq: float = 1.0
  high_freq: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  amplitude: float = 0.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The decoder.

  Attributes:
    pretrained: a Hugging Face folder or hub name that gives the weights, the
      tokenizer and every other field but `dtype`, `remat` and `attention`.
    family: the Hugging Face `model_type` that the policy is exported as.
    vocab_size: v, rows of the embedding; 0 takes the tokenizer's size or the
      pretrained model's.
    num_layers: l.
    d_model: d.
    num_heads: n.
    num_kv_heads: k; divides `num_heads`.
    head_dim: h, even.
    mlp_dim: f.
    rope: the rotary embedding of `global` layers.
    local_rope: that of `local` layers (Gemma 3).
    rotary: of each layer `global`, `local` or `none`; () makes all `global`.
    windows: of each layer how many tokens a token sees, itself and those right
      before it; 0 is all of them; () is 0 for every layer.
    norm_eps: of every RMSNorm.
    norm_position: RMSNorms `before` attention and MLP, `after` them (OLMo 2),
      or `both` (Gemma 2).
    norm_unit_offset: norms scale by 1 + weight (Gemma).
    qkv_bias: bias on the query, key and value projections (Qwen2).
    output_bias: bias on the projection after attention.
    mlp_bias: bias on the three projections of the MLP.
    qk_norm: RMSNorm on each query and key `head` (Qwen3), on the whole
      `projection` (OLMo 2), or `none`.
    query_scalar: attention scores are over its square root; 0 takes `head_dim`.
    score_cap: c of attention scores c · tanh(score / c); 0 leaves them.
    logit_cap: the same for the head's scores.
    activation: of the gated MLP.
    scale_embeddings: times √d (Gemma).
    tie_embeddings: the head reads the embedding table.
    max_positions: the longest sequence that it was trained for; 0 is unknown.
    dtype: of matmuls and the cache; weights are kept in fp32.
    remat: keep only the input of each layer for the backward pass. Otherwise
      products with weights and what attention returns are kept, too; norms,
      activations and attention's weights are computed again either way.
    attention: `reference` (XLA), `fused` (a kernel that holds a block of
      scores at a time; GPUs and TPUs), or `auto`: fused on TPUs.
  """

  pretrained: str = ""
  family: str = "llama"
  vocab_size: int = 0
  num_layers: int = 2
  d_model: int = 64
  num_heads: int = 2
  num_kv_heads: int = 2
  head_dim: int = 32
  mlp_dim: int = 256
  rope: RopeConfig = RopeConfig()
  local_rope: RopeConfig = RopeConfig()
  rotary: tuple[str, ...] = ()
  windows: tuple[int, ...] = ()
  norm_eps: float = 1e-6
  norm_position: str = "before"
  norm_unit_offset: bool = False
  qkv_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  qk_norm: str = "none"
  query_scalar: float = 0.0
  score_cap: float = 0.0
  logit_cap: float = 0.0
  activation: str = "silu"
  scale_embeddings: bool = False
  tie_embeddings: bool = True
  max_positions: int = 0
  dtype: str = "float32"
  remat: bool = False
  attention: str = "auto"


def difference(ours: ModelConfig, theirs: ModelConfig) -> str | None:
  """The first field in which two decoders differ; None where they do not."""
  for field in dataclasses.fields(ModelConfig):
    if getattr(ours, field.name) != getattr(theirs, field.name):
      return field.name
  return None

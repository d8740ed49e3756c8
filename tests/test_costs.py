"""The arithmetic of what a step needs, by hand."""

from iapo_jax.config.model import ModelConfig
from iapo_jax.run import costs

# Two layers of width 4 with two query heads and one key head of width 2, an
# MLP of width 3, a vocabulary of 5.
MODEL = ModelConfig(
    vocab_size=5, num_layers=2, d_model=4, num_heads=2, num_kv_heads=1,
    head_dim=2, mlp_dim=3,
)  # fmt: skip
# Two prompts of 3 tokens, each with two completions of 2.
BATCH = costs.Batch(MODEL, prompts=2, group=2, prompt_tokens=3, new_tokens=2)
# A layer: queries and output 4 · 4 each, keys and values 4 · 2 each, the MLP's
# three 4 · 3: 32 + 16 + 36 = 84; two layers: 168. The head: 5 · 4 = 20.


def test_weights_and_attention():
  assert costs.layer_weights(MODEL) == 168
  # Scores and sums, each 2 · 2 layers · 2 heads · width 2.
  assert costs.attended_flops(MODEL) == 32


def test_a_pass():
  # A prompt: 2 · 168 · 3 = 1008, and its tokens attend to 1 + 2 + 3 = 6, times
  # 32: 192. A completion: 2 · (168 + 20) · 2 = 752, and its tokens attend to
  # 4 + 5 = 9: 288. Two prompts and four completions.
  assert costs.pass_flops(BATCH) == 2 * 1200 + 4 * 1040
  assert costs.step_flops(BATCH) == 5 * 6560


def test_probes():
  # At positions 0, 1 and 2, each of two tokens: 2 · 168 · 2 + 2 · 20 = 712. The
  # two attend to 1 + 2 of themselves and twice to 3, 4, 5 before: 9 + 11 + 13.
  assert costs.probe_flops(BATCH, 1, 2) == 4 * (3 * 712 + 32 * 33)
  # At every second position: 0 and 2.
  assert costs.probe_flops(BATCH, 2, 2) == 4 * (2 * 712 + 32 * 22)
  # The last is always probed: at every third, 0 and 2, too.
  assert costs.probe_flops(BATCH, 3, 2) == costs.probe_flops(BATCH, 2, 2)


def test_reads_of_decoding():
  # Two tokens, each all 188 weights, in two bytes.
  assert costs.weight_reads(BATCH, 2) == 2 * 2 * 188
  # Prompts: 2 of 3 slots at each of 2 tokens: 12. Completions: 4 times 1 + 2.
  # A slot has keys and values of width 2 in 2 layers: 8 numbers.
  assert costs.cache_reads(BATCH, 2) == 2 * 8 * (12 + 12)

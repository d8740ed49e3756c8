"""Live against transformers and torch: other weights than the golden ones."""

import dataclasses
import json
import shutil

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import tiny

pytest.importorskip("torch", reason="torch is installed in CI only")

import safetensors.torch
import torch
import transformers
from transformers.models.auto import modeling_auto

from iapo_jax.config import parsing as config_lib
from iapo_jax.config.model import for_length
from iapo_jax.core.types import Prompts
from iapo_jax.hf import families, folder, weights
from iapo_jax.models import head
from iapo_jax.run import sources, trainer
from iapo_jax.run import workdir as workdir_lib
from iapo_jax.tools import export, scoring

pytestmark = pytest.mark.full

names = pytest.mark.parametrize("name", checkpoints.CONFIGS)
TOKENS = np.random.default_rng(7).integers(3, 61, (2, 48))


def test_architectures_are_those_of_transformers():
  theirs = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
  for name, family in families.FAMILIES.items():
    assert family.architecture == theirs[name]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Each family's model in torch, its folder, decoder and weights."""
  cache = {}

  def make(name):
    if name not in cache:
      model = checkpoints.make(name, seed=5)
      place = tmp_path_factory.mktemp(name)
      model.save_pretrained(place)
      cfg = for_length(folder.read_model(place), checkpoints.LONGEST)
      cache[name] = model, place, cfg, weights.load(place, cfg)
    return cache[name]

  return make


def log_distribution(params, cfg, tokens):
  hidden = tiny.full_forward(params, tokens, cfg)
  return jax.nn.log_softmax(head.logits(params, hidden, cfg=cfg))


def torch_log_distribution(model, tokens):
  with torch.no_grad():
    logits = model(torch.tensor(tokens)).logits
  return torch.log_softmax(logits.float(), -1).numpy()


@names
def test_every_logit_beyond_the_window(made, name):
  model, _, cfg, params = made(name)
  ours = log_distribution(params, cfg, TOKENS)
  theirs = torch_log_distribution(model, TOKENS)
  np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@names
def test_greedy_continuations_are_those_of_generate(made, name):
  """32 tokens, both with their own key/value caches."""
  model, _, cfg, params = made(name)
  prompts = Prompts(
      tokens=jnp.asarray(TOKENS[:, :11]),
      lengths=jnp.array([11, 11]),
      gold=jnp.zeros((2, 1), jnp.int32),
      gold_lengths=jnp.ones(2, jnp.int32),
      rows=jnp.arange(2),
  )
  rolled = tiny.sample(
      params,
      prompts,
      jax.random.key(0),
      cfg=cfg,
      group_size=1,
      max_tokens=32,
      eos_ids=(cfg.vocab_size,),
      pad_id=0,
      temperature=0.0,
  )
  model.generation_config.eos_token_id = None  # nothing ends before 32
  theirs = model.generate(
      torch.tensor(TOKENS[:, :11]), do_sample=False, max_new_tokens=32
  )[:, 11:]
  np.testing.assert_array_equal(rolled.tokens, theirs.numpy())


@names
def test_answer_entropies_are_brute_force_re_encodings(made, name):
  model, _, cfg, params = made(name)
  rows = checkpoints.sequences(seed=11)
  items = [
      scoring.Item(tuple(p), tuple(c), checkpoints.POSTFIX, len(c))
      for p, c in rows
  ]
  for i, found in scoring.score(params, items, cfg=cfg, batch_size=2):
    logprobs, entropies, answers = checkpoints.expected(model, *rows[i])
    np.testing.assert_allclose(found.logprobs, logprobs, atol=1e-4)
    np.testing.assert_allclose(found.entropies, entropies, atol=1e-4)
    np.testing.assert_allclose(found.answer_entropies, answers, atol=1e-4)


@names
def test_load_and_save_give_transformers_the_same_model(made, name, tmp_path):
  model, place, cfg, params = made(name)
  shutil.copyfile(place / "config.json", tmp_path / "config.json")
  weights.save(tmp_path, params, cfg, dtype="float32", max_shard_bytes=30_000)
  again = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path, attn_implementation="eager", dtype=torch.float32
  ).eval()
  ours, theirs = again.state_dict(), model.state_dict()
  assert ours.keys() == theirs.keys()
  for key, tensor in theirs.items():
    assert torch.equal(ours[key], tensor), key
  np.testing.assert_array_equal(
      torch_log_distribution(again, TOKENS),
      torch_log_distribution(model, TOKENS),
  )


OLD_SPELLINGS = {
    "llama": {
        "rope_theta": 500.0,
        "rope_scaling": {
            "type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        },
    },
    "qwen3_yarn": {
        "rope_theta": 1000.0,
        "rope_scaling": {
            "type": "yarn", "factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "gemma3": {
        "rope_theta": 1000.0, "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "sliding_window_pattern": 3,
    },
    "phi3": {"rope_theta": 100.0, "partial_rotary_factor": 0.5},
    "mistral": {"rope_theta": 300.0},
    "gemma2": {"rope_theta": 300.0},
    "qwen2_window": {"rope_theta": 300.0, "rope_scaling": None},
    "olmo2": {"rope_theta": 300.0},
    "olmo3": {
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 8.0, "attention_factor": 1.208,
            "beta_fast": 32.0, "beta_slow": 1.0,
            "original_max_position_embeddings": 16,
        },
    },
    "olmo3_plain": {"rope_scaling": None},
    "phi3_longrope": {
        "rope_theta": 10_000.0, "partial_rotary_factor": 0.75,
        "rope_scaling": {
            "type": "longrope", "short_factor": [1.0, 1.2, 1.4],
            "long_factor": [1.1, 2.0, 4.0],
        },
    },
    "smollm3": {"rope_theta": 300.0},
}  # fmt: skip


@pytest.mark.parametrize("name", OLD_SPELLINGS)
def test_the_older_spelling_of_rotary_embeddings(made, name, tmp_path):
  """`rope_theta` beside `rope_scaling`, as most of the hub has it."""
  _, place, new, params = made(name)
  shutil.copytree(place, tmp_path / "old")
  path = tmp_path / "old" / "config.json"
  raw = json.loads(path.read_text())
  del raw["rope_parameters"], raw["dtype"]
  raw.pop("layer_types", None)  # which followed from other fields
  raw |= OLD_SPELLINGS[name] | {"torch_dtype": "float32"}
  path.write_text(json.dumps(raw))
  cfg = for_length(folder.read_model(tmp_path / "old"), checkpoints.LONGEST)
  assert cfg.windows == new.windows
  assert cfg.rotary == new.rotary
  model = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path / "old", attn_implementation="eager", dtype=torch.float32
  ).eval()
  ours = log_distribution(params, cfg, TOKENS)
  theirs = torch_log_distribution(model, TOKENS)
  np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("length", [48, 49, 96])
def test_longrope_on_both_sides_of_the_original_length(made, length):
  """transformers chooses by the length of the call, at 48 | 49 tokens."""
  model, _, cfg, params = made("phi3_longrope")
  tokens = np.random.default_rng(8).integers(3, 61, (2, length))
  chosen = {48: "short"}.get(length, "long")
  auto = dataclasses.replace(cfg, rope_factors="auto")
  assert for_length(auto, length).rope_factors == chosen
  theirs = torch_log_distribution(model, tokens)
  gaps = {}
  for factors in ("short", "long"):
    decoder = dataclasses.replace(cfg, rope_factors=factors)
    ours = log_distribution(params, decoder, tokens)
    gaps[factors] = np.abs(ours - theirs).max()
  assert gaps.pop(chosen) < 1e-4
  assert gaps.popitem()[1] > 0.1, "the other factors give another model"


def test_longrope_scores_and_rollouts_of_long_sequences(made):
  """Scores choose by each item's length; a rollout has one set throughout."""
  model, _, cfg, params = made("phi3_longrope")
  auto = dataclasses.replace(cfg, rope_factors="auto")
  rng = np.random.default_rng(9)
  rows = [
      tuple(rng.integers(3, 61, n).tolist() for n in lengths)
      for lengths in ((49, 20), (9, 20))  # long, short
  ]
  items = [
      scoring.Item(tuple(p), tuple(c), checkpoints.POSTFIX, len(c))
      for p, c in rows
  ]
  for i, found in scoring.score(params, items, cfg=auto, batch_size=2):
    logprobs, entropies, answers = checkpoints.expected(model, *rows[i])
    np.testing.assert_allclose(found.logprobs, logprobs, atol=1e-4)
    np.testing.assert_allclose(found.entropies, entropies, atol=1e-4)
    np.testing.assert_allclose(found.answer_entropies, answers, atol=1e-4)
  prompt = rows[0][0]
  rolled = tiny.sample(
      params,
      Prompts(
          tokens=jnp.asarray([prompt]),
          lengths=jnp.array([49]),
          gold=jnp.zeros((1, 1), jnp.int32),
          gold_lengths=jnp.ones(1, jnp.int32),
          rows=jnp.arange(1),
      ),
      jax.random.key(0),
      cfg=dataclasses.replace(cfg, rope_factors="long"),
      group_size=1,
      max_tokens=24,
      eos_ids=(cfg.vocab_size,),
      pad_id=0,
      temperature=0.0,
  )
  np.testing.assert_array_equal(
      rolled.tokens[0], checkpoints.continuation(model, prompt, 24)
  )


def test_llama_of_a_real_size_in_positions():
  """The published llama3 scaling, at positions in the tens of thousands."""
  rope = {
      "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0,
      "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192,
  }  # fmt: skip
  config = transformers.LlamaConfig(
      hidden_size=128, num_attention_heads=2, head_dim=64,
      max_position_embeddings=131_072, rope_parameters=rope,
  )  # fmt: skip
  from transformers.models.llama import modeling_llama

  from iapo_jax.hf import families
  from iapo_jax.models import rotary

  positions = np.array([[0, 1, 1000, 8191, 60_000, 131_071]])
  embedding = modeling_llama.LlamaRotaryEmbedding(config)
  theirs = embedding(torch.zeros(1), torch.tensor(positions))
  ours = rotary.tables(jnp.asarray(positions), families.model_of(config))
  for table, expected in zip(ours, theirs, strict=True):
    # At position p a frequency off by a last digit turns by p · 1e-7.
    np.testing.assert_allclose(
        table[0], expected[..., :32].numpy(), atol=131_072 * 1.2e-7
    )
    np.testing.assert_allclose(
        table[0][:, :3], expected[:, :3, :32].numpy(), atol=2e-4
    )


def test_a_runs_export_is_a_model_of_transformers(tmp_path):
  """Trained from nothing, exported, loaded by the Auto classes."""
  config = config_lib.default()
  config.num_steps = 1
  config.warm_start.num_steps = 2
  config.evaluation.update({"every": 0, "batch_size": 8})
  config.data.arithmetic.update(
      {"train_problems": 16, "validation_problems": 8, "test_problems": 8}
  )
  config.update_from_flattened_dict(runs.LEAN)
  config.model.update({"qkv_bias": True, "family": "qwen2"})
  cfg = config_lib.parse(config)
  trainer.train(cfg, tmp_path / "run")
  source = sources.last(tmp_path / "run")
  files = export.export(source, tmp_path / "out")
  assert "model.safetensors" in files
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
  assert type(model) is transformers.Qwen2ForCausalLM
  resolved = workdir_lib.load_config(tmp_path / "run").model
  params = weights.load(tmp_path / "out", resolved)
  tokens = TOKENS % resolved.vocab_size
  np.testing.assert_allclose(
      log_distribution(params, resolved, tokens),
      torch_log_distribution(model.eval(), tokens),
      atol=1e-4,
  )
  tensors = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
  assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
  end = model.generation_config.eos_token_id
  assert end == model.config.eos_token_id == 1

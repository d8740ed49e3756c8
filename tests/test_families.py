"""Every family against what transformers said of it (tests/checkpoints.py)."""

import dataclasses
import functools
import json
import pathlib
import shutil

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny
from flax import linen as nn

from iapo_jax.config import parsing as config_lib
from iapo_jax.config.model import for_length
from iapo_jax.core.types import Prompts
from iapo_jax.hf import folder, weights
from iapo_jax.models import head, transformer
from iapo_jax.run import logs, trainer
from iapo_jax.tools import scoring

GOLDEN = pathlib.Path(__file__).parent / "golden"
names = pytest.mark.parametrize("name", checkpoints.CONFIGS)


@functools.cache
def loaded(name):
  cfg = for_length(folder.read_model(GOLDEN / name), checkpoints.LONGEST)
  params = weights.load(GOLDEN / name, cfg)
  found = safetensors.numpy.load_file(GOLDEN / name / "expected.safetensors")
  return cfg, params, found


def prompts_of(rows):
  width = max(map(len, rows)) + 2
  padded = np.zeros((len(rows), width), np.int32)
  for i, row in enumerate(rows):
    padded[i, : len(row)] = row
  return Prompts(
      tokens=jnp.asarray(padded),
      lengths=jnp.array([len(row) for row in rows]),
      gold=jnp.zeros((len(rows), 1), jnp.int32),
      gold_lengths=jnp.ones(len(rows), jnp.int32),
      rows=jnp.arange(len(rows)),
  )


def test_windows_are_shorter_than_the_sequences():
  longest = max(map(sum, checkpoints.LENGTHS))
  windows = [max(loaded(n)[0].windows, default=0) for n in checkpoints.CONFIGS]
  assert sum(0 < window < longest // 3 for window in windows) >= 6


@pytest.mark.full
@names
def test_the_scores_of_a_ragged_batch_are_those_of_torch(name):
  """Log-probabilities, entropies and answer entropies within 1e-4 nats."""
  cfg, params, expected = loaded(name)
  items = [
      scoring.Item(
          tuple(prompt), tuple(completion), checkpoints.POSTFIX, len(completion)
      )
      for prompt, completion in checkpoints.sequences()
  ]
  # Chunks of 5 end within, and one batch of 3 rows holds all of them.
  found = dict(scoring.score(params, items, cfg=cfg, batch_size=3))
  for i, item in enumerate(items):
    for kind in ("logprobs", "entropies", "answer_entropies"):
      ours, theirs = getattr(found[i], kind), expected[f"{kind}.{i}"]
      assert np.ptp(theirs) > 0.1, "the distributions should differ"
      np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    answers = expected[f"answer_entropies.{i}"]
    np.testing.assert_allclose(
        found[i].information, answers[:-1] - answers[1:], atol=2e-4
    )
    assert len(found[i].information) == len(item.completion)


@pytest.mark.full
@names
def test_greedy_continuations_are_those_of_torch(name):
  cfg, params, expected = loaded(name)
  rows = [prompt for prompt, _ in checkpoints.sequences()]
  rolled = tiny.sample(
      params,
      prompts_of(rows),
      jax.random.key(0),
      cfg=cfg,
      group_size=1,
      max_tokens=checkpoints.GREEDY,
      eos_ids=(cfg.vocab_size,),
      pad_id=0,
      temperature=0.0,
  )
  for i in range(len(rows)):
    np.testing.assert_array_equal(rolled.tokens[i], expected[f"greedy.{i}"])


@pytest.mark.full
@names
def test_a_rollout_leaves_what_a_replay_leaves(name):
  """Decoding token by token, scoring at once: one model."""
  cfg, params, _ = loaded(name)
  prompts = prompts_of([prompt for prompt, _ in checkpoints.sequences()])
  rolled = tiny.sample(
      params,
      prompts,
      jax.random.key(1),
      cfg=cfg,
      group_size=2,
      max_tokens=12,
      eos_ids=(2,),
      pad_id=0,
      temperature=1.0,
  )
  stats = tiny.score(
      params,
      prompts,
      rolled.tokens,
      cfg=cfg,
      group_size=2,
      temperature=1.0,
      chunk=5,
  )
  gap = jnp.where(rolled.mask, stats.logprob - rolled.logprobs, 0.0)
  np.testing.assert_allclose(gap, 0.0, atol=1e-4)
  _, context = tiny.replay(
      params, prompts, rolled.tokens, cfg=cfg, group_size=2
  )
  ours, theirs = context[1], rolled.context[1]
  np.testing.assert_array_equal(ours.positions, theirs.positions)
  written = jnp.arange(13) <= rolled.lengths[:, None]
  gap = jnp.where(written[:, None, None], ours.keys - theirs.keys, 0.0)
  np.testing.assert_allclose(gap, 0.0, atol=1e-4)


@names
def test_weights_are_the_decoders_own_and_come_back_bit_by_bit(name, tmp_path):
  cfg, params, _ = loaded(name)
  fresh = functools.partial(transformer.init, cfg=cfg)
  shapes = nn.unbox(jax.eval_shape(fresh, jax.random.key(0)))
  alike = jax.tree.map(lambda a, b: a.shape == b.shape, shapes, params)
  assert all(jax.tree.leaves(alike))
  theirs = safetensors.numpy.load_file(GOLDEN / name / "model.safetensors")
  # Shards so small that most tensors have a file of their own.
  files = weights.save(
      tmp_path, params, cfg, dtype="bfloat16", max_shard_bytes=4000
  )
  assert len(files) > 4
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  ours = {}
  for file in files:
    ours |= safetensors.numpy.load_file(tmp_path / file)
  assert ours.keys() == theirs.keys() == index["weight_map"].keys()
  assert index["metadata"]["total_size"] == sum(
      tensor.nbytes for tensor in theirs.values()
  )
  for tensor, values in theirs.items():
    assert ours[tensor].dtype == values.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        ours[tensor].view(np.uint16), values.view(np.uint16)
    )
  again = weights.load(tmp_path, cfg, dtype="bfloat16")
  for leaf, before in zip(
      jax.tree.leaves(again), jax.tree.leaves(params), strict=True
  ):
    np.testing.assert_array_equal(leaf.astype(jnp.float32), before)


@pytest.mark.full
@names
def test_logits_do_not_depend_on_remat(name):
  cfg, params, _ = loaded(name)
  tokens = jnp.array([checkpoints.sequences()[0][1]])
  positions = jnp.arange(tokens.shape[1])[None]

  def loss(params, cfg):
    hidden, _ = transformer.extend(params, tokens, positions, cfg=cfg)
    stats = head.token_statistics(params, hidden, tokens, cfg=cfg)
    return jnp.sum(stats.logprob)

  gradient = jax.jit(jax.grad(loss), static_argnums=1)
  plain = gradient(params, cfg)
  saving = gradient(params, dataclasses.replace(cfg, remat=True))
  for ours, theirs in zip(
      jax.tree.leaves(saving), jax.tree.leaves(plain), strict=True
  ):
    assert np.abs(theirs).max() > 0, "every weight should matter"
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.fixture
def with_words(request, tmp_path):
  """A golden folder with the synthetic task's tokenizer in it."""
  place = tmp_path / "model"
  shutil.copytree(GOLDEN / request.param, place)
  tiny.load_task().tokenizer.save_pretrained(place)
  return place


def small_run(place, **overrides):
  config = config_lib.default()
  config.model.pretrained = str(place)
  config.num_steps = 2
  config.prompts_per_step = 8
  config.group_size = 2
  config.rollout.max_tokens = 10
  config.optimizer.learning_rate = 1e-3
  config.evaluation.update({"every": 0, "batch_size": 8})
  config.data.arithmetic.update(
      {"train_problems": 16, "validation_problems": 8, "test_problems": 8}
  )
  for name, value in overrides.items():
    config.update_from_flattened_dict({name.replace("__", "."): value})
  return config_lib.parse(config)


# Layers with biases, soft caps and windows, two kinds of positions, or none;
# fused projections and partly rotated heads.
FAMILIES = ("qwen2", "gemma2", "gemma3", "smollm3", "phi3_longrope")


@pytest.mark.full
@pytest.mark.parametrize("with_words", FAMILIES, indirect=True)
def test_a_step_trains_on_families(with_words, tmp_path):
  """Two updates of the whole compiled step, on eight devices."""
  trainer.train(small_run(with_words), tmp_path / "run")
  lines = logs.stage_metrics(tmp_path / "run", "rl")
  assert [line["step"] for line in lines] == [1, 2]
  for line in lines:
    numbers = {k: v for k, v in line.items() if k != "stage"}
    assert all(np.isfinite(value) for value in numbers.values())
    assert -1.5 <= line["reward/total"] <= 1.5
    assert line["update/grad_norm"] > 0
    # Rollout and training pass are the same policy.
    assert line["update/logprob_gap"] < 1e-3

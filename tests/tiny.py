"""Small decoders and ragged batches that several tests share.

Functions of weights are compiled: as one program they take less time than
operation by operation, and tests of a process share it.
"""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from iapo_jax.config.data import ArithmeticConfig
from iapo_jax.config.model import ModelConfig
from iapo_jax.config.schema import Config
from iapo_jax.core.types import Prompts
from iapo_jax.data import arithmetic, task
from iapo_jax.hf import tokenizer
from iapo_jax.models import head, transformer
from iapo_jax.rl import policy, rollout

# Real data, where somebody has put it beside the repository.
SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"
MODEL = ModelConfig(
    vocab_size=29,
    num_layers=2,
    d_model=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=24,
)
# Every optional part of the decoder at once.
FULL = dataclasses.replace(
    MODEL, qkv_bias=True, qk_norm="head", tie_embeddings=False, num_kv_heads=1
)
PAD, EOS, SECOND_EOS = 0, 1, 2


@functools.partial(jax.jit, static_argnames=("cfg", "seed", "sharpness"))
def make_params(cfg=MODEL, seed=0, sharpness=3.0):
  """Random weights whose distributions are far from uniform."""
  params = nn.unbox(transformer.init(jax.random.key(seed), cfg))
  # Biases and norms start as constants: noise makes them matter.
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  leaves = [
      leaf + 0.1 * jax.random.normal(key, leaf.shape)
      for key, leaf in zip(keys, leaves, strict=True)
  ]
  params = jax.tree.unflatten(tree, leaves)
  table = "embedding" if cfg.tie_embeddings else "head"
  return params | {table: sharpness * params[table]}


def make_prompts(lengths=(5, 1, 3), width=6, vocab=29, seed=3):
  """Ragged right-padded prompts; golds are the tokens 5, 6, 7, ..."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(3, vocab, (len(lengths), width))
  mask = np.arange(width) < np.asarray(lengths)[:, None]
  count = len(lengths)
  return Prompts(
      tokens=jnp.asarray(np.where(mask, tokens, PAD), jnp.int32),
      lengths=jnp.asarray(lengths, jnp.int32),
      gold=jnp.arange(5, 5 + count, dtype=jnp.int32)[:, None],
      gold_lengths=jnp.ones(count, jnp.int32),
      rows=jnp.arange(count),
  )


@functools.partial(jax.jit, static_argnames="cfg")
def full_forward(params, tokens, cfg):
  """Hidden states of whole unpadded sequences, from position 0."""
  tokens = jnp.asarray(tokens, jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  hidden, _ = transformer.extend(params, tokens, positions, cfg=cfg)
  return hidden


@functools.partial(
    jax.jit, static_argnames=("cfg", "group_size", "temperature", "chunk")
)
def score(
    params, prompts, tokens, *, cfg=MODEL, group_size, temperature=1.0, chunk=4
):
  """Statistics [b, t] of completions; the last token predicts nothing."""
  hidden, _ = policy.replay(
      params, prompts, tokens[:, :-1], cfg=cfg, group_size=group_size
  )
  return head.token_statistics(
      params, hidden, tokens, cfg=cfg, temperature=temperature, chunk=chunk
  )


@functools.partial(
    jax.jit,
    static_argnames=(
        "cfg", "group_size", "max_tokens", "eos_ids", "pad_id", "temperature",
        "top_k", "top_p", "planting",
    ),
)  # fmt: skip
def sample(
    params, prompts, key, *, cfg=MODEL, group_size, max_tokens,
    eos_ids=(EOS, SECOND_EOS), pad_id=PAD, temperature=1.0, top_k=0,
    top_p=1.0, planting=None,
):  # fmt: skip
  """Completions of a small decoder."""
  return rollout.sample(
      params, prompts, key, cfg=cfg, group_size=group_size,
      max_tokens=max_tokens, eos_ids=eos_ids, pad_id=pad_id,
      temperature=temperature, top_k=top_k, top_p=top_p, planting=planting,
  )  # fmt: skip


replay = jax.jit(policy.replay, static_argnames=("cfg", "group_size"))


def array_sizes(jaxpr):
  """Elements of every array a program makes, inner programs included."""
  sizes = []
  for equation in jaxpr.eqns:
    sizes += [v.aval.size for v in equation.outvars if hasattr(v.aval, "size")]
    for value in jax.tree.leaves(
        equation.params, is_leaf=lambda x: hasattr(x, "eqns")
    ):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        sizes += array_sizes(inner)
  return sizes


def words():
  """The tokenizer of the synthetic task, without the task's problems."""
  return tokenizer.word_tokenizer(
      arithmetic.vocabulary(ArithmeticConfig()),
      pad=arithmetic.PAD, eos=arithmetic.EOS, unknown=arithmetic.UNKNOWN,
  )  # fmt: skip


def load_task(cfg=None, *folders):
  """The task of a configuration, its problems read."""
  cfg = cfg or Config()
  return task.load(cfg, task.read(cfg.data), *folders)

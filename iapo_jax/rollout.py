"""Sampling: prefill once per prompt, then one while_loop in lock-step."""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from iapo_jax import policy, sharding
from iapo_jax.model_config import ModelConfig
from iapo_jax.models import head, transformer
from iapo_jax.types import (
    Array,
    Context,
    KVSegment,
    Params,
    Prompts,
    Rollout,
    TokenStatistics,
)


@struct.dataclass
class _Decoding:
  """The loop's carry; before iteration i, tokens 1..i are sampled.

  Attributes:
    index: int32[], i: the slot fed next.
    token: int32[b], the token of that slot.
    ended: bool[b], whether an EOS was sampled.
    lengths: int32[b], tokens sampled so far, EOS included.
    tokens: int32[b, t].
    logprobs: fp32[b, t].
    entropies: fp32[b, t].
    keys: [l, b, t + 1, k, h], slots 0..i−1 written.
    values: likewise.
  """

  index: Array
  token: Array
  ended: Array
  lengths: Array
  tokens: Array
  logprobs: Array
  entropies: Array
  keys: Array
  values: Array


@jax.named_scope("rollout")
def sample(
    params: Params,
    prompts: Prompts,
    key: Array,
    *,
    cfg: ModelConfig,
    group_size: int,
    max_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    temperature: float,
) -> Rollout:
  """Samples `group_size` completions of every prompt.

  Each sequence draws from its own key (the row folded in), so a row's sample
  depends neither on its neighbours nor on how rows lie on devices. The loop
  stops when every sequence has ended. Then the last token is fed once more, so
  that the cache holds every token a probe may look at.

  Args:
    params: weights in the compute dtype.
    prompts: q prompts.
    key: a PRNG key.
    cfg: the decoder.
    group_size: g.
    max_tokens: t.
    eos_ids: tokens any of which ends a completion.
    pad_id: fills `tokens` after the end.
    temperature: divides the logits; 0 takes the most probable token and
      reports the statistics of the undivided logits.

  Returns:
    The rollout of b = q · g sequences.
  """
  prompt = policy.prefill(params, prompts, cfg=cfg)
  start = policy.first_positions(prompts, group_size)
  rows = start.shape[0]
  row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))

  feed = functools.partial(_feed, params, prompt, start, cfg=cfg)

  def step(carry: _Decoding) -> _Decoding:
    hidden, carry = feed(carry)
    scores = head.logits(
        params, hidden, cfg=cfg, temperature=temperature or 1.0
    )
    scores = sharding.constrain(scores, "batch", "vocab")
    token = _choose(scores, row_keys, carry.index, greedy=temperature == 0)
    stats = head.statistics(scores, token)
    ends = _is_any(token, eos_ids)
    return _append(carry, token, stats, ends, pad_id)

  carry = jax.lax.while_loop(
      lambda c: (c.index < max_tokens) & ~jnp.all(c.ended),
      step,
      _empty(prompts, cfg, group_size, max_tokens, pad_id),
  )
  _, carry = feed(carry)
  return Rollout(
      tokens=carry.tokens,
      lengths=carry.lengths,
      ended=carry.ended,
      logprobs=carry.logprobs,
      entropies=carry.entropies,
      context=_context(prompt, start, carry.replace(index=carry.index + 1)),
  )


def _feed(
    params: Params,
    prompt: KVSegment,
    start: Array,
    carry: _Decoding,
    *,
    cfg: ModelConfig,
) -> tuple[Array, _Decoding]:
  """Runs the token of slot `index`; stores its keys and values.

  Returns its hidden states [b, d] and the carry, the index unchanged.
  """
  hidden, new = transformer.extend(
      params,
      carry.token[:, None],
      (start + carry.index)[:, None],
      _context(prompt, start, carry),
      cfg=cfg,
  )
  at = (0, 0, carry.index, 0, 0)
  return hidden[:, 0], carry.replace(
      keys=jax.lax.dynamic_update_slice(carry.keys, new.keys, at),
      values=jax.lax.dynamic_update_slice(carry.values, new.values, at),
  )


def _append(
    carry: _Decoding,
    token: Array,
    stats: TokenStatistics,
    ends: Array,
    pad_id: int,
) -> _Decoding:
  """The carry with a further token [b] in every row that has not ended."""
  live = ~carry.ended

  def write(log: Array, value: Array, rest: int | float) -> Array:
    column = jnp.where(live, value, rest)[:, None]
    return jax.lax.dynamic_update_slice(log, column, (0, carry.index))

  return carry.replace(
      index=carry.index + 1,
      token=token,
      ended=carry.ended | ends,
      lengths=carry.lengths + live,
      tokens=write(carry.tokens, token, pad_id),
      logprobs=write(carry.logprobs, stats.logprob, 0.0),
      entropies=write(carry.entropies, stats.entropy, 0.0),
  )


def _empty(
    prompts: Prompts,
    cfg: ModelConfig,
    group_size: int,
    max_tokens: int,
    pad_id: int,
) -> _Decoding:
  """The carry before anything was fed: slot 0 is the last prompt token."""
  token = policy.last_prompt_tokens(prompts, group_size)
  rows = token.shape[0]
  cache = jnp.zeros(
      (cfg.num_layers, rows, max_tokens + 1, cfg.num_kv_heads, cfg.head_dim),
      cfg.dtype,
  )
  cache = sharding.constrain(
      cache, "layers", "batch", "length", "kv_heads", "head_dim"
  )
  log = jnp.zeros((rows, max_tokens), jnp.float32)
  return _Decoding(
      index=jnp.int32(0),
      token=token,
      ended=jnp.zeros(rows, bool),
      lengths=jnp.zeros(rows, jnp.int32),
      tokens=jnp.full((rows, max_tokens), pad_id, jnp.int32),
      logprobs=log,
      entropies=log,
      keys=cache,
      values=cache,
  )


def _context(prompt: KVSegment, start: Array, carry: _Decoding) -> Context:
  """The prompt segment and the slots written before `index`."""
  slots = jnp.arange(carry.keys.shape[2])
  visible = (slots < carry.index)[None]
  positions = start[:, None] + slots
  return prompt, KVSegment(carry.keys, carry.values, visible, positions)


def _choose(
    scores: Array, row_keys: Array, index: Array, *, greedy: bool
) -> Array:
  """int32[b]: a sample of softmax(scores [b, v]) by the Gumbel trick."""
  if not greedy:
    keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, index)
    noise = jax.vmap(lambda k: jax.random.gumbel(k, scores.shape[1:]))(keys)
    scores = scores + noise
  return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def _is_any(token: Array, ids: tuple[int, ...]) -> Array:
  """bool[b]: whether a token is one of `ids`."""
  return jnp.any(token[:, None] == jnp.asarray(ids, jnp.int32), axis=-1)

"""Samples completions: prefills each prompt once, then decodes in lock-step."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from iapo_jax.config.model import ModelConfig
from iapo_jax.core import draws, sharding
from iapo_jax.core.types import (
  Array,
  Context,
  KVSegment,
  Params,
  Prompts,
  Rollout,
  TokenStatistics,
)
from iapo_jax.models import head, transformer
from iapo_jax.rl import planting as planting_lib
from iapo_jax.rl import policy

_PLANTING = 2**32 - 1  # folded into the key; no row has this number


@struct.dataclass
class _Decoding:
  """Carry of the loop. Before iteration i, tokens 1..i are sampled.

  Attributes:
    index: int32[], i, the slot that is fed next.
    token: int32[b], the token of that slot.
    rolled: the rollout so far, without its context.
    keys: [l, b, k, h, s], slots 0..i−1 written; s grows to t + 1.
    values: [l, b, k, s, h], with the same slots.
  """

  index: Array
  token: Array
  rolled: Rollout
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
    top_k: int = 0,
    top_p: float = 1.0,
    planting: planting_lib.Planting | None = None,
) -> Rollout:
  """Samples `group_size` completions of every prompt.

  Each sequence draws from its own key (the row folded in), so a row's sample
  depends neither on its neighbours nor on how rows lie on devices. The loop
  stops when every sequence has ended. Then the last token is fed once more, so
  that the cache holds every token that a probe may see.

  `params` are in the compute dtype. `temperature` divides the logits; 0 takes
  the most probable token and reports the statistics of the undivided logits.
  `top_k` and `top_p` are those of `head.truncated`; the statistics are then
  those of the truncated distribution. Training leaves them out.
  `planting` replaces sampled tokens, by separate draws. Log-probabilities are
  those of the written tokens. Entropies do not depend on it.
  """
  prompt = policy.prefill(params, prompts, cfg=cfg)
  first = policy.starts(prompts, group_size)
  start, rows = first.positions, first.positions.size
  row_keys = draws.row_keys(key, rows)
  if planting:
    plant_keys = draws.row_keys(jax.random.fold_in(key, _PLANTING), rows)
  feed = functools.partial(_feed, params, prompt, start, cfg=cfg)

  def step(carry: _Decoding) -> _Decoding:
    hidden, carry = feed(carry)
    scores = head.logits(
        params, hidden, cfg=cfg, temperature=temperature or 1.0
    )
    scores = sharding.constrain(scores, "batch", "vocab")
    scores = head.truncated(scores, top_k=top_k, top_p=top_p)
    token, stats = _choose(
        scores, row_keys, carry.index, greedy=temperature == 0
    )
    planted = None
    if planting:
      token, planted = planting_lib.plant(
          carry.rolled.tokens, carry.index, token, plant_keys, planting
      )
      stats = head.statistics(scores, token)
    ends = jnp.isin(token, jnp.asarray(eos_ids, jnp.int32))
    return _append(carry, token, stats, ends, planted, pad_id)

  carry = _empty(
      first.tokens, cfg, max_tokens, pad_id, planted=bool(planting)
  )
  carry = _repeat(step, carry, max_tokens)
  _, carry = feed(carry)
  context = _context(prompt, start, carry.replace(index=carry.index + 1))
  return carry.rolled.replace(context=context)


def _repeat(
    step: Callable[[_Decoding], _Decoding], carry: _Decoding, max_tokens: int
) -> _Decoding:
  """Steps until all rows have ended or are full; leaves t + 1 cache slots."""

  def goes_on(carry: _Decoding, limit: int) -> Array:
    return (carry.index < limit) & ~jnp.all(carry.rolled.ended)

  for limit in policy.stages(max_tokens):
    carry = jax.lax.while_loop(
        functools.partial(goes_on, limit=limit), step, _grown(carry, limit)
    )
  return _grown(carry, max_tokens + 1)


def _grown(carry: _Decoding, slots: int) -> _Decoding:
  """Grows the cache to `slots` slots; new ones are 0."""
  more = slots - carry.values.shape[3]
  axes = ("layers", "batch", "kv_heads")
  keys = jnp.pad(carry.keys, [(0, 0)] * 4 + [(0, more)])
  values = jnp.pad(carry.values, [(0, 0)] * 3 + [(0, more), (0, 0)])
  return carry.replace(
      keys=sharding.constrain(keys, *axes, "head_dim", "length"),
      values=sharding.constrain(values, *axes, "length", "head_dim"),
  )


def _feed(
    params: Params,
    prompt: KVSegment,
    start: Array,
    carry: _Decoding,
    *,
    cfg: ModelConfig,
) -> tuple[Array, _Decoding]:
  """Runs the token of slot `index`; returns its hidden states [b, d].

  The returned carry also holds the token's keys and values; `index` stays.
  """
  hidden, new = transformer.extend(
      params,
      carry.token[:, None],
      (start + carry.index)[:, None],
      _context(prompt, start, carry),
      cfg=cfg,
  )
  write = jax.lax.dynamic_update_slice_in_dim
  return hidden[:, 0], carry.replace(
      keys=write(carry.keys, new.keys, carry.index, axis=4),
      values=write(carry.values, new.values, carry.index, axis=3),
  )


def _append(
    carry: _Decoding,
    token: Array,
    stats: TokenStatistics,
    ends: Array,
    planted: Array | None,
    pad_id: int,
) -> _Decoding:
  """Appends a token [b] to every row that has not ended."""
  rolled = carry.rolled
  live = ~rolled.ended

  def write(log: Array, value: Array, rest: int | float) -> Array:
    column = jnp.where(live, value, rest)[:, None]
    return jax.lax.dynamic_update_slice(log, column, (0, carry.index))

  rolled = rolled.replace(
      tokens=write(rolled.tokens, token, pad_id),
      lengths=rolled.lengths + live,
      ended=rolled.ended | ends,
      logprobs=write(rolled.logprobs, stats.logprob, 0.0),
      entropies=write(rolled.entropies, stats.entropy, 0.0),
      planted=planted if planted is None else write(
          rolled.planted, planted, False
      ),
  )
  return carry.replace(index=carry.index + 1, token=token, rolled=rolled)


def _empty(
    token: Array,
    cfg: ModelConfig,
    max_tokens: int,
    pad_id: int,
    *,
    planted: bool,
) -> _Decoding:
  """Returns the carry before the first token; slot 0 holds `token` [b]."""
  rows = token.shape[0]
  shape = rows, max_tokens
  heads = cfg.num_layers, rows, cfg.num_kv_heads
  return _Decoding(
      index=jnp.int32(0),
      token=token,
      rolled=Rollout(
          tokens=jnp.full(shape, pad_id, jnp.int32),
          lengths=jnp.zeros(rows, jnp.int32),
          ended=jnp.zeros(rows, bool),
          logprobs=jnp.zeros(shape, jnp.float32),
          entropies=jnp.zeros(shape, jnp.float32),
          context=(),
          planted=jnp.zeros(shape, bool) if planted else None,
      ),
      keys=jnp.zeros((*heads, cfg.head_dim, 0), cfg.dtype),
      values=jnp.zeros((*heads, 0, cfg.head_dim), cfg.dtype),
  )


def _context(prompt: KVSegment, start: Array, carry: _Decoding) -> Context:
  """Returns the prompt and the written slots of the cache."""
  at = jnp.arange(carry.values.shape[3])
  completion = KVSegment(
      keys=carry.keys,
      values=carry.values,
      visible=(at < carry.index)[None],
      positions=start[:, None] + at,
  )
  return prompt, completion


def _choose(
    scores: Array, row_keys: Array, index: Array, *, greedy: bool
) -> tuple[Array, TokenStatistics]:
  """Draws from softmax(scores [b, v]), or takes the most probable token."""
  if greedy:
    token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    return token, head.statistics(scores, token)
  keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, index)
  uniforms = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
  return head.draw(scores, uniforms)

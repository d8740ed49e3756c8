"""Scores existing completions: entropies and information of each token."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from iapo_jax.config.model import ModelConfig, for_length
from iapo_jax.core.types import Array, Params, Prompts
from iapo_jax.data import pipeline
from iapo_jax.models import head
from iapo_jax.rl import mi, policy, probes


@dataclasses.dataclass(frozen=True)
class Item:
  """A completion to score, as token ids.

  Attributes:
    prompt: at least one.
    completion: T, which may be 0.
    postfix: the elicitation, at least one.
    reasoning: R <= T, the completion's leading tokens that are reasoning.
    answer: the number of tokens after the reasoning, without the EOS.
  """

  prompt: tuple[int, ...]
  completion: tuple[int, ...]
  postfix: tuple[int, ...]
  reasoning: int
  answer: int = 0

  @property
  def positions(self) -> int:
    """Tokens of prompt, completion and postfix together."""
    return len(self.prompt) + len(self.completion) + len(self.postfix)


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of one item at temperature 1, in nats.

  Attributes:
    logprobs: fp32[T], of the completion's tokens.
    entropies: fp32[T], h, of the distributions they are drawn from.
    answer_entropies: fp32[R + 1], H.
    information: fp32[T], D; 0 after R.
  """

  logprobs: np.ndarray
  entropies: np.ndarray
  answer_entropies: np.ndarray
  information: np.ndarray


@functools.partial(jax.jit, static_argnames=("cfg", "head_chunk"))
def _statistics(
    params: Params,
    prompts: Prompts,
    tokens: Array,
    reasoning: Array,
    postfix: Array,
    *,
    cfg: ModelConfig,
    head_chunk: int,
) -> tuple[Array, Array, Array, Array]:
  """Returns the arrays of `Scores`, padded: [b, t], and H [b, t + 1]."""
  hidden, context = policy.replay(
      params, prompts, tokens, cfg=cfg, group_size=1
  )
  stats = head.token_statistics(
      params, hidden[:, :-1], tokens, cfg=cfg, chunk=head_chunk
  )
  probe = probes.answer_statistics(
      params,
      context,
      reasoning,
      probes.strided(tokens.shape[1] + 1, 1),
      postfix,
      jnp.zeros_like(reasoning),
      cfg=cfg,
      budget=tokens.size,
      head_chunk=head_chunk,
  )
  mask = jnp.arange(tokens.shape[1]) < reasoning[:, None]
  information = mi.realised_information(probe.entropy, mask)
  return stats.logprob, stats.entropy, probe.entropy, information


def score(
    params: Params,
    items: Sequence[Item],
    *,
    cfg: ModelConfig,
    batch_size: int = 8,
    head_chunk: int = 128,
) -> Iterator[tuple[int, Scores]]:
  """Yields each item's index and scores, batched by similar length.

  Args:
    params: the decoder's weights, in the compute dtype or float32.
    items: to score.
    cfg: the decoder. With `rope_factors = "auto"`, each item has those of its
      own length.
    batch_size: items per call.
    head_chunk: positions whose logits exist at one time.
  """
  for decoder, alike in _batches(items, cfg, batch_size):
    # A power of two, so that few programs compile; repeats fill the batch.
    rows = min(batch_size, 2 ** (len(alike) - 1).bit_length())
    filled = alike + alike[:1] * (rows - len(alike))
    arrays = _arrays([items[i] for i in filled])
    found = jax.device_get(
        _statistics(params, *arrays, cfg=decoder, head_chunk=head_chunk)
    )
    for row, i in enumerate(alike):
      length, reasoning = len(items[i].completion), items[i].reasoning
      lengths = (length, length, reasoning + 1, length)
      scores = (x[row, :n] for x, n in zip(found, lengths, strict=True))
      yield i, Scores(*scores)


def _batches(
    items: Sequence[Item], cfg: ModelConfig, size: int
) -> Iterator[tuple[ModelConfig, list[int]]]:
  """Yields indices of items with one decoder and postfix, alike in length."""
  decoders = [for_length(cfg, item.positions) for item in items]
  together = [
      (item.postfix, decoder.rope_factors)
      for item, decoder in zip(items, decoders, strict=True)
  ]
  lengths = [
      (_padded(len(item.completion)), _padded(len(item.prompt)))
      for item in items
  ]
  order = sorted(range(len(items)), key=lambda i: (together[i], lengths[i]))
  for _, same in itertools.groupby(order, lambda i: together[i]):
    alike = list(same)
    for start in range(0, len(alike), size):
      yield decoders[alike[0]], alike[start : start + size]


def _padded(length: int) -> int:
  """Rounds up to 16, 20, 24, 28, 32, 40, 48, ...: at most a quarter more."""
  step = 4
  while 8 * step < length:
    step *= 2
  return max(16, -(-length // step) * step)


def _arrays(
    items: Sequence[Item],
) -> tuple[Prompts, np.ndarray, np.ndarray, np.ndarray]:
  """Returns right-padded arrays; the padding does not change the scores."""
  (tokens, lengths), (completions, _) = (
      pipeline.right_pad(rows, _padded(max(map(len, rows))), 0)
      for rows in (
          [item.prompt for item in items],
          [item.completion for item in items],
      )
  )
  none = np.zeros((len(items), 1), np.int32)
  prompts = Prompts(
      tokens, lengths, gold=none, gold_lengths=none[:, 0] + 1, rows=none[:, 0]
  )
  reasoning = np.array([item.reasoning for item in items], np.int32)
  return prompts, completions, reasoning, np.array(items[0].postfix, np.int32)

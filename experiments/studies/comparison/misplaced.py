"""Probes at wrong positions, as in the code that IAPO's authors published.

That code probes 16 positions at a time and passes no position ids: all probes
of a chunk get the position where the chunk's longest prefix ends. `compare.py`
measures the effect as an ablation.
"""

import jax.numpy as jnp

from iapo_jax.config.schema import Config
from iapo_jax.core.types import (
  AnswerStatistics,
  Array,
  Grades,
  Params,
  Prompts,
  Rollout,
  Vocabulary,
)
from iapo_jax.models import head, transformer

CHUNK = 16


def run_probes(
    params: Params,
    rolled: Rollout,
    grades: Grades,
    prompts: Prompts,
    cfg: Config,
    vocabulary: Vocabulary,
    *,
    chunk: int = CHUNK,
) -> AnswerStatistics:
  """Probes every position like `train_step.run_probes`, in chunks.

  `params` are in the compute dtype. The statistics have the shape [b, t + 1].
  With `chunk` = 1 all positions are right.
  """
  rows, slots = rolled.tokens.shape[0], rolled.tokens.shape[1] + 1
  asked = jnp.asarray(vocabulary.elicitation, jnp.int32)
  at = jnp.broadcast_to(jnp.arange(slots), (rows, slots))
  last = grades.reasoning_lengths[:, None]
  longest = jnp.minimum((at // chunk + 1) * chunk - 1, last)
  first = rolled.context[1].positions[:, :1]
  begin = (first + longest + 1).reshape(-1, 1)
  prompt, completion = rolled.context
  seen = jnp.arange(slots) <= at.reshape(-1, 1)
  hidden, _ = transformer.extend(
      params,
      jnp.broadcast_to(asked, (rows * slots, asked.size)),
      begin + jnp.arange(asked.size),
      (prompt, completion.replace(visible=seen)),
      cfg=cfg.model,
  )
  gold = jnp.repeat(prompts.gold[:, :1], cfg.group_size, axis=0)
  found = head.token_statistics(
      params,
      hidden[:, -1].reshape(rows, slots, -1),
      jnp.broadcast_to(gold, at.shape),
      cfg=cfg.model,
      temperature=cfg.rollout.temperature,
      chunk=cfg.loss.head_chunk,
  )
  probed = at <= last

  def kept(x: Array) -> Array:
    return jnp.where(probed, x, 0)

  return AnswerStatistics(
      logprob=kept(found.logprob),
      entropy=kept(found.entropy),
      hit=found.hit & probed,
      answer=None,
      spent=asked.size * (grades.reasoning_lengths + 1),
  )

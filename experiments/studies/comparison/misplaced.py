"""Probes at the wrong positions, as the authors' published code has them.

That code probes 16 positions at a time and gives no position ids: all probes of
a chunk sit where the longest prefix of the chunk ends. Here for an ablation
(`compare.py`), and nowhere else.
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
from iapo_jax.rl import policy

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
  """As `train_step.run_probes` of every position; exact with chunks of one.

  Args:
    params: weights in the compute dtype.
    rolled: the rollout.
    grades: its grades.
    prompts: q prompts.
    cfg: the run's configuration.
    vocabulary: of the tokenizer.
    chunk: positions that are probed at a time.

  Returns:
    Statistics [b, t + 1].
  """
  rows, slots = rolled.tokens.shape[0], rolled.tokens.shape[1] + 1
  asked = jnp.asarray(vocabulary.elicitation, jnp.int32)
  at = jnp.broadcast_to(jnp.arange(slots), (rows, slots))
  last = grades.reasoning_lengths[:, None]
  longest = jnp.minimum((at // chunk + 1) * chunk - 1, last)
  first = policy.first_positions(prompts, cfg.group_size)[:, None]
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

"""Policies of seven words, small enough to enumerate all completions.

They are ordinary decoders, run by the functions of training. Each word of the
reasoning votes for 0 or 1, or is a full stop, which does not vote. The answer
is the majority of the votes; a coin decides a tie. In answers of two tokens the
second token states whether there was a full stop. The prompt determines which
votes are likelier.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from iapo_jax.config import parsing as config_lib
from iapo_jax.config.schema import Config
from iapo_jax.core.types import KeyDomain, Params, Prompts, Vocabulary
from iapo_jax.models import transformer
from iapo_jax.rewards.token_match import Tags
from iapo_jax.rl import warm_start
from iapo_jax.rl.optimizer import make_optimizer
from iapo_jax.rl.warm_start import Demonstrations

WORDS = ("0", "1", ".", "</think>", "<answer>", "</answer>", "<eos>")
STOP, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE, EOS = range(2, 7)
TAGS = Tags(-1, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)  # no <think> to write
VOCABULARY = Vocabulary(
    eos_ids=(EOS,),
    pad_id=EOS,
    elicitation=(THINK_CLOSE, ANSWER_OPEN),
    sentence_ends=(STOP,),
)
LONGEST = 7  # tokens of a completion
_PROMPTS = ((STOP, 0), (STOP, 1))
_VOTES = (0.5, 0.25, 0.25)  # for the likelier answer, the other, a full stop


@dataclasses.dataclass(frozen=True)
class Kind:
  """A task: its name, and the lengths in tokens of reasoning and answer."""

  name: str
  reasoning: int
  answer_tokens: int


KINDS = (Kind("one token", 3, 1), Kind("two tokens", 2, 2))


def config_of(rows: int) -> Config:
  """Returns the configuration of all policies, with `rows` in each group."""
  config = config_lib.default()
  config.prompts_per_step = len(_PROMPTS)
  config.group_size = rows
  config.model.update({
      "vocab_size": len(WORDS), "d_model": 32, "head_dim": 16, "mlp_dim": 64,
  })  # fmt: skip
  config.rollout.max_tokens = LONGEST
  config.data.max_gold_tokens = 2
  config.warm_start.optimizer.update({"warmup_steps": 50, "decay": True})
  return config_lib.parse(config)


def prompts_of(kind: Kind) -> Prompts:
  """Returns both prompts; gold is the likeliest answer."""
  tokens = jnp.array(_PROMPTS, jnp.int32)
  rows, width = tokens.shape
  gold = jnp.zeros((rows, kind.answer_tokens), jnp.int32)
  return Prompts(
      tokens,
      lengths=jnp.full(rows, width, jnp.int32),
      gold=gold.at[:, 0].set(tokens[:, -1]),
      gold_lengths=jnp.full(rows, kind.answer_tokens, jnp.int32),
      rows=jnp.arange(rows),
  )


def demonstrations(
    kind: Kind,
    rng: np.random.Generator,
    count: int,
    *,
    early_share: float,
    early_full_share: float,
) -> Demonstrations:
  """Draws `count` chains and early answers, like those of the synthetic sums.

  An early answer is the answer of the whole chain, so that a policy that learns
  them perfectly is consistent. A chain is cut at a random point with the chance
  `early_share`. Of cut chains the share `early_full_share` trains every token,
  the others only the answer. The arrays are NumPy's.
  """
  prompts = jax.device_get(prompts_of(kind))
  which = rng.integers(len(_PROMPTS), size=count)
  likelier = prompts.gold[which, 0]
  drawn = rng.choice(3, (count, kind.reasoning), p=_VOTES)
  # A draw of 0 votes for the likelier answer, a draw of 1 for the other one.
  words = np.where(drawn == 2, STOP, drawn ^ likelier[:, None])
  votes = np.sum(words == 1, axis=1) - np.sum(words == 0, axis=1)
  coin = rng.integers(2, size=count)
  first = np.where(votes == 0, coin, votes > 0)
  second = np.any(words == STOP, axis=1)
  answers = np.stack([first, second], axis=1)[:, : kind.answer_tokens]
  early = rng.random(count) < early_share
  cuts = np.where(
      early, rng.integers(kind.reasoning, size=count), kind.reasoning
  )
  whole = ~early | (rng.random(count) < early_full_share)
  completion = np.full((count, LONGEST), EOS, np.int32)
  learned = np.zeros((count, LONGEST), bool)
  for row, cut in enumerate(cuts):
    text = [
        *words[row, :cut], THINK_CLOSE, ANSWER_OPEN, *answers[row],
        ANSWER_CLOSE, EOS,
    ][:LONGEST]  # fmt: skip
    completion[row, : len(text)] = text
    answer = slice(cut + 2, cut + 2 + kind.answer_tokens)
    learned[row, : len(text) if whole[row] else 0] = True
    learned[row, answer] = True
  asked = jax.tree.map(lambda x: x[which], prompts)
  return Demonstrations(asked, completion, learned)


@functools.partial(jax.jit, static_argnames="cfg")
def random_policy(seed: int, cfg: Config) -> Params:
  """Returns random weights."""
  return nn.unbox(transformer.init(KeyDomain.WEIGHTS.key(seed), cfg.model))


def trained_policy(
    seed: int, kind: Kind, early_share: float, cfg: Config, steps: int
) -> Params:
  """Trains a policy on `steps` batches of the supervised stage."""
  batch = cfg.warm_start.batch_size
  rng = np.random.default_rng([seed, kind.reasoning])
  shown = demonstrations(
      kind, rng, steps * batch, early_share=early_share,
      early_full_share=cfg.warm_start.early_full_share,
  )  # fmt: skip
  # With golds of one shape a single program trains both kinds.
  none = np.zeros((steps * batch, 1), np.int32)
  shown = shown.replace(prompts=shown.prompts.replace(gold=none))
  batches = jax.tree.map(
      lambda x: jnp.asarray(x).reshape(steps, batch, *x.shape[1:]), shown
  )
  return _fit(random_policy(seed, cfg), batches, cfg=cfg)


@functools.partial(jax.jit, static_argnames="cfg")
def _fit(params: Params, batches: Demonstrations, *, cfg: Config) -> Params:
  """Trains on the batches [steps, b, ...], one after the other."""
  steps = batches.completion.shape[0]
  optimizer = make_optimizer(cfg.warm_start.optimizer, steps)
  loss = functools.partial(warm_start.demonstration_loss, cfg=cfg)

  def step(carry: tuple, batch: Demonstrations) -> tuple:
    now, moments = carry
    grads, _ = jax.grad(loss, has_aux=True)(now, batch)
    updates, moments = optimizer.update(grads, moments, now)
    return (optax.apply_updates(now, updates), moments), None

  (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), batches)
  return params

"""The supervised stage: maximum likelihood on demonstrations."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from iapo_jax.config.schema import Config
from iapo_jax.core import masked, sharding
from iapo_jax.core.types import Array, Params, Prompts, StepOutput, TrainState
from iapo_jax.models import head
from iapo_jax.rl import finite, losses, policy
from iapo_jax.rl.state import StateSpec


@struct.dataclass
class Demonstrations:
  """Prompts with the completions to imitate.

  Attributes:
    prompts: b prompts.
    completion: int32[b, t], right-padded.
    learned: bool[b, t], the tokens that carry loss.
  """

  prompts: Prompts
  completion: Array
  learned: Array


WarmStartStep = Callable[
    [TrainState, Demonstrations], tuple[TrainState, StepOutput]
]


def demonstration_loss(
    params: Params, batch: Demonstrations, cfg: Config
) -> tuple[Array, dict[str, Array]]:
  """Σ −log π over the learned tokens, divided by b · `rollout.max_tokens`.

  The constant divisor gives every learned token the same weight, however few of
  them its example has.

  Returns:
    The loss. Metrics: over the learned tokens, the mean of −log π and the share
    that are the most probable token.
  """
  weights = losses.token_weights(
      batch.learned,
      aggregation="constant_length",
      constant_length=cfg.rollout.max_tokens,
  )
  hidden, _ = policy.replay(
      params,
      batch.prompts,
      batch.completion[:, :-1],
      cfg=cfg.model,
      group_size=1,
  )
  loss, stats = head.token_loss(
      params,
      hidden,
      batch.completion,
      weights,
      loss=lambda logprobs, weights: -weights * logprobs,
      cfg=cfg.model,
      temperature=1.0,
      chunk=cfg.loss.head_chunk,
  )
  hits = stats.hit.astype(jnp.float32)
  return loss, {
      "sft/nll": -masked.mean(stats.logprob, batch.learned, None),
      "sft/token_accuracy": masked.mean(hits, batch.learned, None),
  }


def make_warm_start_step(
    cfg: Config,
    mesh: Mesh,
    *,
    optimizer: optax.GradientTransformation,
    spec: StateSpec,
) -> WarmStartStep:
  """Builds one supervised update as one jitted, sharded program.

  Returns:
    (state, demonstrations) -> (state, output); the state is donated.
  """

  def step(
      state: TrainState, batch: Demonstrations
  ) -> tuple[TrainState, StepOutput]:
    with sharding.scope(mesh):
      loss = functools.partial(demonstration_loss, cfg=cfg)
      grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch)
      params, opt_state, more = finite.apply_update(
          optimizer, grads, state.params, state.opt_state, metrics
      )
      metrics |= {f"update/{name}": value for name, value in more.items()}
      state = state.replace(
          step=state.step + 1, params=params, opt_state=opt_state
      )
    return state, StepOutput(metrics)

  return jax.jit(
      step,
      donate_argnums=0,
      in_shardings=(spec.shardings, sharding.batch_sharding(mesh)),
      out_shardings=(spec.shardings, StepOutput(sharding.replicated(mesh))),
  )

"""The optimizer of both stages."""

import optax

from iapo_jax.config.schema import OptimizerConfig


def learning_rate(c: OptimizerConfig, num_steps: int) -> optax.Schedule:
  """Returns a linear warm-up, then a constant or a cosine decay.

  The cosine reaches 0 at the end of the stage, after `num_steps` updates.
  Update i of the warm-up has (i + 1) / warmup_steps of the peak, so the first
  update is not wasted.
  """
  if c.decay:
    after = optax.cosine_decay_schedule(
        c.learning_rate, max(num_steps - c.warmup_steps, 1)
    )
  else:
    after = optax.constant_schedule(c.learning_rate)
  first = c.learning_rate / max(c.warmup_steps, 1)
  ramp = optax.linear_schedule(first, c.learning_rate, c.warmup_steps - 1)
  return optax.join_schedules([ramp, after], [c.warmup_steps])


def make_optimizer(
    c: OptimizerConfig, num_steps: int
) -> optax.GradientTransformation:
  """Makes AdamW after a global-norm clip; moments are fp32 like the weights."""
  return optax.chain(
      optax.clip_by_global_norm(c.clip_norm),
      optax.adamw(
          learning_rate(c, num_steps),
          b1=c.b1,
          b2=c.b2,
          weight_decay=c.weight_decay,
      ),
  )

"""Trains with your own credit: tokens that inform about the answer get more.

  python experiments/own_credit.py --config=configs/arithmetic.py:to_go \
      --workdir=runs/own_credit

It takes all arguments of `iapo train`. The compiled step calls the function, so
it must be JAX; `iapo_jax.rl.own.Evidence` gives the shapes of its arrays.
"""

import jax
import jax.numpy as jnp

from iapo_jax.cli import iapo
from iapo_jax.rl.own import Evidence, Own


def credit(evidence: Evidence) -> jax.Array:
  """Returns the group's advantage, raised where the answer got more certain.

  Args:
    evidence: of b completions.

  Returns:
    fp32[b, t].
  """
  gained = jnp.maximum(evidence.information, 0.0)
  share = gained / (jnp.sum(gained, axis=1, keepdims=True) + 1e-6)
  return evidence.group_advantages[:, None] * (1.0 + share)


if __name__ == "__main__":
  iapo.run("train", own=Own(credit=credit))

"""A credit of one's own, inside the compiled step: only what informs counts.

  python experiments/own_credit.py --config=configs/arithmetic.py:to_go \
      --workdir=runs/own_credit

It takes all arguments of `iapo train`. The function is traced once: it is JAX,
of arrays whose shapes are in `iapo_jax.rl.own.Evidence`.
"""

import jax
import jax.numpy as jnp

from iapo_jax.cli import iapo
from iapo_jax.rl.own import Evidence, Own


def credit(evidence: Evidence) -> jax.Array:
  """The group's advantage, more of it where the answer became more certain.

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

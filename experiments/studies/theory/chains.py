"""Small policies on which tests check the claims, and their derivatives."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tabular
from tabular import TabularParams, Tree

from iapo_jax.core.types import Array

# Logits of an answer that is given for sure, in float64: e^-60 is nothing.
RIGHT, WRONG, OPEN = (60.0, 0.0), (0.0, 60.0), (0.0, 0.0)


def chain(*answers: Sequence[float]) -> tuple[Tree, TabularParams]:
  """Makes a policy with one token or the end after each prefix, equally likely.

  Each entry of `answers` holds the two answer logits after 0, 1, 2... tokens.
  """
  depth = len(answers) - 1
  tree, _ = tabular.make_tree(
      lambda prefix: (0, 1) if len(prefix) < depth else (1,),
      num_tokens=1,
      num_answers=2,
  )
  return tree, TabularParams(
      steps=jnp.zeros((depth + 1, 2)), answers=jnp.array(answers)
  )


def random_table(seed: int) -> tuple[Tree, TabularParams, dict]:
  """Makes a random table of two tokens, depth 3 and two answers."""
  tree, numbers = tabular.make_tree(
      lambda p: (0, 1, 2) if len(p) < 3 else (2,),
      num_tokens=2,
      num_answers=2,
  )
  rng = np.random.default_rng(seed)
  params = TabularParams(
      steps=jnp.asarray(rng.normal(size=tree.allowed.shape)),
      answers=jnp.asarray(1.5 * rng.normal(size=(len(numbers), 2))),
  )
  return tree, params, numbers


@jax.jit
def derivatives(
    params: TabularParams, tree: Tree, direction: TabularParams
) -> tuple[Array, Array]:
  """Returns derivatives of length and accuracy along a direction."""
  return tuple(
      jax.jvp(lambda p, of=of: of(p, tree), (params,), (direction,))[1]
      for of in (tabular.expected_length, tabular.accuracy)
  )

"""Whether numbers are finite, and what becomes of an update where one is not.

NaN and infinities spread: one in a gradient is in every weight after it, and
nothing brings those back. So a compiled step looks before it applies an update,
which costs a norm that is computed anyway.
"""

import math
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from iapo_jax.core.types import Array, PyTree


def everywhere(tree: PyTree) -> Array:
  """Whether every number of every array is finite.

  Args:
    tree: of arrays; those of integers and booleans always are.

  Returns:
    bool[]; true of a tree without arrays.
  """
  found = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
  return jnp.all(jnp.stack(found)) if found else jnp.bool_(True)


def choose(sound: Array, new: PyTree, old: PyTree) -> PyTree:
  """`new` where `sound`, else `old` as it was.

  Args:
    sound: bool[].
    new: arrays, perhaps not finite.
    old: as many of the same shapes and dtypes.

  Returns:
    A tree like both.
  """
  chex.assert_shape(sound, ())
  chex.assert_trees_all_equal_shapes_and_dtypes(new, old)
  return jax.tree.map(lambda x, y: jnp.where(sound, x, y), new, old)


def apply_update(
    optimizer: optax.GradientTransformation,
    grads: PyTree,
    params: PyTree,
    opt_state: optax.OptState,
    metrics: Mapping[str, Array],
) -> tuple[PyTree, optax.OptState, dict[str, Array]]:
  """One update of the optimizer, unless something about it is not finite.

  Where the gradient's norm or any of the metrics is not, parameters and
  moments stay as they were, to the last bit. The norm is infinite, too, where
  its square is beyond fp32: such a gradient has no direction that could be
  told.

  Args:
    optimizer: of the parameters.
    grads: of their loss.
    params: to learn.
    opt_state: of the optimizer.
    metrics: of the loss and of what it is made from.

  Returns:
    Parameters, the optimizer's state, and two more metrics: `grad_norm` of the
    gradient before clipping, and `skipped`, 1 for an update that was not made.
  """
  norm = optax.tree.norm(grads)
  sound = everywhere((norm, metrics))
  steps, new_state = optimizer.update(grads, opt_state, params)
  new = optax.apply_updates(params, steps), new_state
  params, opt_state = choose(sound, new, (params, opt_state))
  skipped = jnp.where(sound, 0.0, 1.0)
  return params, opt_state, {"grad_norm": norm, "skipped": skipped}


def offenders(metrics: Mapping[str, Any]) -> list[str]:
  """The names of the numbers that are not finite, in order."""
  return [
      name
      for name, x in metrics.items()
      if isinstance(x, float) and not math.isfinite(x)
  ]


def as_json(content: Any) -> Any:
  """With null for every number that is not finite: JSON knows none of those.

  Args:
    content: of dictionaries, lists, numbers and texts.

  Returns:
    Its like, in new containers.
  """
  if isinstance(content, Mapping):
    return {name: as_json(value) for name, value in content.items()}
  if isinstance(content, list):
    return [as_json(value) for value in content]
  lost = isinstance(content, float) and not math.isfinite(content)
  return None if lost else content


def from_json(content: Any) -> Any:
  """With NaN for every null, which of what `as_json` wrote it may have been."""
  if isinstance(content, Mapping):
    return {name: from_json(value) for name, value in content.items()}
  if isinstance(content, list):
    return [from_json(value) for value in content]
  return math.nan if content is None else content

"""Detects numbers that are not finite, and skips updates that have them.

One NaN in a gradient reaches every weight, and nothing removes it from there.
So a compiled step checks before it applies an update. The check needs only a
norm that is computed anyway.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from iapo_jax.core.types import Array, PyTree


def everywhere(tree: PyTree) -> Array:
  """Returns bool[]: whether every number in a tree of arrays is finite."""
  found = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
  return jnp.all(jnp.stack(found)) if found else jnp.bool_(True)


def apply_update(
    optimizer: optax.GradientTransformation,
    grads: PyTree,
    params: PyTree,
    opt_state: optax.OptState,
    metrics: Mapping[str, Array],
) -> tuple[PyTree, optax.OptState, dict[str, Array]]:
  """Applies one optimizer update if the gradient and all metrics are finite.

  If the gradient's norm or any metric is not finite, parameters and moments
  keep every bit. The norm is also infinite if its square overflows fp32.

  Returns:
    Parameters, the optimizer's state, and two metrics: `grad_norm` before
    clipping, and `skipped`, 1 for a skipped update.
  """
  norm = optax.tree.norm(grads)
  sound = everywhere((norm, metrics))
  steps, new_state = optimizer.update(grads, opt_state, params)
  old = params, opt_state
  new = optax.apply_updates(params, steps), new_state
  chex.assert_trees_all_equal_shapes_and_dtypes(new, old)
  params, opt_state = jax.tree.map(
      functools.partial(jnp.where, sound), new, old
  )
  skipped = jnp.where(sound, 0.0, 1.0)
  return params, opt_state, {"grad_norm": norm, "skipped": skipped}


def offenders(metrics: Mapping[str, Any]) -> list[str]:
  """Returns the names of metrics that are not finite, in order."""
  return [
      name
      for name, x in metrics.items()
      if isinstance(x, float) and not math.isfinite(x)
  ]


def as_json(content: Any) -> Any:
  """Copies JSON-like content with null for numbers that JSON cannot hold."""
  if isinstance(content, Mapping):
    return {name: as_json(value) for name, value in content.items()}
  if isinstance(content, list):
    return [as_json(value) for value in content]
  lost = isinstance(content, float) and not math.isfinite(content)
  return None if lost else content


def from_json(content: Any) -> Any:
  """Reads the nulls of `as_json` back as NaN."""
  if isinstance(content, Mapping):
    return {name: from_json(value) for name, value in content.items()}
  if isinstance(content, list):
    return [from_json(value) for value in content]
  return math.nan if content is None else content

"""Checks of `--config.debug`: slow, and the numbers stay the same."""

import gc
import pathlib
import traceback
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from iapo_jax.core import compilation
from iapo_jax.core.types import PyTree, StepOutput, TrainState
from iapo_jax.rl import finite

Step = Callable[..., tuple[TrainState, StepOutput]]

_PACKAGE = pathlib.Path(__file__).parent.parent


def watched(step: Any, *arguments: PyTree) -> Step:
  """Returns a compiled step that checks itself and names the place of a fault.

  `step` is a jitted function that donates its first argument, a state;
  `arguments` may be arrays or their types. It is traced while JAX looks for
  leaked tracers, which raises JAX's own error. Each call of the result keeps a
  copy of the state and raises

  * JAX's error if something moves implicitly between host and devices;
  * `FloatingPointError` if a metric is not finite, with the place of the first
    NaN;
  * `AssertionError` if a weight is not finite, or the state's shapes or dtypes
    have changed.
  """
  _find_leaks(step, *arguments)
  compiled = compilation.lower(step, *arguments).compile()

  def run(
      state: TrainState, *rest: PyTree
  ) -> tuple[TrainState, StepOutput]:
    # The step consumes its state (donation); the search for NaN needs a copy.
    before = jax.tree.map(jnp.copy, state)
    with jax.transfer_guard("disallow"):
      state, output = compiled(state, *rest)
    lost = finite.offenders(output.numbers())
    if lost:
      place = first_nan(step, before, *rest) or "no NaN, only infinities"
      raise FloatingPointError(f"{', '.join(lost)} not finite: {place}")
    chex.assert_trees_all_equal_shapes_and_dtypes(before, state)
    # Compiled: a process does not have all shards.
    if not jax.jit(finite.everywhere)(state.params):
      raise AssertionError("a weight is not finite")
    return state, output

  return run


def _find_leaks(step: Any, *arguments: PyTree) -> None:
  """Traces a step; raises JAX's error if something keeps a tracer.

  JAX collects garbage for every suspected leak. Freezing the objects that
  existed before makes this fast, but hides the tracer's owner from the error;
  so a failing trace is repeated without freezing.
  """
  with jax.checking_leaks():
    gc.freeze()
    try:
      step.trace(*arguments)
      return
    except Exception as error:
      found = error
    finally:
      gc.unfreeze()
    step.trace(*arguments)
  raise found


def first_nan(step: Any, *arguments: PyTree) -> str | None:
  """Returns the operation that makes the first NaN, and its place in the code.

  Compiles `step` again with a check of every operation and donates nothing.
  Returns None if there is no NaN.
  """
  checked = checkify.checkify(step.__wrapped__, errors=checkify.nan_checks)
  found = jax.jit(checked)(*arguments)[0].get_exception()
  return f"{str(found).rstrip('.')}, {_origin(found)}" if found else None


def _origin(found: checkify.JaxRuntimeError) -> str:
  """Returns the innermost line of this package that made an operation."""
  frames = [
      frame
      for frame in traceback.extract_tb(
          found.traceback_info.as_python_traceback()
      )
      if pathlib.Path(frame.filename).is_relative_to(_PACKAGE)
  ]
  if not frames:
    return "outside of iapo_jax"
  last = frames[-1]
  name = pathlib.Path(last.filename).relative_to(_PACKAGE.parent)
  return f"in {last.name}, {name}:{last.lineno}"

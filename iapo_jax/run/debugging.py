"""What `--config.debug` looks at: slow, and the numbers are the same."""

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

_PACKAGE = pathlib.Path(__file__).parent


def watched(step: Any, *arguments: PyTree) -> Step:
  """The compiled step, which says where something is wrong.

  It is traced while JAX looks for tracers that leak. Each call raises

  * JAX's own error where anything moves between host and devices that nobody
    asked for;
  * `FloatingPointError` where a metric is not finite, with the place of the
    first NaN;
  * `AssertionError` where a weight is not finite, or the state has not the
    shapes and dtypes that it had.

  Args:
    step: a jitted function that donates its first argument, a state.
    arguments: of its types.

  Returns:
    It, compiled. Between calls a copy of the state is kept.

  Raises:
    Exception: JAX's, where something keeps a tracer.
  """
  _find_leaks(step, *arguments)
  compiled = compilation.lower(step, *arguments).compile()

  def run(
      state: TrainState, *rest: PyTree
  ) -> tuple[TrainState, StepOutput]:
    # The step takes the memory of the state.
    before = jax.tree.map(jnp.copy, state)
    with jax.transfer_guard("disallow"):
      state, output = compiled(state, *rest)
    lost = finite.offenders(output.numbers())
    if lost:
      place = first_nan(step, before, *rest) or "there are only infinities"
      raise FloatingPointError(f"{', '.join(lost)} not finite: {place}")
    chex.assert_trees_all_equal_shapes_and_dtypes(before, state)
    chex.assert_tree_all_finite(jax.device_get(state.params))
    return state, output

  return run


def _find_leaks(step: Any, *arguments: PyTree) -> None:
  """Traces a step; raises JAX's error where something keeps a tracer.

  For every suspicion JAX collects garbage, all of it but what is frozen: here
  what was there before, most of it by far. An error would not tell who of those
  keeps the tracer; then tracing is done once more, the slow way.
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
  """Where NaN appears first in what a jitted function computes.

  Args:
    step: compiled anew, with a look at every operation; nothing is donated.
    arguments: of it.

  Returns:
    The operation and its place in this package; None where there is no NaN.
  """
  checked = checkify.checkify(step.__wrapped__, errors=checkify.nan_checks)
  found = jax.jit(checked)(*arguments)[0].get_exception()
  return f"{str(found).rstrip('.')}, {_origin(found)}" if found else None


def _origin(found: checkify.JaxRuntimeError) -> str:
  """The innermost place in this package that an operation is from."""
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

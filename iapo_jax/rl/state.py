"""Creates train states, sharded from the start."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from iapo_jax.config.schema import Config, CreditConfig
from iapo_jax.core import sharding
from iapo_jax.core.types import (
  CreditWeights,
  KeyDomain,
  Params,
  PyTree,
  TrainState,
)
from iapo_jax.models import transformer


@dataclasses.dataclass(frozen=True)
class StateSpec:
  """Shapes and placement of a state that does not exist yet.

  Attributes:
    shapes: the state as `jax.ShapeDtypeStruct`s.
    shardings: a tree like it, of `NamedSharding`s.
    param_axes: logical axes of the parameters.
  """

  shapes: TrainState
  shardings: TrainState
  param_axes: PyTree


def reference(spec: StateSpec, dtype: str, params: Params) -> Params:
  """Copies `params` in the compute dtype, sharded, as a fixed policy."""
  return jax.jit(
      lambda x: sharding.in_compute_dtype(x, spec.param_axes, dtype),
      out_shardings=spec.shardings.params,
  )(params)


def reference_shapes(spec: StateSpec, dtype: str) -> PyTree:
  """Returns the result of `reference` as `jax.ShapeDtypeStruct`s."""
  return jax.eval_shape(
      lambda x: sharding.in_compute_dtype(x, spec.param_axes, dtype),
      spec.shapes.params,
  )


def credit_weights(c: CreditConfig) -> CreditWeights:
  """Returns the configured weights as values of the compiled program."""
  return CreditWeights(
      info=jnp.float32(c.info_weight),
      explore=jnp.float32(c.explore_weight),
      discount=jnp.float32(c.discount),
      cost=jnp.float32(c.cost),
      length=jnp.float32(c.length_weight),
  )


def _fresh(
    seed: jax.Array,
    params: Params | None,
    cfg: Config,
    optimizer: optax.GradientTransformation,
) -> TrainState:
  """Makes a state at step 0; it is boxed unless `params` are given."""
  if params is None:
    params = transformer.init(KeyDomain.WEIGHTS.key(seed), cfg.model)
  return TrainState(
      step=jnp.int32(0),
      seed=jnp.asarray(seed, jnp.uint32),
      params=params,
      opt_state=optimizer.init(params),
      weights=credit_weights(cfg.credit),
  )


def state_spec(
    mesh: Mesh, cfg: Config, optimizer: optax.GradientTransformation
) -> StateSpec:
  """Returns shapes and shardings of a state; moments lie like their weights."""
  fresh = functools.partial(_fresh, cfg=cfg, optimizer=optimizer)
  boxed = jax.eval_shape(fresh, jnp.uint32(0), None)
  return StateSpec(
      shapes=nn.unbox(boxed),
      shardings=sharding.tree_shardings(boxed, mesh),
      param_axes=sharding.logical_axes(boxed.params),
  )


def create(
    spec: StateSpec,
    cfg: Config,
    optimizer: optax.GradientTransformation,
    params: Params | None = None,
) -> TrainState:
  """Creates a state at step 0, sharded: it is never whole on one device.

  `params` are copied, so that the state may be donated; None initialises fresh
  ones from `cfg.seed`, which also determines every later draw.
  """

  def make(seed: jax.Array, params: Params | None) -> TrainState:
    params = jax.tree.map(jnp.copy, params)
    return nn.unbox(_fresh(seed, params, cfg, optimizer))

  return jax.jit(make, out_shardings=spec.shardings)(
      jnp.uint32(cfg.seed), params
  )

"""Which logical axis lies along which mesh axis.

Weights and activations are declared with logical axis names; only this file
knows the mesh. GSPMD (Auto axes) does the partitioning.
"""

import contextlib
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from iapo_jax.core.types import PyTree

BATCH_AXES = ("data", "fsdp")

# Weights: `embed` is the axis FSDP splits. Activations have their own names.
_RULES = (
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("layers", None),
    ("head_dim", None),
    ("norm", None),
    ("batch", BATCH_AXES),
    ("length", None),
    ("width", None),
)


@contextlib.contextmanager
def scope(mesh: Mesh) -> Iterator[None]:
  """While tracing: logical constraints mean axes of this mesh."""
  with (
      jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
      nn.logical_axis_rules(_RULES),
  ):
    yield


def data_shards() -> int:
  """Over how many shards a batch's rows lie; 1 outside a `scope`."""
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape.get(axis, 1) for axis in BATCH_AXES)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Places an activation by logical names; outside a `scope` it does nothing.

  Args:
    x: any array.
    names: one logical axis name, or None, for each axis of `x`.

  Returns:
    `x`.
  """
  return nn.with_logical_constraint(x, names)


def take_rows(x: jax.Array, rows: jax.Array) -> jax.Array:
  """[b, ...] of [r, ...]: for each of b rows one of the same data shard.

  Gradients of what several rows read are summed in fp32.

  Args:
    x: [r, ...], its rows on the data shards, as a batch's are.
    rows: int32[b], of the rows of a shard.
  """
  shards = data_shards()
  parts = x.reshape(shards, -1, *x.shape[1:])
  taken = jax.vmap(_take)(parts, rows.reshape(shards, -1))
  taken = taken.reshape(-1, *x.shape[1:])
  return constrain(taken, "batch", *(None,) * (x.ndim - 1))


@jax.custom_vjp
def _take(x: jax.Array, rows: jax.Array) -> jax.Array:
  return jnp.take(x, rows, axis=0, mode="clip")


def _take_forward(
    x: jax.Array, rows: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _take(x, rows), (x, rows)


def _take_backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None]:
  x, rows = saved
  wide = gradient.astype(jnp.float32)
  total = jnp.zeros(x.shape, jnp.float32).at[rows].add(wide, mode="drop")
  return total.astype(x.dtype), None


_take.defvjp(_take_forward, _take_backward)


def platform() -> str:
  """`cpu`, `gpu` or `tpu`: of the `scope`'s mesh, else of the runtime."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def per_shard(
    run: Callable[..., PyTree], inputs: PyTree, outputs: PyTree
) -> Callable[..., PyTree]:
  """`run` on what each device has of its arguments; outside a `scope` on all.

  For programs that the compiler cannot partition.

  Args:
    run: of arrays; whatever it needs of its arguments every device has.
    inputs: the logical PartitionSpec of every argument.
    outputs: that of every result.

  Returns:
    A function like `run`.
  """
  if jax.sharding.get_abstract_mesh().size <= 1:
    return run
  return jax.shard_map(
      run,
      in_specs=nn.logical_to_mesh(inputs),
      out_specs=nn.logical_to_mesh(outputs),
      check_vma=False,  # Pallas kernels do not say along what they vary.
  )


def logical_axes(boxed: PyTree) -> PyTree:
  """The logical PartitionSpec of every leaf of a boxed tree."""
  return nn.get_partition_spec(boxed)


def tree_shardings(boxed: PyTree, mesh: Mesh) -> PyTree:
  """The sharding of every leaf of a tree of boxed (abstract) arrays."""
  return nn.logical_to_mesh_sharding(logical_axes(boxed), mesh, _RULES)


def in_compute_dtype(params: PyTree, axes: PyTree, dtype: str) -> PyTree:
  """Weights as the model reads them: every product casts them to this anyway.

  Args:
    params: fp32 weights.
    axes: their logical axes (`logical_axes`).
    dtype: the compute dtype.

  Returns:
    A tree like `params`. Norm weights act in fp32, in rollout and training
    alike, and stay so.
  """
  return jax.tree.map(
      lambda weight, spec: weight if "norm" in spec else weight.astype(dtype),
      params,
      axes,
  )


def gather_for_decoding(params: PyTree, axes: PyTree, dtype: str) -> PyTree:
  """Weights in the compute dtype, whole along FSDP, split along tensor.

  Done once a step and outside the decode loop: FSDP shards gathered inside it
  would move the whole model once per token.

  Args:
    params: fp32 weights.
    axes: their logical axes (`logical_axes`).
    dtype: the compute dtype.

  Returns:
    A tree like `params`.
  """

  def place(weight: jax.Array, spec: P) -> jax.Array:
    names = [None if name == "embed" else name for name in spec]
    return constrain(weight, *names)

  return jax.tree.map(place, in_compute_dtype(params, axes, dtype), axes)


def placed_shapes(shapes: PyTree, shardings: PyTree) -> PyTree:
  """`jax.ShapeDtypeStruct`s that say where their arrays lie."""
  return jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
      shapes,
      shardings,
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over the data and fsdp axes."""
  return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same on every device."""
  return NamedSharding(mesh, P())


def own_rows(mesh: Mesh, size: int) -> list[int]:
  """Which rows of a batch this process must have for its devices.

  Args:
    mesh: devices of all processes.
    size: rows of the whole batch.

  Returns:
    Their numbers, in order; several processes may need the same ones.
  """
  where = batch_sharding(mesh).addressable_devices_indices_map((size,))
  every = range(size)
  return sorted({row for (rows,) in where.values() for row in every[rows]})


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """A batch that every process has whole, as global arrays.

  Args:
    batch: NumPy arrays whose first axis is rows.
    mesh: the mesh to place them on.

  Returns:
    A tree of sharded arrays.
  """
  where = batch_sharding(mesh)

  def place(x: np.ndarray) -> jax.Array:
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

  return jax.tree.map(place, batch)


def put_rows(rows: PyTree, mesh: Mesh, size: int) -> PyTree:
  """A batch as global arrays, of which every process has its own rows.

  Args:
    rows: NumPy arrays whose first axis is `own_rows` of the batch.
    mesh: the mesh to place them on.
    size: rows of the whole batch.

  Returns:
    A tree of sharded arrays.
  """
  where = batch_sharding(mesh)
  return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(
          where, np.asarray(x), (size, *x.shape[1:])
      ),
      rows,
  )

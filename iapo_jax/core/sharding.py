"""Mapping of logical array axes to mesh axes, and placement of arrays.

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

from iapo_jax.core.types import Array, PyTree

BATCH_AXES = ("data", "fsdp")

# FSDP splits axis `embed` of weights; activations use `width` instead.
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
  """Makes logical constraints refer to a mesh while a program is traced."""
  with (
      jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
      nn.logical_axis_rules(_RULES),
  ):
    yield


def data_shards() -> int:
  """Returns the number of shards of a batch's rows; 1 outside a `scope`."""
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape.get(axis, 1) for axis in BATCH_AXES)


def tensor_shards() -> int:
  """Returns the number of shards of the vocabulary; 1 outside a `scope`."""
  return jax.sharding.get_abstract_mesh().shape.get("tensor", 1)


def constrain(x: Array, *names: str | None) -> Array:
  """Shards an activation; `names` has a logical axis or None for each axis.

  Does nothing outside a `scope`.
  """
  return nn.with_logical_constraint(x, names)


def take_rows(x: Array, rows: Array) -> Array:
  """Gathers rows [b, ...] of [r, ...] within each data shard.

  `rows`, int32[b], counts from the first row of the shard. Gradients of rows
  read several times are summed in fp32.
  """
  shards = data_shards()
  parts = x.reshape(shards, -1, *x.shape[1:])
  taken = jax.vmap(_take)(parts, rows.reshape(shards, -1))
  taken = taken.reshape(-1, *x.shape[1:])
  return constrain(taken, "batch", *(None,) * (x.ndim - 1))


@jax.custom_vjp
def _take(x: Array, rows: Array) -> Array:
  return jnp.take(x, rows, axis=0, mode="clip")


def _take_forward(x: Array, rows: Array) -> tuple[Array, tuple[Array, Array]]:
  return _take(x, rows), (x, rows)


def _take_backward(
    saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, None]:
  x, rows = saved
  wide = gradient.astype(jnp.float32)
  total = jnp.zeros(x.shape, jnp.float32).at[rows].add(wide, mode="drop")
  return total.astype(x.dtype), None


_take.defvjp(_take_forward, _take_backward)


def platform() -> str:
  """Returns `cpu`, `gpu` or `tpu`: the `scope`'s mesh or else the runtime."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def per_shard(
    run: Callable[..., PyTree], inputs: PyTree, outputs: PyTree
) -> Callable[..., PyTree]:
  """Wraps `run` so that each device runs it on its own shards.

  For programs that the compiler cannot partition. Returns `run` itself outside
  a `scope` or on a single device.

  Args:
    run: a function of arrays that needs no other device's shards.
    inputs: the logical PartitionSpec of every argument.
    outputs: the logical PartitionSpec of every result.
  """
  if jax.sharding.get_abstract_mesh().size <= 1:
    return run
  return jax.shard_map(
      run,
      in_specs=nn.logical_to_mesh(inputs),
      out_specs=nn.logical_to_mesh(outputs),
      check_vma=False,  # Pallas kernels do not declare their varying axes.
  )


def logical_axes(boxed: PyTree) -> PyTree:
  """Returns the logical PartitionSpec of every leaf of a boxed tree."""
  return nn.get_partition_spec(boxed)


def tree_shardings(boxed: PyTree, mesh: Mesh) -> PyTree:
  """Returns the sharding of every leaf of a tree of boxed (abstract) arrays."""
  return nn.logical_to_mesh_sharding(logical_axes(boxed), mesh, _RULES)


def in_compute_dtype(params: PyTree, axes: PyTree, dtype: str) -> PyTree:
  """Casts fp32 weights to the compute dtype, as every product would.

  Norm weights stay fp32, as in training. `axes` is `logical_axes` of `params`.
  """
  return jax.tree.map(
      lambda weight, spec: weight if "norm" in spec else weight.astype(dtype),
      params,
      axes,
  )


def gather_for_decoding(params: PyTree, axes: PyTree, dtype: str) -> PyTree:
  """Casts as `in_compute_dtype` and gathers FSDP shards; keeps `tensor` ones.

  Call it once per step, outside the decode loop: inside, it would move the
  whole model for every token.
  """

  def place(weight: Array, spec: P) -> Array:
    names = [None if name == "embed" else name for name in spec]
    return constrain(weight, *names)

  return jax.tree.map(place, in_compute_dtype(params, axes, dtype), axes)


def placed_shapes(shapes: PyTree, shardings: PyTree) -> PyTree:
  """Returns `jax.ShapeDtypeStruct`s with the given shardings."""
  return jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
      shapes,
      shardings,
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns a sharding of rows over the data and fsdp axes."""
  return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, P())


def own_rows(mesh: Mesh, size: int) -> list[int]:
  """Returns the rows, in order, that this process's devices need of a batch.

  `size` counts the rows of the whole batch. Several processes may need the same
  rows.
  """
  where = batch_sharding(mesh).addressable_devices_indices_map((size,))
  every = range(size)
  return sorted({row for (rows,) in where.values() for row in every[rows]})


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """Shards rows of NumPy arrays that every process holds whole."""
  where = batch_sharding(mesh)

  def place(x: np.ndarray) -> Array:
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

  return jax.tree.map(place, batch)


def put_rows(rows: PyTree, mesh: Mesh, size: int) -> PyTree:
  """Shards a batch of `size` rows from each process's `own_rows` of it."""
  where = batch_sharding(mesh)
  return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(
          where, np.asarray(x), (size, *x.shape[1:])
      ),
      rows,
  )

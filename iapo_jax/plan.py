"""What follows from a configuration and the devices there are."""

import dataclasses
import math

from iapo_jax.config import Config, CreditConfig
from iapo_jax.errors import fail


def mesh_shape(c: Config, devices: int) -> tuple[int, int, int]:
  """The sizes of (data, fsdp, tensor) on this many devices, checked.

  Args:
    c: the configuration.
    devices: how many there are.

  Returns:
    Devices along each mesh axis.

  Raises:
    ConfigError: where the sizes do not fit the devices, the heads, the
      prompts or the micro-batches.
  """
  sizes = dataclasses.asdict(c.mesh)
  fixed = math.prod(size for size in sizes.values() if size != -1)
  shape = {
      axis: devices // fixed if size == -1 else size
      for axis, size in sizes.items()
  }
  if math.prod(shape.values()) != devices:
    fail("mesh", sizes, f"must multiply to the {devices} devices there are")
  tensor = shape["tensor"]
  for field in ("num_heads", "num_kv_heads", "mlp_dim", "vocab_size"):
    value = getattr(c.model, field)
    if value % tensor:
      fail(f"model.{field}", value, f"mesh.tensor = {tensor} must divide it")
  if c.model.d_model % shape["fsdp"]:
    fail(
        "model.d_model",
        c.model.d_model,
        f"mesh.fsdp = {shape['fsdp']} must divide it",
    )
  shards = shape["data"] * shape["fsdp"]
  parts = shards * c.loss.micro_batches
  if c.prompts_per_step % parts:
    fail(
        "prompts_per_step",
        c.prompts_per_step,
        f"must be a multiple of data x fsdp x micro_batches = {parts}",
    )
  _check_batches(c, shards)
  return shape["data"], shape["fsdp"], shape["tensor"]


def _check_batches(c: Config, shards: int) -> None:
  """Whether the supervised and the sampled batches split over the devices."""
  size = c.warm_start.batch_size
  if c.warm_start.num_steps and size % shards:
    fail(
        "warm_start.batch_size",
        size,
        f"must be a multiple of data x fsdp = {shards}",
    )
  size, unit = c.evaluation.batch_size, shards * c.evaluation.samples
  if size % unit:
    fail(
        "evaluation.batch_size",
        size,
        f"must be a multiple of data x fsdp x evaluation.samples = {unit}",
    )


def describe(c: Config, devices: int) -> str:
  """The numbers that follow from the configuration, for people to read."""
  data, fsdp, tensor = mesh_shape(c, devices)
  sequences = c.sequences_per_step
  per_device = sequences // (data * fsdp)
  micro = c.loss.micro_batches
  return "\n".join([
      f"mesh       data {data} x fsdp {fsdp} x tensor {tensor}",
      f"batch      {c.prompts_per_step} prompts x {c.group_size} samples ="
      f" {sequences} sequences, {per_device} per data shard",
      f"lengths    prompt <= {c.data.max_prompt_tokens}, completion <="
      f" {c.rollout.max_tokens} tokens",
      f"update     {c.loss.num_updates} per rollout, each of {micro} micro-"
      f"batch{'es' if micro > 1 else ''} of {sequences // micro} sequences",
      f"probes     {c.rollout.max_tokens + 1} positions in chunks of"
      f" {min(c.probe.chunk, c.rollout.max_tokens + 1)}",
      f"credit     {_describe_credit(c.credit)}",
  ])


def _describe_credit(c: CreditConfig) -> str:
  """The mode, with the weights that it uses."""
  used = {
      "grpo": [],
      "length_penalty": ["length_weight"],
      "paper": ["info_weight", "explore_weight"],
      "to_go": ["info_weight", "explore_weight", "discount", "cost"],
      "faithful": ["info_weight", "explore_weight", "horizon"],
  }[c.mode]
  words = [c.mode, *(f"{name} {getattr(c, name):g}" for name in used)]
  if c.shuffle:
    words.append("information shuffled (control)")
  return ", ".join(words)

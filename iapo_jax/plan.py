"""What follows from a configuration and the devices there are."""

import dataclasses
import math

import jax
from jax.sharding import Mesh

from iapo_jax import memory
from iapo_jax.config import Config, CreditConfig
from iapo_jax.state import StateSpec


def describe(c: Config, mesh: Mesh, spec: StateSpec) -> str:
  """What follows from the configuration, for people to read.

  Args:
    c: the checked configuration, the vocabulary size filled in.
    mesh: devices.
    spec: of the state of reinforcement learning.

  Returns:
    Lines.
  """
  m, shape = c.model, mesh.shape
  sequences, micro = c.sequences_per_step, c.loss.micro_batches
  weights = sum(math.prod(x.shape) for x in jax.tree.leaves(spec.shapes.params))
  positions = c.rollout.max_tokens + 1
  shards = shape["data"] * shape["fsdp"]
  lines = [
      f"model      {weights:,} weights: {m.num_layers} layers of width"
      f" {m.d_model}, vocabulary {m.vocab_size}, {m.dtype}",
      f"mesh       data {shape['data']} x fsdp {shape['fsdp']} x tensor"
      f" {shape['tensor']} on {mesh.devices.flat[0].device_kind}",
      f"batch      {c.prompts_per_step} prompts x {c.group_size} samples ="
      f" {sequences} sequences, {sequences // shards} per data shard, at most"
      f" {sequences * c.rollout.max_tokens:,} sampled tokens a step",
      f"lengths    prompt <= {c.data.max_prompt_tokens}, completion <="
      f" {c.rollout.max_tokens} tokens",
      f"update     {c.loss.num_updates} per rollout, each of {micro} micro-"
      f"batch{'es' if micro > 1 else ''} of {sequences // micro} sequences",
      f"probes     {positions} positions in chunks of"
      f" {min(c.probe.chunk, positions)}",
      f"credit     {_describe_credit(c.credit)}",
      f"memory     {_describe_memory(memory.estimate(c, mesh, spec))}",
  ]
  return "\n".join(lines)


def _describe_memory(estimate: memory.Estimate) -> str:
  parts = ", ".join(
      f"{name} {memory.readable(size)}"
      for name, size in dataclasses.asdict(estimate).items()
      if size
  )
  total = memory.readable(estimate.peak)
  return f"about {total} a device; {parts}"


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

"""The plan of a run: its sizes, mesh and memory, before anything compiles."""

import dataclasses
import math

import jax
from jax.sharding import Mesh

from iapo_jax.config.credits import CREDITS
from iapo_jax.config.model import LONGROPE
from iapo_jax.config.schema import Config, CreditConfig
from iapo_jax.core import compilation
from iapo_jax.models import fused_attention
from iapo_jax.rl import micro_batches, probes
from iapo_jax.rl.state import StateSpec
from iapo_jax.run import evaluation, memory


def describe(c: Config, mesh: Mesh, spec: StateSpec) -> str:
  """Describes the plan in lines for people.

  `c` has its vocabulary size filled in; `spec` is of the state of reinforcement
  learning.
  """
  m, e, shape, device = c.model, c.evaluation, mesh.shape, mesh.devices.flat[0]
  attention = "reference"
  if fused_attention.chosen(m.attention, device.platform):
    attention = "fused kernels; decoding by the reference"
  weights = sum(math.prod(x.shape) for x in jax.tree.leaves(spec.shapes.params))
  lines = [
      f"model      {weights:,} weights: {m.num_layers} layers of width"
      f" {m.d_model}, vocabulary {m.vocab_size}, {m.dtype}",
      f"mesh       data {shape['data']} x fsdp {shape['fsdp']} x tensor"
      f" {shape['tensor']} on {device.device_kind}",
      f"attention  {attention}",
      f"lengths    prompt <= {c.data.max_prompt_tokens}, completion <="
      f" {c.rollout.max_tokens} tokens",
  ]
  if m.rope.kind == LONGROPE:
    lines.append(
        f"rotary     {m.rope_factors} factors of longrope in every sequence;"
        f" short ones hold up to {m.rope.original_positions:,} tokens"
    )
  if c.warm_start.num_steps:
    size = c.warm_start.batch_size
    lines.append(
        f"warm start {c.warm_start.num_steps} steps of {size} chains, at most"
        f" {size * c.rollout.max_tokens:,} tokens a step"
    )
  if c.num_steps:
    lines += _describe_step(c, shape["data"] * shape["fsdp"])
  during = ""
  if c.num_steps and e.every:
    during = (
        f"every {e.every} RL steps on {e.problems} problems, at the end on the"
        " test split: "
    )
  sampling = evaluation.sampled(evaluation.sampling(e))
  lines.append(
      f"evaluation {during}{e.samples} sample{'s' if e.samples > 1 else ''} a"
      f" problem, {e.batch_size} completions per call"
      f"{f', sampling: {sampling}' if sampling else ''}"
  )
  for name, needed in memory.programs(c, mesh, spec).items():
    lines.append(f"memory     {_describe_memory(name, needed)}")
  return "\n".join(lines)


def describe_programs(
    c: Config,
    place: str | None,
    *,
    own_texts: bool = False,
    own_grades: bool = False,
) -> str:
  """Describes which compiled programs the next start will find.

  `place` is the folder that keeps them; None if JAX has no cache. `own_texts`
  says whether the user's reward reads texts, which the host decodes;
  `own_grades` says the same of the user's grader.
  """
  if place is None:
    return "programs   not kept for the next start: JAX has no cache"
  line = f"programs   kept in {place} for the next start"
  graded = own_grades or c.reward.grader == "host"
  names = ["rl step"] if c.num_steps and (graded or own_texts) else []
  names += ["evaluation"] if graded else []
  if names and not compilation.keeps_host_calls():
    caller = "grading calls" if graded else "the reward calls"
    rule = f"cannot be kept (before JAX 0.11): {caller} the host"
    line += f"; {' and '.join(names)} {rule}"
  return line


def _describe_step(c: Config, shards: int) -> list[str]:
  """Describes one step of reinforcement learning."""
  sequences, micro = c.sequences_per_step, c.loss.micro_batches
  probed = "none"
  positions = probes.most(c)
  if c.probe.at == "sentences":
    probed = "at the ends of sentences"
  elif positions:
    probed = f"{positions} positions of a completion at most"
  if positions:
    probed += f", at most about {c.tokens_per_pass:,} tokens in a pass"
  whole = len(micro_batches.cuts(c.rollout.max_tokens)) == 1
  return [
      f"rl         {c.num_steps} steps of {c.prompts_per_step} prompts x"
      f" {c.group_size} samples = {sequences} sequences,"
      f" {sequences // shards} per data shard, at most"
      f" {sequences * c.rollout.max_tokens:,} sampled tokens a step",
      f"update     {c.loss.num_updates} per rollout, each of {micro} micro-"
      f"batch{'es' if micro > 1 else ''} of {c.update_rows // micro} sequences"
      f"{'' if whole or micro == 1 else ', fewer of short ones'}",
      f"probes     {probed}",
      f"credit     {_describe_credit(c.credit)}",
  ]


def _describe_memory(name: str, needed: memory.Estimate) -> str:
  """Describes the total and its parts."""
  told = {
      part: f"{part} {memory.readable(size)}"
      for part, size in dataclasses.asdict(needed).items()
      if size
  }
  parts = [told.pop(part) for part in ("state", "reference") if part in told]
  update = told.pop("update", None)
  sampling = " + ".join(told.values())
  if update and sampling:
    parts.append(f"the larger of ({sampling}) and ({update})")
  else:
    parts.append(update or sampling)
  total = memory.readable(needed.peak)
  return f"{name} about {total} a device: {' + '.join(parts)}"


def _describe_credit(c: CreditConfig) -> str:
  """Describes the mode and the weights that it uses."""
  used = CREDITS[c.mode].weights
  words = [c.mode, *(f"{name} {getattr(c, name):g}" for name in used)]
  if c.price != "auto":
    words.append(f"price {c.price}")
  if c.information != "realised":
    words.append(f"information {c.information} (control)")
  if not c.normalise:
    words.append("not normalised")
  if not c.only_correct:
    words.append("wrong completions too")
  return ", ".join(words)

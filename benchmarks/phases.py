"""Where the time of a train step goes: every phase compiled and timed alone.

Examples:
  python benchmarks/phases.py
  python benchmarks/phases.py --config=configs/arithmetic.py:paper \
      --config.group_size=16 --repeats=9 --json=phases.json

All phases get the inputs they have in the first step of a run without warm
start: a fresh policy, prompts of the train table and one recorded rollout. A
fresh policy ends a completion by chance only, about once per vocabulary size:
with a large vocabulary completions have full length, with a small one their
mean is shorter (it is printed) but the longest still is about
`rollout.max_tokens`, and phases run as far as that.

Times are medians of calls in one process. Phases take turns; before every timed
call its phase runs once untimed. Where the maximum is far above the minimum the
machine is busy: use more repeats.

  rollout        with the gather and cast of the weights, which the step does
                 once for rollout and probes
  whole step     the step as it is trained with: all phases in one program
  plain forward  the yardstick: hidden states (no head) of the completion tokens
                 against the rollout's cache of the prompts

With --config.probe.stride=0 nothing is probed, and there is no such phase.
"""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import measuring
from absl import flags
from ml_collections import config_flags

from iapo_jax.cli import command
from iapo_jax.config import parsing as config_lib
from iapo_jax.config.schema import Config
from iapo_jax.core import sharding
from iapo_jax.core.types import (
  AnswerStatistics,
  Array,
  KeyDomain,
  Params,
  Prompts,
  PyTree,
  Rollout,
  TrainState,
)
from iapo_jax.data import pipeline
from iapo_jax.rl import credit, policy, probes, train_step, update
from iapo_jax.run import assembly
from iapo_jax.run.assembly import Assembly, Stage

_ROOT = pathlib.Path(__file__).parent.parent
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    f"{_ROOT / 'configs' / 'arithmetic.py'}:to_go",
    "Configuration file, with a variant after a colon.",
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "Timed calls of every phase.", lower_bound=1
)
_JSON = flags.DEFINE_string("json", None, "File for the numbers.")

# In the order of the step; their sum is what the whole step is held against.
PHASES = ("rollout", "grading", "probes", "credit", "reference", "update")


@dataclasses.dataclass(frozen=True)
class Setup:
  """The parts of a run, and its reinforcement-learning stage."""

  parts: Assembly
  stage: Stage


@dataclasses.dataclass(frozen=True)
class Phase:
  """A compiled program and its inputs.

  Attributes:
    run: the program.
    inputs: of every call.
    compile_seconds: tracing included.
    donates: whether the program consumes its first input.
  """

  run: Callable[..., PyTree]
  inputs: tuple[PyTree, ...]
  compile_seconds: float
  donates: bool = False

  def call(self) -> tuple[PyTree, float]:
    """The result of one call, and its seconds."""
    inputs = self.inputs
    if self.donates:
      # A copy, not the state returned last: every call does the same work.
      inputs = (jax.tree.map(jnp.copy, inputs[0]), *inputs[1:])
    jax.block_until_ready(inputs)
    start = time.perf_counter()
    result = jax.block_until_ready(self.run(*inputs))
    return result, time.perf_counter() - start

  def seconds(self) -> float:
    """Of one call."""
    return self.call()[1]


@dataclasses.dataclass(frozen=True)
class Work:
  """How much the phases had to do.

  Attributes:
    sequences: b.
    mean_length: of the completions, in tokens.
    slots: completion slots per sequence that a plain forward processes, t.
    probe_positions: per sequence that the probes process; a last pass may
      reach beyond the longest reasoning.
    probe_width: tokens of one probe, c.
  """

  sequences: int
  mean_length: float
  slots: int
  probe_positions: float
  probe_width: int

  @property
  def tokens(self) -> float:
    """Completion tokens of the batch."""
    return self.sequences * self.mean_length

  @property
  def forward_tokens(self) -> int:
    """Tokens that the plain forward processes, padding included."""
    return self.sequences * self.slots

  @property
  def probe_tokens(self) -> float:
    """Tokens that the probes process, padding included."""
    return self.sequences * self.probe_positions * self.probe_width


def build(cfg: Config) -> Setup:
  """Puts a run together, without its warm start and without a workdir."""
  stage = dataclasses.replace(cfg.warm_start, num_steps=0)
  cfg = dataclasses.replace(cfg, warm_start=stage)
  parts = assembly.assemble(cfg)
  return Setup(parts, assembly.reinforcement_stage(parts))


def first_prompts(setup: Setup) -> Prompts:
  """The prompts of a run's first step."""
  table = setup.parts.task.tables["train"]
  records = pipeline.batches(
      len(table.kept),
      table.record,
      batch_size=setup.parts.cfg.prompts_per_step,
      seed=setup.parts.cfg.seed,
  )
  prompts = pipeline.as_prompts(next(records))
  return sharding.put_batch(prompts, setup.parts.mesh)


def rollout_phase(
    params: Params, prompts: Prompts, key: Array, setup: Setup
) -> tuple[Params, Rollout]:
  """The weights that rollout and probes read, and the rollout."""
  frozen = policy.for_decoding(
      params, setup.stage.spec.param_axes, cfg=setup.parts.cfg.model
  )
  vocabulary = setup.parts.task.vocabulary
  return frozen, train_step.sample(
      frozen, prompts, key, setup.parts.cfg, vocabulary
  )


def plain_forward(
    params: Params, prompts: Prompts, rolled: Rollout, cfg: Config
) -> Array:
  """The yardstick; only the prompt segment of the rollout's cache is read."""
  return measuring.plain_forward(
      params,
      prompts,
      rolled.tokens,
      rolled.context[0],
      cfg=cfg.model,
      group_size=cfg.group_size,
  )


def programs(setup: Setup) -> dict[str, jax.stages.Wrapped]:
  """The jitted program of every phase, the whole step and the yardstick."""
  cfg, vocabulary = setup.parts.cfg, setup.parts.task.vocabulary

  def scoped(function: Callable, **fixed: Any) -> jax.stages.Wrapped:
    def program(*inputs: PyTree) -> PyTree:
      with sharding.scope(setup.parts.mesh):
        return function(*inputs, **fixed)

    return jax.jit(program)

  return {
      "rollout": scoped(rollout_phase, setup=setup),
      "grading": scoped(setup.parts.grader),
      "probes": scoped(train_step.run_probes, cfg=cfg, vocabulary=vocabulary),
      "credit": scoped(credit.assign, cfg=cfg),
      "reference": scoped(update.gather_experience, cfg=cfg),
      "update": scoped(
          update.update, cfg=cfg, optimizer=setup.stage.optimizer
      ),
      "whole_step": assembly.train_step_of(setup.parts, setup.stage),
      "plain_forward": scoped(plain_forward, cfg=cfg),
  }


def compile_phases(
    setup: Setup, state: TrainState, prompts: Prompts
) -> tuple[dict[str, Phase], Work]:
  """Compiles every phase on what the phases before it return.

  Args:
    setup: what a step is made of.
    state: fresh; its parameters are also the reference.
    prompts: of the step.

  Returns:
    The phases by name, each called once, and how much they do.
  """
  jitted = programs(setup)
  phases = {}

  def add(name: str, *inputs: PyTree) -> PyTree:
    start = time.perf_counter()
    compiled = jitted[name].lower(*inputs).compile()
    seconds = time.perf_counter() - start
    phases[name] = Phase(compiled, inputs, seconds, name == "whole_step")
    return phases[name].call()[0]

  # The keys of the whole step, so that it samples the recorded rollout too.
  key = jax.random.fold_in(KeyDomain.TRAINING.key(state.seed), state.step)
  sample_key, credit_key, _ = jax.random.split(key, 3)
  reference = state.params if setup.parts.cfg.loss.kl_weight else None
  frozen, rolled = add("rollout", state.params, prompts, sample_key)
  grades = add("grading", rolled, prompts)
  probe = None
  if setup.parts.cfg.probe.stride:
    probe = add("probes", frozen, rolled, grades, prompts)
  credited, _ = add(
      "credit", rolled, grades, probe, state.weights, credit_key
  )
  experience = add(
      "reference",
      reference,
      prompts,
      rolled,
      credited.advantages,
      credited.learned,
  )
  add("update", state, experience)
  add("whole_step", state, reference, prompts)
  add("plain_forward", frozen, prompts, rolled)
  return phases, measure_work(setup, rolled, probe)


def measure_work(
    setup: Setup, rolled: Rollout, probe: AnswerStatistics | None
) -> Work:
  """The work that a rollout makes."""
  cfg = setup.parts.cfg
  sequences, slots = rolled.tokens.shape
  width = len(setup.parts.task.vocabulary.elicitation) + cfg.probe.shown_tokens
  positions = 0.0
  if probe is not None:
    positions = _probe_positions(probe.spent // width, width, cfg)
  return Work(
      sequences=sequences,
      mean_length=float(jnp.mean(rolled.lengths)),
      slots=slots,
      probe_positions=positions,
      probe_width=width,
  )


def _probe_positions(counts: Array, width: int, cfg: Config) -> float:
  """Per sequence, as `probes` makes its passes; counts: int32[b], asked for."""
  parts, chunk = probes.passes(
      len(counts),
      cfg.prompts_per_step,
      probes.most(cfg),
      width,
      budget=cfg.tokens_per_pass,
      shards=1,
  )
  longest = jnp.max(counts.reshape(-1, parts, cfg.group_size), axis=(0, 2))
  return float(jnp.mean(-(-longest // chunk))) * chunk


def summarise(
    setup: Setup,
    phases: dict[str, Phase],
    times: dict[str, list[float]],
    work: Work,
) -> dict[str, Any]:
  """Everything that is reported, ready for JSON."""
  seconds = {name: statistics.median(calls) for name, calls in times.items()}
  entries = {
      name: {
          "seconds": seconds[name],
          "min_seconds": min(times[name]),
          "max_seconds": max(times[name]),
          "tokens_per_second": work.tokens / seconds[name],
          "compile_seconds": phases[name].compile_seconds,
      }
      for name in phases
  }
  ratios = {
      "whole_step_over_sum_of_phases": seconds["whole_step"] / _total(entries)
  }
  if "probes" in phases:
    raw = seconds["probes"] / seconds["plain_forward"]
    ratios["probes_over_plain_forward"] = raw
    ratios["probes_over_plain_forward_per_token"] = (
        raw * work.forward_tokens / work.probe_tokens
    )
  device = setup.parts.mesh.devices.flat[0]
  return {
      "phases": entries,
      "ratios": ratios,
      "config": config_lib.flatten(setup.parts.cfg),
      "device": (
          f"{setup.parts.mesh.size} x {device.device_kind} ({device.platform})"
      ),
      "mean_length": work.mean_length,
      "probe_tokens": work.probe_tokens,
      "forward_tokens": work.forward_tokens,
  }


def _total(entries: dict[str, dict[str, float]]) -> float:
  """Seconds of all phases that the step has."""
  return sum(entries[name]["seconds"] for name in PHASES if name in entries)


def report(summary: dict[str, Any], work: Work, repeats: int) -> str:
  """The table and the ratios, for people to read."""
  return "\n".join([
      f"device     {summary['device']}",
      f"batch      {work.sequences} sequences, mean length"
      f" {work.mean_length:.1f} of at most {work.slots} tokens",
      f"times      medians of {repeats}",
      "",
      *_table(summary["phases"]),
      "",
      *_ratios(summary, work),
  ])


def _table(entries: dict[str, dict[str, float]]) -> Iterator[str]:
  total = _total(entries)
  columns = ("seconds", "min", "max", "tokens/s", "share", "compile s")
  yield f"{'phase':<14}" + "".join(f"{column:>11}" for column in columns)
  for name, entry in entries.items():
    # What is no phase of the step has no share of it.
    share = f"{entry['seconds'] / total:.1%}" if name in PHASES else ""
    yield (
        f"{name.replace('_', ' '):<14}{entry['seconds']:>11.5f}"
        f"{entry['min_seconds']:>11.5f}{entry['max_seconds']:>11.5f}"
        f"{entry['tokens_per_second']:>11.0f}{share:>11}"
        f"{entry['compile_seconds']:>11.1f}"
    )
    if name == PHASES[-1]:
      yield f"{'sum of phases':<14}{total:>11.5f}"


def _ratios(summary: dict[str, Any], work: Work) -> Iterator[str]:
  ratios = summary["ratios"]
  rows = {"plain forward tokens": f"{work.forward_tokens}, padding included"}
  if "probes" in summary["phases"]:
    rate = work.probe_tokens / summary["phases"]["probes"]["seconds"]
    rows["probe tokens"] = (
        f"{work.probe_tokens:.0f} = {work.sequences} sequences x"
        f" {work.probe_positions:.1f} positions x {work.probe_width}"
    )
    rows["probe tokens/s"] = f"{rate:.0f}"
  labels = {
      "probes_over_plain_forward": "probes / plain forward",
      "probes_over_plain_forward_per_token": (
          "probes / plain forward, per token"
      ),
      "whole_step_over_sum_of_phases": "whole step / sum of phases",
  }
  rows |= {labels[name]: f"{ratio:.2f}" for name, ratio in ratios.items()}
  for label, value in rows.items():
    yield f"{label:<35}{value}"


def main(_: list[str]) -> None:
  """Compiles, measures and reports."""
  setup = build(config_lib.parse(_CONFIG.value))
  state = assembly.create_state(setup.parts, setup.stage)
  phases, work = compile_phases(setup, state, first_prompts(setup))
  timers = {name: phase.seconds for name, phase in phases.items()}
  times = measuring.take_turns(timers, _REPEATS.value)
  summary = summarise(setup, phases, times, work)
  print(report(summary, work, _REPEATS.value))
  measuring.write_json(_JSON.value, summary)


if __name__ == "__main__":
  command.run(main)

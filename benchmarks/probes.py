"""Early-exit probes against their floor, and against other ways to have them.

  python benchmarks/probes.py --json=probes.json
  python benchmarks/probes.py --model=large --sequences=16
  python benchmarks/probes.py --growth --sequences=8

One process, float32, a fresh model and random completions of full length. All
ways give the entropy of the answer at every position, and are checked against
each other. Figures are medians; everything takes turns in every round.

  ours          `probes.answer_statistics`
  floor         as many plain forwards as a probe has tokens: each the hidden
                states (no head) of all completion tokens against the prompts'
                keys and values
  kv copy       a copy of keys and values for every position, sixteen positions
                at a time, as the authors of IAPO do it, at the right positions
  in parts      the same for `--copy_rows` sequences at a time, not for all
  re-encoding   prompt, completion so far and elicitation anew for every
                position
  stride        ours at some positions, beside a whole train step with them
  ragged        ours with lengths spread evenly over t / 8 .. t

`memory` is what the largest program needs for itself, beyond arguments and
results. The large model takes the copies and the re-encoding minutes a round.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import cases
import ceilings
import contest
import jax
import measuring
import numpy as np
import probing
from absl import flags
from peers import protocol

from iapo_jax.cli import command
from iapo_jax.core.errors import ConfigError
from iapo_jax.run import costs

_MODEL = flags.DEFINE_enum(
    "model", "small", ("tiny", "small", "large"), "Whose shape."
)
_SEQUENCES = flags.DEFINE_integer("sequences", 32, "b.", lower_bound=1)
_GROUP = flags.DEFINE_integer("group", 8, "Of each prompt.", lower_bound=1)
_PROMPT = flags.DEFINE_integer("prompt", 128, "Prompt tokens.", lower_bound=1)
_TOKENS = flags.DEFINE_integer("tokens", 256, "t.", lower_bound=8)
_WIDTH = flags.DEFINE_integer("width", 6, "Tokens of a probe.", lower_bound=1)
_COPY_ROWS = flags.DEFINE_integer(
    "copy_rows", 2, "Sequences whose copies are made in parts.", lower_bound=1
)
_STRIDE = flags.DEFINE_integer("stride", 8, "Of some probes.", lower_bound=1)
_GROWTH = flags.DEFINE_bool(
    "growth", False, "Only how time grows from --tokens to eight times that."
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Of everybody.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "File for every figure.")

_MICRO_BATCHES = 4
_TOLERANCE = 1e-4


def case(tokens: int) -> cases.Case:
  """The case that the flags describe, with so many new tokens."""
  if _SEQUENCES.value % _GROUP.value:
    raise ConfigError(
        f"--sequences {_SEQUENCES.value}: --group = {_GROUP.value} must"
        " divide it"
    )
  if _SEQUENCES.value % _COPY_ROWS.value:
    raise ConfigError(
        f"--sequences {_SEQUENCES.value}: --copy_rows = {_COPY_ROWS.value}"
        " must divide it"
    )
  prompts = _SEQUENCES.value // _GROUP.value
  return cases.Case(
      cases.named()[_MODEL.value].model,
      prompts,
      _GROUP.value,
      _PROMPT.value,
      tokens,
      micro_batches=max(
          n for n in range(1, _MICRO_BATCHES + 1) if prompts % n == 0
      ),
  )


def budget(of: cases.Case) -> int:
  """Tokens of a micro-batch, which passes of a train step's probes have."""
  return of.tokens // of.micro_batches


def batch_of(of: cases.Case) -> probing.Batch:
  """A rollout of the case."""
  return probing.make_batch(
      of.model,
      sequences=of.sequences,
      group_size=of.group,
      prompt_tokens=of.prompt_tokens,
      new_tokens=of.new_tokens,
      elicitation_tokens=_WIDTH.value,
  )


def check(methods: dict[str, probing.Method]) -> None:
  """Raises where two ways to have the entropies do not agree."""
  wanted = methods["re-encoding"].entropies()
  for name in ("ours", "kv copy", "in parts"):
    gap = float(np.max(np.abs(methods[name].entropies() - wanted)))
    if not gap <= _TOLERANCE:
      raise RuntimeError(f"{name} and re-encoding differ by {gap} nats")


def train_step(of: cases.Case) -> Callable[[], float]:
  """A timer of a whole train step with strided probes."""
  job = cases.job_of(of, steps=1) | {
      "model": dataclasses.asdict(of.model),
      "ours": {"credit.mode": "paper", "probe.stride": _STRIDE.value},
  }
  ours = contest.Contestant(job)
  ours.load()
  prompts = ours.prompts(protocol.batch_of(job, 0))
  return lambda: measuring.stopwatch(ours.step, prompts)


def compare() -> dict[str, Any]:
  """Everything but growth."""
  of = case(_TOKENS.value)
  batch, tokens = batch_of(of), budget(of)
  ragged = cases.spread(of)
  methods = {
      "ours": probing.ours(batch, batch.full, budget=tokens),
      "floor": probing.plain(batch, _WIDTH.value),
      "kv copy": probing.kv_copy(batch, of.sequences),
      "in parts": probing.kv_copy(batch, _COPY_ROWS.value),
      "re-encoding": probing.reencoding(batch),
      "stride": probing.ours(
          batch, batch.full, budget=tokens, stride=_STRIDE.value
      ),
      "ragged": probing.ours(batch, ragged, budget=tokens),
  }
  check(methods)
  timers = {name: method.seconds for name, method in methods.items()}
  timers["train step"] = train_step(of)
  times = measuring.take_turns(timers, _ROUNDS.value)
  peak = ceilings.matmul_peak("float32", ceilings.CPU_SIZES)
  seconds = {name: statistics.median(calls) for name, calls in times.items()}
  memory = {name: method.temp_bytes for name, method in methods.items()}
  ours = seconds["ours"]
  flops = costs.probe_flops(of, 1, _WIDTH.value)
  return {
      "seconds": seconds,
      "min_seconds": {name: min(calls) for name, calls in times.items()},
      "max_seconds": {name: max(calls) for name, calls in times.items()},
      "memory_bytes": memory,
      "flops": flops,
      "matmul_flops_per_second": peak,
      "ratios": {
          "ours_over_floor": ours / seconds["floor"],
          "kv_copy_over_ours": seconds["kv copy"] / ours,
          "kv_copy_in_parts_over_ours": seconds["in parts"] / ours,
          "reencoding_over_ours": seconds["re-encoding"] / ours,
          "memory_over_plain_forward": memory["ours"] / memory["floor"],
          "kv_copy_memory_over_plain_forward": (
              memory["kv copy"] / memory["floor"]
          ),
          "stride_share_of_step": seconds["stride"] / seconds["train step"],
          "ragged_over_ours": seconds["ragged"] / ours,
          "ragged_share_of_positions": float(
              np.sum(ragged + 1) / np.sum(batch.full + 1)
          ),
          "share_of_peak": flops / ours / peak,
      },
  }


def growth() -> dict[str, Any]:
  """How time grows with the length, beside how operations do."""
  sizes = {"short": case(_TOKENS.value), "long": case(8 * _TOKENS.value)}
  methods = {}
  for name, of in sizes.items():
    batch = batch_of(of)
    methods[name] = probing.ours(
        batch, batch.full, budget=budget(sizes["short"])
    )
  timers = {name: method.seconds for name, method in methods.items()}
  times = measuring.take_turns(timers, _ROUNDS.value)
  seconds = {name: statistics.median(calls) for name, calls in times.items()}
  flops = {
      name: costs.probe_flops(of, 1, _WIDTH.value)
      for name, of in sizes.items()
  }
  slower = seconds["long"] / seconds["short"]
  more = flops["long"] / flops["short"]
  return {
      "seconds": seconds,
      "flops": flops,
      "ratios": {
          "time_growth": slower,
          "flops_growth": more,
          "growth_over_flops": slower / more,
      },
  }


def report(found: dict[str, Any]) -> Iterator[str]:
  """A table and the ratios, for people to read."""
  memory = found.get("memory_bytes", {})
  yield f"{'':<14}{'seconds':>10}{'memory MB':>12}"
  for name, seconds in found["seconds"].items():
    cell = f"{memory[name] / 1e6:.1f}" if name in memory else ""
    yield f"{name:<14}{seconds:>10.3f}{cell:>12}"
  yield ""
  for name, value in found["ratios"].items():
    yield f"{name:<35}{value:>8.2f}"


def main(_: list[str]) -> None:
  """Measures and reports."""
  jax.config.update("jax_platforms", "cpu")
  found = growth() if _GROWTH.value else compare()
  summary = {
      "machine": measuring.machine(),
      "flags": {
          flag.name: flag.value
          for flag in (
              _MODEL, _SEQUENCES, _GROUP, _PROMPT, _TOKENS, _WIDTH,
              _COPY_ROWS, _STRIDE, _ROUNDS,
          )
      },
  } | found  # fmt: skip
  print("\n".join(report(found)))
  measuring.write_json(_JSON.value, summary)


if __name__ == "__main__":
  command.run(main)

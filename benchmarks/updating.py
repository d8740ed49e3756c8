"""An update from completions of all lengths beside one from full ones.

  python benchmarks/updating.py --json=updating.json
  python benchmarks/updating.py --model=large --prompts=4

GRPO without a reference policy, float32, on CPU cores, random tokens. Figures
are medians in seconds; everything takes turns in every round.

  full      every completion has t tokens
  ragged    lengths spread evenly over t / 8 .. t
  remat     full, with `model.remat`: only the input of each layer is kept

`memory` is what the program needs for itself, beyond arguments and results.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import cases
import contest
import jax
import jax.numpy as jnp
import measuring
import numpy as np
from absl import flags
from peers import protocol

from iapo_jax.cli import command
from iapo_jax.rl import losses
from iapo_jax.rl.update import Experience, Tokens

_MODEL = flags.DEFINE_enum(
    "model", "small", ("tiny", "small", "large"), "Whose shape."
)
_PROMPTS = flags.DEFINE_integer("prompts", 8, "q.", lower_bound=1)
_GROUP = flags.DEFINE_integer("group", 8, "Of each prompt.", lower_bound=1)
_PROMPT = flags.DEFINE_integer("prompt", 32, "Prompt tokens.", lower_bound=1)
_TOKENS = flags.DEFINE_integer("tokens", 256, "t.", lower_bound=8)
_MICRO_BATCHES = flags.DEFINE_integer(
    "micro_batches", 8, "Of full completions.", lower_bound=1
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Of everybody.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "File for every figure.")


def case() -> cases.Case:
  """The case that the flags describe."""
  return cases.Case(
      cases.named()[_MODEL.value].model,
      _PROMPTS.value,
      _GROUP.value,
      _PROMPT.value,
      _TOKENS.value,
      micro_batches=_MICRO_BATCHES.value,
  )


def contestant(of: cases.Case, *, remat: bool) -> contest.Contestant:
  """A loaded run of the case."""
  job = cases.job_of(of, steps=1) | {
      "model": dataclasses.asdict(of.model),
      "kl_weight": 0.0,
      "ours": {"model.remat": remat},
  }
  ours = contest.Contestant(job)
  ours.load()
  return ours


def experience(
    ours: contest.Contestant, of: cases.Case, lengths: np.ndarray
) -> Experience:
  """Random tokens of these lengths, and advantages."""
  batch = protocol.batch_of(cases.job_of(of, steps=1), 0)
  shape = of.sequences, of.new_tokens
  ids, advantages = jax.random.split(jax.random.key(0))
  logprobs = jnp.full(shape, -np.log(of.model.vocab_size), jnp.float32)
  mask = jnp.arange(of.new_tokens) < lengths[:, None]
  return Experience(
      prompts=ours.prompts(batch),
      lengths=jnp.asarray(lengths),
      tokens=Tokens(
          ids=jax.random.randint(ids, shape, 0, of.model.vocab_size),
          old_logprobs=logprobs,
          reference_logprobs=jnp.zeros(shape),
          advantages=jax.random.normal(advantages, shape),
          weights=losses.token_weights(mask, aggregation="token_mean"),
      ),
  )


def timer(ours: contest.Contestant, learned: Experience) -> Callable[[], float]:
  """Of an update; the state, which it takes, is copied before."""

  def run() -> float:
    state = jax.block_until_ready(jax.tree.map(jnp.copy, ours.state))
    return measuring.stopwatch(ours.update, state, learned)

  return run


def measure() -> dict[str, Any]:
  """Every figure."""
  of = case()
  full = np.full(of.sequences, of.new_tokens, np.int32)
  ragged = cases.spread(of)
  keeping, remat = (contestant(of, remat=flag) for flag in (False, True))
  timers = {
      "full": timer(keeping, experience(keeping, of, full)),
      "ragged": timer(keeping, experience(keeping, of, ragged)),
      "remat": timer(remat, experience(remat, of, full)),
  }
  times = measuring.take_turns(timers, _ROUNDS.value)
  seconds = {name: statistics.median(calls) for name, calls in times.items()}
  memory = {}
  for name, ours in {"full": keeping, "remat": remat}.items():
    inputs = ours.state, experience(ours, of, full)
    stats = ours.update.lower(*inputs).compile().memory_analysis()
    memory[name] = stats.temp_size_in_bytes
  return {
      "seconds": seconds,
      "memory_bytes": memory,
      "ratios": {
          "ragged_over_full": seconds["ragged"] / seconds["full"],
          "ragged_share_of_tokens": float(ragged.sum() / full.sum()),
          "remat_over_full": seconds["remat"] / seconds["full"],
          "remat_memory_over_full": memory["remat"] / memory["full"],
      },
  }


def report(found: dict[str, Any]) -> Iterator[str]:
  """A table and the ratios, for people to read."""
  yield f"{'':<10}{'seconds':>10}{'memory MB':>12}"
  for name, seconds in found["seconds"].items():
    size = found["memory_bytes"].get(name)
    cell = f"{size / 1e6:.1f}" if size else ""
    yield f"{name:<10}{seconds:>10.3f}{cell:>12}"
  yield ""
  for name, value in found["ratios"].items():
    yield f"{name:<28}{value:>8.2f}"


def main(_: list[str]) -> None:
  """Measures and reports."""
  jax.config.update("jax_platforms", "cpu")
  found = {"machine": measuring.machine()} | measure()
  print("\n".join(report(found)))
  measuring.write_json(_JSON.value, found)


if __name__ == "__main__":
  command.run(main)

"""What several benchmarks share: the machine, a yardstick, turns, files."""

import contextlib
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from iapo_jax.config.model import ModelConfig
from iapo_jax.core.types import Array, KVSegment, Params, Prompts
from iapo_jax.rl import policy

# A longer call pays a few page faults more without being changed by them.
_LONG_SECONDS = 2.0


def machine() -> dict[str, Any]:
  """What the figures hold for."""
  lines: list[str] = []
  with contextlib.suppress(OSError):
    text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    lines = [x for x in text.splitlines() if x.startswith("model name")]
  processor = lines[0].partition(":")[2].strip() if lines else ""
  return {
      "processor": processor or platform.machine(),
      "cores": len(os.sched_getaffinity(0)),
      "python": platform.python_version(),
      "jax": jax.__version__,
  }


def plain_forward(
    params: Params,
    prompts: Prompts,
    tokens: Array,
    prompt: KVSegment,
    *,
    cfg: ModelConfig,
    group_size: int,
) -> Array:
  """[b, t, d]: the states that predict the completions, from cached prompts.

  Args:
    params: weights in the compute dtype.
    prompts: q prompts.
    tokens: int32[b, t], their completions.
    prompt: the prompts' keys and values.
    cfg: the decoder.
    group_size: g, with b = q · g.

  Returns:
    The final hidden states, no head applied.
  """
  starts = policy.starts(prompts, group_size)
  hidden, _ = policy.follow(params, prompt, starts, tokens[:, :-1], cfg=cfg)
  return hidden


def stopwatch(function: Callable[..., Any], *inputs: Any) -> float:
  """Seconds of one call, all arrays of its result computed."""
  begin = time.perf_counter()
  jax.block_until_ready(function(*inputs))
  return time.perf_counter() - begin


def take_turns(
    timers: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
  """Seconds of every call; all take turns, so that drift hits all alike.

  Args:
    timers: each does its work once and returns the seconds.
    rounds: of everyone.

  Returns:
    Of every timer, in order.
  """
  seconds: dict[str, list[float]] = {name: [] for name in timers}
  for _ in range(rounds):
    for name, timer in timers.items():
      # Untimed: what follows big work finds cold caches and pays page
      # faults, which made a forward pass 40 % slower on a CPU.
      if not seconds[name] or seconds[name][-1] < _LONG_SECONDS:
        timer()
      seconds[name].append(timer())
  return seconds


def write_json(path: str | None, summary: Mapping[str, Any]) -> None:
  """Writes every figure, where a file is asked for."""
  if path:
    text = json.dumps(summary, indent=2) + "\n"
    pathlib.Path(path).write_text(text, encoding="utf-8")

"""One whole step of reinforcement learning, against other libraries.

  python benchmarks/step.py --case=small --rounds=7 --json=step.json
  python benchmarks/step.py --case=tiny --contestants=ours --rounds=1

GRPO with a KL penalty against a reference policy (weight 0.04): sample 8
completions of each prompt, score them under the reference, update once with
AdamW behind a gradient clip. Float32, on CPU cores. Contestants are this
library, TRL and Tunix, the last two in virtual environments that are made once
(`--envs`) from the pinned versions of `peers/*.txt`. All have the same
checkpoint, prompts, lengths and numbers: see `cases.py`. How each is set up to
be as fast as it can is told in `contest.py`, `peers/trl_worker.py` and
`peers/tunix_worker.py`.

Each contestant is a process of its own that waits for its turn; only one works
at a time, and rounds go through all of them, so that a machine's drift hits
all alike. The first two steps of each are warm-up: they compile, and only the
first is reported. Figures are medians of the others, in seconds:

  step        the whole step, as the library's own training loop does it
  generation  from prompts to completions; the peers' loops read and write text
              here, ours reads tokens
  scoring     log-probabilities under the reference policy
  update      loss, gradient and optimizer
  rest        what the step takes beyond these: rewards, advantages, logs. Ours
              has no phases to time inside its one program: they are timed
              alone, and the rest can be below 0
  of peak     the operations that the step needs by arithmetic
              (`costs.step_flops`) over its seconds, as a share of what a large
              float32 matrix product reaches in the same run
  GB          the largest resident set of the process

Every step is checked: completions of exactly the length asked for, other ones
than in the steps before, a finite loss, gradients, weights that move. Ratios
are a peer's median over ours: above 1, ours is faster.
"""

import contextlib
import json
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import cases
import jax
import measuring
import workers
from absl import flags
from peers import protocol

from iapo_jax.cli import command
from iapo_jax.core.errors import ConfigError
from iapo_jax.run import costs

_CASE = flags.DEFINE_enum(
    "case", "both", ("tiny", "small", "large", "both"), "Small, large or both."
)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 7, "Timed steps of each contestant.", lower_bound=1
)
_JSON = flags.DEFINE_string("json", None, "File for every figure.")
_ENVS = flags.DEFINE_string(
    "envs",
    "~/.cache/iapo_jax/benchmarks",
    "Folder that keeps the peers' virtual environments.",
)
_CONTESTANTS = flags.DEFINE_list(
    "contestants", ["ours", "trl", "tunix"], "Who takes part."
)
_CORES = flags.DEFINE_integer(
    "cores", None, "CPU cores to stay on; all by default.", lower_bound=1
)
_DEVICES = flags.DEFINE_integer(
    "devices",
    None,
    "CPU devices that ours spreads a batch over; by default those of the case,"
    " one a core at most.",
    lower_bound=1,
)
_OURS = flags.DEFINE_multi_string(
    "ours", [], "FIELD=VALUE of our own configuration, VALUE as JSON."
)

_PEERS = ("trl", "tunix")
_WARM_UP = 2
_MEASURED = ("step", *protocol.PHASES, "rest")


class Contestant(workers.Worker):
  """A contestant's process that takes turns.

  Attributes:
    steps: the answers of its steps.
  """

  def __init__(
      self, name: str, python: pathlib.Path, job: pathlib.Path
  ) -> None:
    """Starts the process and waits until it has loaded the checkpoint."""
    script = "contest.py" if name == "ours" else f"peers/{name}_worker.py"
    variables = {"JAX_PLATFORMS": "cpu"}
    if name == "ours":
      variables["JAX_NUM_CPU_DEVICES"] = str(protocol.load_job(job)["devices"])
    super().__init__(name, python, job, script=script, **variables)
    self.steps: list[dict[str, Any]] = []

  def step(self, case: cases.Case) -> None:
    """Lets it do one step, and checks that it did."""
    found = self.ask("go")
    found["rest"] = found["step"] - sum(found[k] for k in protocol.PHASES)
    workers.check(self.name, found, cases.expected(case))
    workers.check_learning(self.name, found)
    if any(found["checksum"] == step["checksum"] for step in self.steps):
      raise RuntimeError(f"{self.name}: sampled the same completions twice")
    self.steps.append(found)


@contextlib.contextmanager
def contest(
    names: list[str], case: cases.Case
) -> Iterator[tuple[dict[str, Contestant], int]]:
  """The contestants, ready, and the size of their checkpoint."""
  pythons = workers.pythons(names, _ENVS.value)
  cores = len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
    job = cases.write(
        case,
        pathlib.Path(place),
        steps=_WARM_UP + _ROUNDS.value,
        threads=cores,
        devices=_DEVICES.value or min(case.devices, cores),
        ours=_overrides(),
    )
    size = cases.parameters(job.parent / "checkpoint")
    found = {}
    for name in names:
      found[name] = Contestant(name, pythons[name], job)
      stack.callback(found[name].close)
      if found[name].facts["weights"] != size:
        raise RuntimeError(f"{name}: has another model")
    yield found, size


def _overrides() -> dict[str, Any]:
  found = {}
  for text in _OURS.value:
    field, _, value = text.partition("=")
    try:
      found[field] = json.loads(value)
    except json.JSONDecodeError:
      raise ConfigError(f"--ours {text!r}: must be FIELD=JSON") from None
  return found


def measure(names: list[str], case: cases.Case) -> dict[str, Any]:
  """Runs a case.

  Args:
    names: of the contestants.
    case: to run.

  Returns:
    Every figure, ready for JSON.
  """
  peaks = []
  with contest(names, case) as (contestants, size):
    for round_ in range(_WARM_UP + _ROUNDS.value):
      # Before and after the timed rounds: the machine may have had a pause.
      if "ours" in contestants and round_ == _WARM_UP:
        peaks.append(contestants["ours"].ask("peak")["flops_per_second"])
      for name, worker in contestants.items():
        worker.step(case)
        seconds = worker.steps[-1]["step"]
        print(f"round {round_} {name} {seconds:.3f} s", file=sys.stderr)
    if "ours" in contestants:
      peaks.append(contestants["ours"].ask("peak")["flops_per_second"])
    peak = max(peaks, default=None)
    return {
        "weights": size,
        "sequences": case.sequences,
        "prompt_tokens": case.prompt_tokens,
        "new_tokens": case.new_tokens,
        "flops": costs.step_flops(case),
        "matmul_flops_per_second": peak,
        "contestants": {
            name: _summary(worker, case, peak)
            for name, worker in contestants.items()
        },
    }


def _summary(
    worker: Contestant, case: cases.Case, peak: float | None
) -> dict[str, Any]:
  """A contestant's figures."""
  timed = worker.steps[_WARM_UP:]
  columns = {name: [step[name] for step in timed] for name in _MEASURED}
  seconds = {k: statistics.median(found) for k, found in columns.items()}
  rate = costs.step_flops(case) / seconds["step"]
  return worker.facts | {
      "seconds": seconds,
      "min_seconds": {k: min(found) for k, found in columns.items()},
      "max_seconds": {k: max(found) for k, found in columns.items()},
      "first_step_seconds": worker.steps[0]["step"],
      "tokens_per_second": case.tokens / seconds["step"],
      "flops_per_second": rate,
      "share_of_peak": rate / peak if peak else None,
      "peak_rss_bytes": max(step["rss"] for step in worker.steps),
      "steps": worker.steps,
  }


def ratios(found: dict[str, Any]) -> dict[str, float]:
  """How often ours goes into each peer, and into the best of them.

  Args:
    found: of `measure`.

  Returns:
    `step_vs_trl`, ..., `step_vs_best_peer`, the same of every phase, and
    `share_of_peak`, which is ours.
  """
  medians = {k: c["seconds"] for k, c in found["contestants"].items()}
  if "ours" not in medians:
    return {}
  ours = medians.pop("ours")
  share = found["contestants"]["ours"]["share_of_peak"]
  result = {"share_of_peak": share}
  for column in ("step", *protocol.PHASES):
    theirs = {name: seconds[column] for name, seconds in medians.items()}
    if theirs:
      theirs["best_peer"] = min(theirs.values())
    for name, value in theirs.items():
      result[f"{column}_vs_{name}"] = value / ours[column]
  return result


def report(name: str, found: dict[str, Any], rounds: int) -> Iterator[str]:
  """A case's table and ratios, for people to read."""
  yield (
      f"{name}: {found['weights'] / 1e6:.2f} M weights,"
      f" {found['sequences']} sequences of {found['prompt_tokens']} +"
      f" {found['new_tokens']} tokens, {found['flops'] / 1e9:.0f} Gflop a step"
  )
  peak = found["matmul_flops_per_second"]
  if peak:
    yield f"matrix products reach {peak / 1e9:.0f} Gflop/s"
  yield f"medians of {rounds}"
  yield ""
  columns = (*_MEASURED, "min", "max", "first", "tokens/s", "of peak", "GB")
  yield f"{'':<6}" + "".join(f"{column:>11}" for column in columns)
  for contestant, entry in found["contestants"].items():
    share = entry["share_of_peak"]
    cells = [f"{entry['seconds'][column]:.3f}" for column in _MEASURED]
    cells += [
        f"{entry['min_seconds']['step']:.3f}",
        f"{entry['max_seconds']['step']:.3f}",
        f"{entry['first_step_seconds']:.1f}",
        f"{entry['tokens_per_second']:.0f}",
        f"{share:.1%}" if share else "",
        f"{entry['peak_rss_bytes'] / 1e9:.2f}",
    ]
    yield f"{contestant:<6}" + "".join(f"{cell:>11}" for cell in cells)
  yield ""
  for ratio, value in ratios(found).items():
    yield f"{ratio:<26}{value:>8.2f}"


def main(_: list[str]) -> None:
  """Runs the cases, prints tables and ratios."""
  workers.check_names(_CONTESTANTS.value, _PEERS)
  if _CORES.value:
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[: _CORES.value])
  jax.config.update("jax_platforms", "cpu")
  both = ["small", "large"]
  chosen = both if _CASE.value == "both" else [_CASE.value]
  summary = {
      "machine": measuring.machine(), "rounds": _ROUNDS.value,
      "cases": {}, "ratios": {},
  }  # fmt: skip
  for name in chosen:
    found = measure(_CONTESTANTS.value, cases.named()[name])
    summary["cases"][name], summary["ratios"][name] = found, ratios(found)
    print("\n".join(report(name, found, _ROUNDS.value)), end="\n\n")
    # After each: a long case may be interrupted.
    measuring.write_json(_JSON.value, summary)


if __name__ == "__main__":
  command.run(main)

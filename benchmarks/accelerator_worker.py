"""Ours in `accelerator.py`: one part of the figures, in a process of its own.

  python benchmarks/accelerator_worker.py JOB.json

The weights are random and made on the device. Programs are `contest.py`'s, and
so are what they are called with; those that are timed alone run on weights in
the compute dtype. `configurations` says in which settings a part is tried: the
first that the library's own account of memory (`iapo_jax.run.memory`) finds
room for, or one of the next where the device disagrees.
"""

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import ceilings
import contest
import jax
import jax.numpy as jnp
import numpy as np
from peers import protocol

import iapo_jax
from iapo_jax.config.schema import Config
from iapo_jax.core.types import Params, PyTree, Rollout, StepOutput
from iapo_jax.rl.update import Experience, Tokens
from iapo_jax.run import memory

# Of timed calls, after which no further one is begun.
_ENOUGH_SECONDS = 30.0


def configurations(part: str, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """Settings of ours to try, the fastest first: each needs less memory.

  Only here are the fields named that trade time for memory.

  Args:
    part: of the figures.
    job: as `accelerator.py` wrote it.

  Yields:
    Values by the field's name.
  """
  stride = {"sampling": 1, "probed_step": job["stride"]}.get(part, 0)
  fixed = {
      "model.dtype": job["dtype"],
      "model.attention": job["attention"],
      "probe.stride": stride,
      "credit.mode": "paper" if stride else "grpo",
  }
  count = job["prompts_per_step"] * job["group_size"]
  parts = [n for n in range(1, count + 1) if count % n == 0]
  # Nothing is differentiated in sampling: layers need not be stored.
  for remat in (True,) if part == "sampling" else (False, True):
    for micro_batches in parts:
      yield fixed | {
          "model.remat": remat,
          "loss.micro_batches": micro_batches,
      }


def needed(part: str, cfg: Config, ours: contest.Contestant) -> int:
  """Bytes that a part needs, by the library's account."""
  weights = ours.spec.shapes.params, ours.spec.shardings.params
  found = memory.of_step(cfg, ours.mesh, ours.spec)
  gradients = memory.tree_bytes(*weights)
  forward = found.update - gradients  # as much as there is, and no backward
  held = found.decoding + found.cache
  return {
      "sampling": held + max(found.probes, forward),
      "update": found.state + found.update,
  }.get(part, found.peak)


def plans(part: str, job: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
  """(bytes, settings) of all configurations, in order."""
  ours, found = None, []
  for settings in configurations(part, job):
    changed = job | {"ours": settings}
    ours = ours or contest.Contestant(changed)  # any has the same state
    found.append((needed(part, contest.configure(changed), ours), settings))
  return found


def limit(job: dict[str, Any]) -> int:
  """Bytes that may be used: the job's, the device's or the machine's."""
  if job["memory_bytes"]:
    return job["memory_bytes"]
  stats = jax.devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"]
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def timed(call: Callable[[], None], rounds: int) -> dict[str, float]:
  """Seconds of some calls, after one that does not count."""
  call()
  seconds: list[float] = []
  while len(seconds) < rounds and sum(seconds) < _ENOUGH_SECONDS:
    begin = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - begin)
  return {
      "seconds": statistics.median(seconds),
      "min_seconds": min(seconds),
      "max_seconds": max(seconds),
      "calls": len(seconds),
  }


class Part:
  """The phases of a part, as they are measured.

  Attributes:
    phases: the figures of those that are done.
    phase: the one that is measured.
  """

  def __init__(self, job: dict[str, Any], settings: dict[str, Any]) -> None:
    """Makes the programs; nothing is loaded yet."""
    self.ours = contest.Contestant(job | {"ours": settings})
    self.prompts = self.ours.prompts(protocol.batch_of(job, 0))
    self.phases: dict[str, dict[str, Any]] = {}
    self.phase = "loading"
    self._job = job

  def measure(
      self,
      phase: str,
      compile_program: Callable[[], jax.stages.Compiled],
      call: Callable[[jax.stages.Compiled], None],
  ) -> None:
    """Compiles a phase, times it and notes the memory that it takes."""
    self.phase = phase
    print(f"{self._job['part']}: {phase}", file=sys.stderr)
    begin = time.perf_counter()
    program = compile_program()
    compiled = time.perf_counter() - begin
    seconds = timed(lambda: call(program), self._job["rounds"])
    stats = jax.devices()[0].memory_stats() or {}
    self.phases[phase] = seconds | {
        "compile_seconds": compiled,
        "program_bytes": memory.compiled_bytes(program),
        # Of the process so far; a CPU does not say.
        "peak_bytes": stats.get("peak_bytes_in_use"),
    }

  def sampling(self) -> dict[str, Any]:
    """Decoding, a forward pass, probes at every position and at some."""
    ours, prompts = self.ours, self.prompts
    frozen = jax.block_until_ready(ours.frozen())
    rolled = self._decoding(frozen)
    grades = contest.grade(rolled, prompts)
    advantages = jnp.zeros(rolled.tokens.shape)
    asked = frozen, rolled, grades, prompts
    scored = frozen, prompts, rolled, advantages, rolled.mask
    self._simple("forward", ours.scoring, *scored)
    self._simple("probes", ours.probes(1), *asked)
    self._simple("strided_probes", ours.probes(self._job["stride"]), *asked)
    return protocol.counted(
        np.asarray(prompts.tokens), contest.completions(rolled)
    )

  def update(self) -> dict[str, Any]:
    """Loss, gradient and optimizer, on made-up completions."""
    ours = self.ours
    ours.load()
    del ours.reference  # its log-probabilities are made up, too
    before = self._scale()
    experience = self._experience()
    metrics: dict[str, jax.Array] = {}

    def learn(program: jax.stages.Compiled) -> None:
      ours.state, found = jax.block_until_ready(
          program(ours.state, experience)
      )
      metrics.update(found)

    program = ours.update.lower(ours.state, experience)
    self.measure("update", program.compile, learn)
    learned = contest.learning(metrics, ours.cfg)
    return learned | {"moved": self._moved(before)}

  def step(self) -> dict[str, Any]:
    """The whole step, one program."""
    ours, prompts = self.ours, self.prompts
    ours.load()
    before = self._scale()
    outputs: list[StepOutput] = []

    def step(program: jax.stages.Compiled) -> None:
      del program  # it is the one that `step` runs
      outputs[:] = [ours.step(prompts)]

    self.measure(self._job["part"], lambda: ours.compile_step(prompts), step)
    facts = contest.facts_of(prompts, outputs[0], ours.cfg)
    return facts | {"moved": self._moved(before)}

  def _scale(self) -> np.ndarray:
    """A small weight that every update moves."""
    return np.array(self.ours.state.params["final_norm"]["scale"])

  def _moved(self, before: np.ndarray) -> float:
    return float(np.abs(self._scale() - before).max())

  def _experience(self) -> Experience:
    """What an update learns from: it does as much for any tokens."""
    cfg = self.ours.cfg
    shape = cfg.sequences_per_step, cfg.rollout.max_tokens
    tokens, advantages = jax.random.split(jax.random.key(0))
    logprobs = jnp.full(shape, -math.log(cfg.model.vocab_size))
    return Experience(
        prompts=self.prompts,
        lengths=jnp.full(shape[0], shape[1]),
        tokens=Tokens(
            ids=jax.random.randint(tokens, shape, 0, cfg.model.vocab_size),
            old_logprobs=logprobs,
            reference_logprobs=logprobs,
            advantages=jax.random.normal(advantages, shape),
            weights=jnp.full(shape, 1 / math.prod(shape)),
        ),
    )

  def _decoding(self, frozen: Params) -> Rollout:
    """Times decoding; the last rollout."""
    found: dict[str, Rollout] = {}
    keys = list(jax.random.split(jax.random.key(0), self._job["rounds"] + 1))

    def sample(program: jax.stages.Compiled) -> None:
      found.clear()  # a second cache may have no room
      inputs = frozen, self.prompts, keys.pop()
      found["rollout"] = jax.block_until_ready(program(*inputs))

    program = self.ours.decoding.lower(frozen, self.prompts, keys[0])
    self.measure("decoding", program.compile, sample)
    return found["rollout"]

  def _simple(
      self, phase: str, program: jax.stages.Wrapped, *inputs: PyTree
  ) -> None:
    """Measures a program whose result nobody needs."""
    self.measure(
        phase,
        program.lower(*inputs).compile,
        lambda compiled: jax.block_until_ready(compiled(*inputs)),
    )


def facts(job: dict[str, Any]) -> dict[str, Any]:
  """The device, and what it reaches at best; of a CPU only in a rehearsal."""
  device = jax.devices()[0]
  found = {
      "device": {
          "kind": device.device_kind,
          "platform": device.platform,
          "memory_bytes": limit(job),
      },
      "versions": {"iapo_jax": iapo_jax.__version__, "jax": jax.__version__},
  }
  if device.platform == "cpu" and not job["rehearsal"]:
    return found
  peak = ceilings.matmul_peak(job["dtype"], job["matmul_sizes"])
  return found | {
      "matmul_flops_per_second": peak,
      "bytes_per_second": ceilings.bandwidth(job["bandwidth_bytes"]),
  }


def run(job: dict[str, Any]) -> dict[str, Any]:
  """Measures a part, or says what it would need.

  Args:
    job: as `accelerator.py` wrote it; of what fits, its `attempt` says which.

  Returns:
    The answer.
  """
  found, most = plans(job["part"], job), limit(job)
  fitting = [plan for plan in found if plan[0] <= most]
  if job["attempt"] >= len(fitting):
    return {"fits": False, "needs_bytes": min(needs for needs, _ in found)}
  planned, settings = fitting[job["attempt"]]
  part = Part(job, settings)
  answer = {"planned_bytes": planned, "settings": settings}
  measure = {"sampling": part.sampling, "update": part.update}
  try:
    counted = measure.get(job["part"], part.step)()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    answer |= {"fits": False, "out_of_memory": part.phase}
  else:
    answer |= {"fits": True, "found": counted}
  return answer | {"phases": part.phases}


def main() -> None:
  """Answers once."""
  session = protocol.Session()
  job = protocol.load_job(sys.argv[1])
  session.answer(**(facts(job) if job["part"] == "device" else run(job)))


if __name__ == "__main__":
  main()

"""Ours in `step.py`: the compiled step, and its phases alone.

  python benchmarks/contest.py JOB.json

The step is `train_step.make_train_step`'s, one program, as runs use it with
`credit.mode = grpo`. Being one program it has no phases to time, so generation,
scoring and update are timed once more as programs of their own, right after
it and in their order, from the weights that it left. What the step takes beyond
them is its rest.

An update is made of micro-batches, as Tunix's is: several were measured to be
faster than one. The job's weights are read from its checkpoint by
`iapo_jax.hf`. Completions are graded in the program, as the peers' are by
`protocol.reward`. Settings are the defaults but for those of the job; `step.py
--ours` changes others.
"""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from peers import protocol

import iapo_jax
from iapo_jax import config as config_lib
from iapo_jax import policy, sharding, train_step, update
from iapo_jax import state as state_lib
from iapo_jax.config import Config
from iapo_jax.hf import folder, weights
from iapo_jax.optimizer import make_optimizer
from iapo_jax.types import (
    Array,
    Grades,
    Params,
    Prompts,
    PyTree,
    Rollout,
    StepOutput,
    TrainState,
    Vocabulary,
)

# As many tokens as Qwen2's tokenizer makes of `</think>\n<answer>`.
_ELICITATION = 6


def configure(job: dict[str, Any]) -> Config:
  """The configuration of a run that does the job's steps."""
  model = folder.read_model(pathlib.Path(job["checkpoint"]))
  values = dataclasses.asdict(config_lib.Config())
  values["model"] = dataclasses.asdict(model)
  fields = {
      "seed": job["seed"],
      "prompts_per_step": job["prompts_per_step"],
      "group_size": job["group_size"],
      "num_steps": job["steps"],
      "data.max_prompt_tokens": job["prompt_tokens"],
      "rollout.max_tokens": job["new_tokens"],
      "reward.wrong": 0.0,
      "reward.well_formed": 0.0,
      "reward.malformed": 0.0,
      "credit.mode": "grpo",
      "probe.stride": 0,  # GRPO has no use for probes
      "loss.kl_weight": job["kl_weight"],
      "loss.micro_batches": job["micro_batches"],
      "optimizer.learning_rate": job["learning_rate"],
  }
  for name, value in (fields | job["ours"]).items():
    *path, last = name.split(".")
    node = values
    for part in path:
      node = node[part]
    node[last] = value
  return config_lib.parse(values)


def grade(rolled: Rollout, prompts: Prompts) -> Grades:
  """Right where the last token is even; all of a completion is reasoning."""
  del prompts
  rows = rolled.lengths.shape
  return Grades(
      correct=rolled.tokens[:, -1] % 2 == 0,
      well_formed=jnp.ones(rows, bool),
      reasoning_lengths=rolled.lengths,
      timed_out=jnp.zeros(rows, bool),
  )


class Contestant:
  """The state of a run, its step and the step's phases.

  Attributes:
    state: the newest.
    cfg: of the run.
  """

  def __init__(self, job: dict[str, Any]) -> None:
    """Loads the weights; nothing is compiled yet."""
    self.cfg = configure(job)
    # The one device that peers have, too.
    self._mesh = sharding.make_mesh(self.cfg, jax.devices()[:1])
    self._optimizer = make_optimizer(self.cfg.optimizer, job["steps"])
    of_run = {
        "model": self.cfg.model,
        "optimizer": self._optimizer,
        "credit": self.cfg.credit,
    }
    self._spec = state_lib.state_spec(self._mesh, **of_run)
    place = pathlib.Path(job["checkpoint"])
    self._reference = weights.load(
        place, self.cfg.model, shardings=self._spec.shardings.params
    )
    self.state: TrainState = state_lib.create(
        self._spec, self.cfg.seed, params=self._reference, **of_run
    )
    self._vocabulary = Vocabulary(
        (job["eos_id"],), job["pad_id"], tuple(range(_ELICITATION))
    )
    self._step = train_step.make_train_step(
        self.cfg,
        self._mesh,
        vocabulary=self._vocabulary,
        grader=grade,
        optimizer=self._optimizer,
        spec=self._spec,
    )
    self._rollout = self._program(self._sample)
    self._scoring = self._program(update.gather_experience, cfg=self.cfg)
    self._update = self._program(
        update.update, donated=0, cfg=self.cfg, optimizer=self._optimizer
    )

  def _program(
      self, function: Callable, donated: int | None = None, **fixed: Any
  ) -> jax.stages.Wrapped:
    def program(*inputs: PyTree) -> PyTree:
      with sharding.scope(self._mesh):
        return function(*inputs, **fixed)

    return jax.jit(program, donate_argnums=() if donated is None else donated)

  def _sample(self, params: Params, prompts: Prompts, key: Array) -> Rollout:
    frozen = policy.for_decoding(
        params, self._spec.param_axes, cfg=self.cfg.model
    )
    return train_step.sample(
        frozen, prompts, key, self.cfg, self._vocabulary
    )

  def prompts(self, batch: list[list[int]]) -> Prompts:
    """A step's prompts; nothing looks at their gold answers."""
    tokens = np.asarray(batch, np.int32)
    rows = np.ones(len(batch), np.int32)
    return sharding.put_batch(
        Prompts(tokens, rows * tokens.shape[1], rows[:, None], rows), self._mesh
    )

  def step(self, prompts: Prompts) -> StepOutput:
    """The whole step, done when it returns."""
    self.state, output = jax.block_until_ready(
        self._step(self.state, self._reference, prompts)
    )
    return output

  def phases(
      self, prompts: Prompts, output: StepOutput, session: protocol.Session
  ) -> None:
    """Times the phases of a step that follows the one just done."""

    def timed(phase: str, function: Callable) -> Callable:
      return session.timed(phase, function, jax.block_until_ready)

    copy = jax.block_until_ready(jax.tree.map(jnp.copy, self.state))
    key = jax.random.fold_in(jax.random.key(self.cfg.seed), copy.step)
    rolled = timed("generation", self._rollout)(copy.params, prompts, key)
    experience = timed("scoring", self._scoring)(
        self._reference, prompts, rolled, output.samples.advantages
    )
    timed("update", self._update)(copy, experience)


def matmul_peak() -> float:
  """The most operations a second that square float32 products reach."""
  best = 0.0
  product = jax.jit(jnp.matmul)
  for size in (1024, 2048, 3072):
    x = jnp.ones((size, size), jnp.float32)
    product(x, x).block_until_ready()
    for _ in range(5):
      begin = time.perf_counter()
      product(x, x).block_until_ready()
      best = max(best, 2 * size**3 / (time.perf_counter() - begin))
  return best


def facts_of(prompts: Prompts, output: StepOutput, cfg: Config) -> dict:
  """What a step was, for `step.py` to check."""
  samples, metrics = output.samples, output.metrics
  rows = zip(
      np.asarray(samples.tokens), np.asarray(samples.lengths), strict=True
  )
  completions = [row[:length] for row, length in rows]
  divergence = metrics["update/kl"]
  loss = metrics["update/surrogate"] + cfg.loss.kl_weight * divergence
  return protocol.counted(np.asarray(prompts.tokens), completions) | {
      "loss": float(loss),
      "grad_norm": float(metrics["update/grad_norm"]),
  }


def one_step(
    ours: Contestant, session: protocol.Session, batch: list[list[int]]
) -> None:
  """Runs and times one step, then its phases, and answers."""
  before = np.array(ours.state.params["embedding"])
  session.start()
  prompts = ours.prompts(batch)
  output = ours.step(prompts)
  session.stop()
  moved = np.abs(np.asarray(ours.state.params["embedding"]) - before).max()
  ours.phases(prompts, output, session)
  session.answer(
      **session.seconds,
      **facts_of(prompts, output, ours.cfg),
      moved=float(moved),
  )


def main() -> None:
  """Answers as long as it is asked."""
  session = protocol.Session()
  job = protocol.load_job(sys.argv[1])
  ours = Contestant(job)
  session.answer(
      versions={"iapo_jax": iapo_jax.__version__, "jax": jax.__version__},
      weights=sum(leaf.size for leaf in jax.tree.leaves(ours.state.params)),
      settings=config_lib.flatten(ours.cfg),
  )
  step = 0
  while command := session.wait():
    if command == "peak":
      session.answer(flops_per_second=matmul_peak())
      continue
    one_step(ours, session, protocol.batch_of(job, step))
    step += 1


if __name__ == "__main__":
  main()

"""Ours in `step.py`: the compiled step, and its phases alone.

  python benchmarks/contest.py JOB.json

The step is `train_step.make_train_step`'s, one program, as runs use it with
`credit.mode = grpo`. Being one program it has no phases to time, so generation,
scoring and update are timed once more as programs of their own, right after
it and in their order, from the weights that it left. What the step takes beyond
them is its rest.

The batch is spread over as many devices as the job says, of one core each or
of all cores, whichever was faster. An update is made of micro-batches, as
Tunix's is: several were measured to be faster than one. A device has as many
sequences at a time as Tunix's one has. The job's weights are read from its
checkpoint by `iapo_jax.hf`; a job without one names a decoder, whose weights
are random (`accelerator.py`). Completions are graded in the program, as the
peers' are by `protocol.reward`. Settings are the defaults but for those of the
job; `step.py --ours` changes others.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import ceilings
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from peers import protocol

import iapo_jax
from iapo_jax.config import parsing as config_lib
from iapo_jax.config.schema import Config
from iapo_jax.core import sharding
from iapo_jax.core.types import (
  Array,
  Grades,
  KeyDomain,
  Params,
  Prompts,
  PyTree,
  Rollout,
  Samples,
  StepOutput,
  TrainState,
  Vocabulary,
)
from iapo_jax.hf import folder, weights
from iapo_jax.models import transformer
from iapo_jax.rl import policy, train_step, update
from iapo_jax.rl import state as state_lib
from iapo_jax.rl.optimizer import make_optimizer
from iapo_jax.run import assembly

# As many tokens as Qwen2's tokenizer makes of `</think>\n<answer>`.
ELICITATION = 6


def configure(job: dict[str, Any]) -> Config:
  """The configuration of a run that does the job's steps."""
  values = dataclasses.asdict(config_lib.Config())
  if "checkpoint" in job:
    model = folder.read_model(pathlib.Path(job["checkpoint"]))
    values["model"] = dataclasses.asdict(model)
  else:
    values["model"] = dict(job["model"])
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
      "loss.micro_batches": max(1, job["micro_batches"] // _devices(job)),
      "optimizer.learning_rate": job["learning_rate"],
  }
  for name, value in (fields | job["ours"]).items():
    *path, last = name.split(".")
    node = values
    for part in path:
      node = node[part]
    node[last] = value
  return config_lib.parse(values)


def _devices(job: dict[str, Any]) -> int:
  """Over how many the batch is spread."""
  return job.get("devices", 1)


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
  """The programs of a run, and its state once that is loaded.

  Attributes:
    cfg: of the run.
    mesh: of the job's devices.
    spec: of the state.
    vocabulary: without a token that ends a completion.
    rollout: (weights, prompts, key) -> rollout.
    decoding: the same, of weights as `frozen` has them.
    scoring: (weights, prompts, rollout, advantages, what learns) ->
      experience.
    update: (state, experience) -> (state, metrics); the state is donated.
    state: the newest.
    reference: the weights that it began with.
  """

  state: TrainState
  reference: Params

  def __init__(self, job: dict[str, Any]) -> None:
    """Makes the programs; nothing is compiled or loaded yet."""
    self.cfg = configure(job)
    devices = jax.devices()[: _devices(job)]
    self.mesh = assembly.make_mesh(self.cfg, devices)
    self.vocabulary = Vocabulary(
        (job["eos_id"],), job["pad_id"], tuple(range(ELICITATION))
    )
    self._checkpoint = job.get("checkpoint")
    self._optimizer = make_optimizer(self.cfg.optimizer, job["steps"])
    self.spec = state_lib.state_spec(self.mesh, self.cfg, self._optimizer)
    self._step = train_step.make_train_step(
        self.cfg,
        self.mesh,
        vocabulary=self.vocabulary,
        grader=grade,
        optimizer=self._optimizer,
        spec=self.spec,
    )
    self.rollout = self._program(self._sample)
    self.decoding = self._program(self._decode)
    self.scoring = self._program(update.gather_experience, cfg=self.cfg)
    self.update = self._program(
        update.update, donated=0, cfg=self.cfg, optimizer=self._optimizer
    )

  def load(self) -> None:
    """The weights, and the state of a run that starts from them."""
    if self._checkpoint:
      self.reference = weights.load(
          pathlib.Path(self._checkpoint),
          self.cfg.model,
          shardings=self.spec.shardings.params,
      )
    else:
      make = jax.jit(self._random, out_shardings=self.spec.shardings.params)
      self.reference = make()
    self.state = state_lib.create(
        self.spec, self.cfg, self._optimizer, self.reference
    )

  def frozen(self) -> Params:
    """Random weights as decoding reads them, and no others."""
    return self._program(lambda: self._gather(self._random()))()

  def probes(self, stride: int) -> jax.stages.Wrapped:
    """(weights, rollout, grades, prompts) -> statistics of the answer.

    Args:
      stride: of the positions that are probed.
    """
    probe = dataclasses.replace(self.cfg.probe, stride=stride)
    return self._program(
        train_step.run_probes,
        cfg=dataclasses.replace(self.cfg, probe=probe),
        vocabulary=self.vocabulary,
    )

  def compile_step(self, prompts: Prompts) -> jax.stages.Compiled:
    """Compiles what `step` runs, for what the program tells of itself."""
    inputs = self.state, self.reference, prompts
    self._step = self._step.lower(*inputs).compile()
    return self._step

  def _random(self) -> Params:
    key = KeyDomain.WEIGHTS.key(self.cfg.seed)
    return nn.unbox(transformer.init(key, self.cfg.model))

  def _gather(self, params: Params) -> Params:
    return policy.for_decoding(
        params, self.spec.param_axes, cfg=self.cfg.model
    )

  def _program(
      self, function: Callable, donated: int | None = None, **fixed: Any
  ) -> jax.stages.Wrapped:
    def program(*inputs: PyTree) -> PyTree:
      with sharding.scope(self.mesh):
        return function(*inputs, **fixed)

    return jax.jit(program, donate_argnums=() if donated is None else donated)

  def _sample(self, params: Params, prompts: Prompts, key: Array) -> Rollout:
    return self._decode(self._gather(params), prompts, key)

  def _decode(self, frozen: Params, prompts: Prompts, key: Array) -> Rollout:
    return train_step.sample(frozen, prompts, key, self.cfg, self.vocabulary)

  def prompts(self, batch: list[list[int]]) -> Prompts:
    """A step's prompts; nothing looks at their gold answers."""
    tokens = np.asarray(batch, np.int32)
    rows = np.ones(len(batch), np.int32)
    return sharding.put_batch(
        Prompts(
            tokens, rows * tokens.shape[1], rows[:, None], rows,
            np.arange(len(rows), dtype=np.int32),
        ),
        self.mesh,
    )

  def step(self, prompts: Prompts) -> StepOutput:
    """The whole step, done when it returns."""
    self.state, output = jax.block_until_ready(
        self._step(self.state, self.reference, prompts)
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
    rolled = timed("generation", self.rollout)(copy.params, prompts, key)
    experience = timed("scoring", self.scoring)(
        self.reference,
        prompts,
        rolled,
        output.samples.advantages,
        output.samples.learned,
    )
    timed("update", self.update)(copy, experience)


def completions(rolled: Rollout | Samples) -> list[np.ndarray]:
  """The tokens of each completion."""
  rows = zip(
      np.asarray(rolled.tokens), np.asarray(rolled.lengths), strict=True
  )
  return [row[:length] for row, length in rows]


def learning(metrics: dict[str, Array], cfg: Config) -> dict[str, float]:
  """What an update was, for a check of it."""
  divergence = metrics["update/kl"]
  loss = metrics["update/surrogate"] + cfg.loss.kl_weight * divergence
  return {
      "loss": float(loss), "grad_norm": float(metrics["update/grad_norm"])
  }  # fmt: skip


def facts_of(prompts: Prompts, output: StepOutput, cfg: Config) -> dict:
  """What a step was, for `step.py` to check."""
  counted = protocol.counted(
      np.asarray(prompts.tokens), completions(output.samples)
  )
  return counted | learning(output.metrics, cfg)


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
  ours.load()
  session.answer(
      versions={"iapo_jax": iapo_jax.__version__, "jax": jax.__version__},
      weights=sum(leaf.size for leaf in jax.tree.leaves(ours.state.params)),
      devices=ours.mesh.size,
      settings=config_lib.flatten(ours.cfg),
  )
  step = 0
  while command := session.wait():
    if command == "peak":
      small = job["rehearsal"]
      sizes = ceilings.REHEARSAL_SIZES if small else ceilings.CPU_SIZES
      peak = ceilings.matmul_peak("float32", sizes)
      session.answer(flops_per_second=peak)
      continue
    one_step(ours, session, protocol.batch_of(job, step))
    step += 1


if __name__ == "__main__":
  main()

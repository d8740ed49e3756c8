"""Goes on from a checkpoint on recorded rollouts: one of several processes.

  train_across.py COORDINATOR COUNT INDEX CHECKPOINTS STEP OUT

What it learned, and the first step's logits, are written by the first process.
"""

import pathlib
import sys

import jax
import numpy as np
import optax
import recorded

from iapo_jax.core import processes, sharding
from iapo_jax.run import checkpoint

STEPS = 5
SETTINGS = {"credit__mode": "to_go", "loss__kl_weight": 0.5}
MESHES = {
    1: {},
    4: {"mesh__data": 2, "mesh__fsdp": 2},
    8: {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2},
}


def setup_on(devices):
  optimizer = optax.sgd(0.003, momentum=0.9)
  cfg = recorded.make_config(**SETTINGS, **MESHES[len(devices)])
  return recorded.setup_on(devices, optimizer, cfg)


def recordings():
  """The rollouts, on a device of this process; the policy they began with."""
  single = setup_on(jax.local_devices()[:1])
  params = recorded.make_params(single)
  rollouts = [recorded.record(single, params, k) for k in range(STEPS)]
  return params, rollouts


def go_on(setup, state, step, params, rollouts, after=None):
  """The state after the recorded steps that are left.

  Args:
    setup: on any mesh.
    state: after `step` steps.
    step: how many are done.
    params: the policy at the start.
    rollouts: one a step.
    after: called with the steps done and the state.
  """
  learn = recorded.learner(setup)
  reference = jax.device_put(
      jax.tree.map(lambda x: x * 0.9, params),
      setup.stage.spec.shardings.params,
  )
  for done in range(step, STEPS):
    placed = recorded.place(setup, rollouts[done])
    state, _, _ = learn(state, reference, setup.prompts(done), placed)
    if after:
      after(done + 1, state)
  return state


def first_logits(setup, state, rollouts):
  tokens = sharding.put_batch(rollouts[0].tokens, setup.parts.mesh)
  found = recorded.logits(setup, state.params, setup.prompts(0), tokens)
  return processes.gather(found)


def main(coordinator, count, index, folder, step, out):
  processes.join(coordinator, int(count), int(index))
  params, rollouts = recordings()
  setup = setup_on(jax.devices())
  state, _ = checkpoint.restore(
      pathlib.Path(folder), int(step), setup.stage.spec
  )
  logits = first_logits(setup, state, rollouts)
  state = go_on(setup, state, int(step), params, rollouts)
  leaves = processes.gather(jax.tree.leaves(state.params))
  if processes.is_first():
    np.savez(out, logits, *leaves)


if __name__ == "__main__":
  main(*sys.argv[1:])

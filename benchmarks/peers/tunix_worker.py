"""A GRPO step of Tunix, in its own learner's loop.

  python tunix_worker.py JOB.json

Settings beyond the job's: generation and scoring of the whole batch at once,
the update in micro-batches (its loss keeps all logits: in one, the large case
takes a sixth longer and three times the memory), no rematerialisation, float32,
the vanilla rollout (the others need an accelerator), actor and rollout on one
mesh and so sharing their weights, a cache of exactly prompt + completion, a
tokenizer without BOS (with one, prompts would be padded to the next power of
two), no checkpoints, no metrics backend. top_p = 1 and no top_k is its fast
path, without a sort. One device, with all cores: its FSDP over a device a core
takes a seventh longer. It samples with the same key every step unless told
another: here the seed is the step.

The clock runs from one batch being handed out to the next one being asked for,
the weights computed: the learner asks when a step is done, and does not ask
ahead.
"""

import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import optax
import protocol
import transformers
from flax import nnx
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen2 import params as qwen2_params
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout


class Turns:
  """The learner's data: hands out a batch whenever a step is asked for."""

  def __init__(
      self,
      session: protocol.Session,
      job: dict[str, Any],
      cluster: rl_cluster.RLCluster,
  ) -> None:
    """Times the cluster's own methods, and notes what they return."""
    self._session, self._job, self._cluster = session, job, cluster
    self._rollout: base_rollout.RolloutOutput | None = None
    wait = jax.block_until_ready
    generate = session.timed("generation", cluster.generate)

    def generated(*args: Any, **kwargs: Any) -> base_rollout.RolloutOutput:
      found = generate(*args, **kwargs)
      self._rollout = found
      return found

    cluster.generate = generated
    cluster.get_ref_per_token_logps = session.timed(
        "scoring", cluster.get_ref_per_token_logps, wait
    )
    cluster.update_actor = session.timed(
        "update", cluster.update_actor, lambda _: wait(self._state())
    )

  def _state(self) -> Any:
    return nnx.state(self._cluster.actor_trainer.model)

  def _embedding(self) -> np.ndarray:
    model = self._cluster.actor_trainer.model
    return np.array(model.embedder.input_embedding[...])

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    """Batches of prompts, as long as they are asked for."""
    for step in range(self._job["steps"]):
      before = self._embedding()
      if not self._session.wait():
        return
      self._cluster.get_rollout_config("train").seed = step
      batch = protocol.batch_of(self._job, step)
      # An array, for its items are what the learner repeats.
      texts = np.array([protocol.as_text(ids) for ids in batch])
      self._session.start()
      yield {"prompts": texts}
      jax.block_until_ready(self._state())
      self._session.stop()
      self._report(before)

  def _report(self, before: np.ndarray) -> None:
    """Answers with the step's figures."""
    buffered = self._cluster.actor_trainer._prev_buffered_train_metrics
    norm = buffered.additional_metrics["grad_norm"][0][-1]
    found = self._rollout
    self._session.answer(
        **self._session.seconds,
        **protocol.counted(found.left_padded_prompt_tokens, found.tokens),
        loss=float(np.mean(buffered.losses)),
        grad_norm=float(norm),
        moved=float(np.abs(self._embedding() - before).max()),
    )


def load(job: dict[str, Any], mesh: jax.sharding.Mesh) -> nnx.Module:
  """The checkpoint as Tunix's model."""
  path = pathlib.Path(job["checkpoint"], "config.json")
  found = json.loads(path.read_text(encoding="utf-8"))
  cfg = qwen2.ModelConfig(
      num_layers=found["num_hidden_layers"],
      vocab_size=found["vocab_size"],
      embed_dim=found["hidden_size"],
      hidden_dim=found["intermediate_size"],
      num_heads=found["num_attention_heads"],
      head_dim=found["hidden_size"] // found["num_attention_heads"],
      num_kv_heads=found["num_key_value_heads"],
      rope_theta=int(found["rope_parameters"]["rope_theta"]),
      norm_eps=found["rms_norm_eps"],
      use_tied_embedding=found["tie_word_embeddings"],
      remat_config=qwen2.RematConfig.NONE,
      dtype=jnp.float32,
      param_dtype=jnp.float32,
  )
  return qwen2_params.create_model_from_safe_tensors(
      job["checkpoint"], cfg, mesh, dtype=jnp.float32
  )


def make_cluster(job: dict[str, Any]) -> rl_cluster.RLCluster:
  """Actor, rollout and reference, all on the one device."""
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=auto)
  prompt, new = job["prompt_tokens"], job["new_tokens"]
  optimizer = optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.adamw(job["learning_rate"], weight_decay=0.0),
  )
  training = rl_cluster.RLTrainingConfig(
      actor_optimizer=optimizer,
      eval_every_n_steps=job["steps"] + 1,
      # One more than there are batches: after the last it still asks for one.
      max_steps=job["steps"] + 1,
      mini_batch_size=job["prompts_per_step"],
      train_micro_batch_size=job["prompts_per_step"] // job["micro_batches"],
      rollout_micro_batch_size=job["prompts_per_step"],
      compute_logps_micro_batch_size=job["prompts_per_step"],
  )
  rollout = base_rollout.RolloutConfig(
      max_tokens_to_generate=new,
      max_prompt_length=prompt,
      kv_cache_size=prompt + new,
      temperature=1.0,
      top_p=1.0,
      top_k=None,
      eos_tokens=[job["eos_id"]],
  )
  roles = (
      rl_cluster.Role.ACTOR,
      rl_cluster.Role.REFERENCE,
      rl_cluster.Role.ROLLOUT,
  )
  return rl_cluster.RLCluster(
      actor=load(job, mesh),
      reference=load(job, mesh),
      tokenizer=transformers.PreTrainedTokenizerFast.from_pretrained(
          job["checkpoint"]
      ),
      cluster_config=rl_cluster.ClusterConfig(
          role_to_mesh=dict.fromkeys(roles, mesh),
          rollout_engine="vanilla",
          offload_to_cpu=False,
          training_config=training,
          rollout_config=rollout,
      ),
  )


def main() -> None:
  """Makes the learner and runs its loop."""
  session = protocol.Session()
  job = protocol.load_job(sys.argv[1])
  cluster = make_cluster(job)

  def reward(completions: list[str], **kwargs: Any) -> list[float]:
    return [protocol.reward(text) for text in completions]

  learner = grpo_learner.GRPOLearner(
      rl_cluster=cluster,
      algo_config=grpo_learner.GRPOConfig(
          num_generations=job["group_size"],
          num_iterations=1,
          beta=job["kl_weight"],
          kl_loss_mode="low_var_kl",
      ),
      reward_fns=reward,
  )
  turns = Turns(session, job, cluster)
  state = jax.tree.leaves(nnx.state(cluster.actor_trainer.model))
  names = ("google-tunix", "jax", "flax")
  session.answer(
      versions={name: importlib.metadata.version(name) for name in names},
      weights=sum(leaf.size for leaf in state),
      threads=len(os.sched_getaffinity(0)),
  )
  learner.train(turns)


if __name__ == "__main__":
  main()

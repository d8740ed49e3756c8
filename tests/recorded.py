"""A run's parts, and rollouts of planted texts that any mesh can learn from.

Tests in one process share setups and compiled programs with equal settings. A
test that patches code makes its own with `setup_on`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny
from flax import linen as nn

from iapo_jax.config import parsing as config_lib
from iapo_jax.core import sharding
from iapo_jax.core.types import KeyDomain, Rollout
from iapo_jax.models import head, transformer
from iapo_jax.rl import credit, early_answers, policy, train_step, update
from iapo_jax.rl import state as state_lib
from iapo_jax.run import assembly


def make_config(**overrides):
  """The arithmetic task with a small decoder that splits eight ways."""
  base = config_lib.default()
  base.update({"prompts_per_step": 8, "group_size": 4})
  base.model.update({
      "vocab_size": 40,
      "d_model": 32,
      "num_heads": 8,
      "num_kv_heads": 8,
      "head_dim": 4,
      "mlp_dim": 64,
  })
  base.rollout.max_tokens = 20
  base.data.arithmetic.update({
      "train_problems": 32,
      "validation_problems": 8,
      "test_problems": 8,
  })
  for name, value in overrides.items():
    base.update_from_flattened_dict({name.replace("__", "."): value})
  return config_lib.parse(base)


@dataclasses.dataclass(eq=False)
class Setup:
  """The parts of a run and its stage, with shorthands."""

  parts: assembly.Assembly
  stage: assembly.Stage

  @property
  def cfg(self):
    return self.parts.cfg

  def state(self, params=None):
    if params is None:
      params = _initial(self.cfg.model, self.cfg.seed)
    return assembly.create_state(self.parts, self.stage, params)

  def rows(self, epoch):
    q = self.cfg.prompts_per_step
    problems = len(self.parts.task.tables["train"].kept)
    return np.arange(q * epoch, q * (epoch + 1)) % problems

  def prompts(self, epoch=0):
    table, rows = self.parts.task.tables["train"], self.rows(epoch)
    return sharding.put_batch(
        jax.tree.map(lambda x: x[rows], table.prompts), self.parts.mesh
    )

  def step(self):
    return _step(self)


@functools.cache
def _step(setup):
  return assembly.train_step_of(setup.parts, setup.stage)


def make_setup(devices=1, **overrides):
  """Parts on the first `devices` devices of this process."""
  return _make_setup(devices, make_config(**overrides))


@functools.cache
def _make_setup(devices, cfg):
  # SGD with rate 1: the change of the weights is the gradient itself.
  return setup_on(jax.local_devices()[:devices], optax.sgd(1.0), cfg)


def setup_on(devices, optimizer, cfg):
  """Parts on any devices, those of other processes too."""
  parts = assembly.assemble(cfg, devices)
  spec = state_lib.state_spec(parts.mesh, parts.cfg, optimizer)
  return Setup(parts, assembly.Stage(optimizer, spec))


def make_params(setup):
  """Weights whose distributions are far from uniform, on the host."""
  initial = _initial(setup.cfg.model, setup.cfg.seed)
  return jax.tree.map(lambda x: x * 1.5, initial)


@functools.cache
def _initial(model, seed):
  """The weights with which a run begins, on the host."""
  key = KeyDomain.WEIGHTS.key(jnp.uint32(seed))
  fresh = jax.jit(functools.partial(transformer.init, cfg=model))
  return jax.device_get(nn.unbox(fresh(key)))


def planted_completions(setup, epoch=0):
  """Texts of which some are right, some well formed, some both, per group.

  The first group is right throughout: a group without spread.
  """
  tokenizer = setup.parts.task.tokenizer
  table = setup.parts.task.tables["train"].prompts
  eos, width = tokenizer.eos_token_id, setup.cfg.rollout.max_tokens
  tokens = np.full((32, width), tokenizer.pad_token_id, np.int32)
  lengths, ended = np.zeros(32, np.int32), np.zeros(32, bool)
  for row in range(32):
    group, sample = divmod(row, setup.cfg.group_size)
    i = setup.rows(epoch)[group]
    gold = tokenizer.decode(table.gold[i, : table.gold_lengths[i]])
    wrong = "0" if gold != "0" else "1"
    chain = " ".join(["b 5 + 1 = 6 so total 6 ."] * 2)
    chain = " ".join(chain.split()[: 1 + (row * 5) % 12])
    text = [
        f"{chain} </think> <answer> {gold} </answer>",
        f"{chain} </think> <answer> {wrong} </answer>",
        f"{chain} </think> </think> <answer> {gold} </answer>",
        "check 5 + 1 = 6 yes " * 3,
    ][0 if group == 0 else sample]
    ids = [*tokenizer.encode(text), eos]
    ended[row] = len(ids) <= width
    lengths[row] = min(len(ids), width)
    tokens[row, : lengths[row]] = ids[:width]
  return tokens, lengths, ended


def _forward(params, prompts, tokens, model, group_size):
  """Hidden states [b, t + 1, d] of completions, and their context."""
  prompt = policy.prefill(params, prompts, cfg=model)
  starts = policy.starts(prompts, group_size)
  first, start = starts.tokens[:, None], starts.positions[:, None]
  hidden, completion = transformer.extend(
      params,
      jnp.concatenate([first, tokens], axis=1),
      start + jnp.arange(tokens.shape[1] + 1),
      (prompt,),
      cfg=model,
  )
  return hidden, (prompt, completion)


def logits(setup, params, prompts, tokens):
  """fp32[b, t + 1, v] of completions, on the setup's mesh."""
  cfg = setup.cfg

  def run(params, prompts, tokens):
    with sharding.scope(setup.parts.mesh):
      frozen = policy.for_decoding(
          params, setup.stage.spec.param_axes, cfg=cfg.model
      )
      hidden, _ = _forward(frozen, prompts, tokens, cfg.model, cfg.group_size)
      return head.logits(frozen, hidden, cfg=cfg.model)

  return jax.jit(run)(params, prompts, tokens)


def record(setup, params, epoch=0):
  """The rollout in which the policy sampled the planted completions."""
  cfg = setup.cfg
  run = _recorder(
      cfg.model, cfg.group_size, cfg.rollout.temperature, cfg.loss.head_chunk
  )
  prompts = jax.device_get(setup.prompts(epoch))
  planted = planted_completions(setup, epoch)
  return jax.device_get(run(params, prompts, *planted))


@functools.cache
def _recorder(model, group_size, temperature, chunk):

  def run(params, prompts, tokens, lengths, ended):
    stats = tiny.score(
        params, prompts, tokens, cfg=model, group_size=group_size,
        temperature=temperature, chunk=chunk,
    )  # fmt: skip
    _, context = _forward(params, prompts, tokens, model, group_size)
    live = jnp.arange(tokens.shape[1]) < lengths[:, None]
    return Rollout(
        tokens=tokens,
        lengths=lengths,
        ended=ended,
        logprobs=jnp.where(live, stats.logprob, 0.0),
        entropies=jnp.where(live, stats.entropy, 0.0),
        context=context,
    )

  return jax.jit(run)


@functools.cache
def learner(setup):
  """All of a step that follows the rollout, on the setup's own mesh.

  (state, reference, prompts, rollout) -> state, samples, metrics.
  """
  cfg, vocabulary = setup.cfg, setup.parts.task.vocabulary

  def run(state, reference, prompts, rolled):
    with sharding.scope(setup.parts.mesh):
      frozen = policy.for_decoding(
          state.params, setup.stage.spec.param_axes, cfg=cfg.model
      )
      grades = setup.parts.grader(rolled, prompts)
      probe = train_step.run_probes(
          frozen, rolled, grades, prompts, cfg, vocabulary
      )
      credited, metrics = credit.assign(
          rolled, grades, probe, state.weights, jax.random.key(3), cfg
      )
      experience = update.gather_experience(
          reference, prompts, rolled, credited.advantages, credited.learned,
          cfg,
      )  # fmt: skip
      if cfg.loss.early_weight:
        early = early_answers.cut(
            rolled.tokens, grades, vocabulary.elicitation, jax.random.key(4)
        )
        experience = update.with_early_answers(
            experience, early, weight=cfg.loss.early_weight
        )
      state, more = update.update(
          state, experience, cfg, setup.stage.optimizer, metrics
      )
      samples = train_step.record(rolled, grades, credited)
    return state, samples, metrics | more

  return jax.jit(run)


def place(setup, recorded):
  """A recorded rollout on the setup's mesh; every process has all of it."""
  mesh = setup.parts.mesh
  rows = functools.partial(sharding.put_batch, mesh=mesh)

  def put(x, *spec):
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

  def segment(x, visible):
    return x.replace(
        keys=put(x.keys, None, sharding.BATCH_AXES),
        values=put(x.values, None, sharding.BATCH_AXES),
        visible=visible,
    )

  prompt, completion = recorded.context
  context = (
      segment(prompt, rows(prompt.visible)),
      segment(completion, put(completion.visible)),
  )
  return rows(recorded.replace(context=())).replace(context=context)


def learn(setup, recorded, reference, params=None):
  """One step: parameters, samples and metrics, on the host."""
  params = make_params(setup) if params is None else params
  reference = jax.device_put(reference, setup.stage.spec.shardings.params)
  state, samples, metrics = learner(setup)(
      setup.state(params), reference, setup.prompts(), place(setup, recorded)
  )
  return jax.device_get((state.params, samples, metrics))

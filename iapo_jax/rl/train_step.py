"""One compiled step: rollout, grading, probes, credit, policy gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from iapo_jax.config.credits import CREDITS
from iapo_jax.config.schema import OF_OWN_ANSWER, Config
from iapo_jax.core import sharding
from iapo_jax.core.types import (
  AnswerStatistics,
  Array,
  Grades,
  KeyDomain,
  Params,
  Prompts,
  Rollout,
  Samples,
  StepOutput,
  TrainState,
  Vocabulary,
)
from iapo_jax.rewards.host import Rewarder
from iapo_jax.rewards.reward import Grader
from iapo_jax.rl import (
  credit,
  early_answers,
  mi,
  policy,
  probes,
  rollout,
  update,
)
from iapo_jax.rl.own import NOTHING, Own
from iapo_jax.rl.planting import Planting
from iapo_jax.rl.state import StateSpec

TrainStep = Callable[
    [TrainState, Params | None, Prompts], tuple[TrainState, StepOutput]
]


def make_train_step(
    cfg: Config,
    mesh: Mesh,
    *,
    vocabulary: Vocabulary,
    grader: Grader,
    optimizer: optax.GradientTransformation,
    spec: StateSpec,
    planting: Planting | None = None,
    own: Own = NOTHING,
    rewarder: Rewarder | None = None,
) -> TrainStep:
  """Builds the whole step as one jitted, sharded program.

  The state is donated. `rewarder` calls `own.text_reward`, and `grader`
  `own.text_grader`.

  Returns:
    (state, reference parameters or None if β = 0, prompts) -> (state, output).
    The first call compiles it, later calls do not.
  """
  batch = sharding.batch_sharding(mesh)
  whole = sharding.replicated(mesh)
  reference = spec.shardings.params if cfg.loss.kl_weight else None
  probing = own.probing or run_probes

  def step(
      state: TrainState, ref_params: Params | None, prompts: Prompts
  ) -> tuple[TrainState, StepOutput]:
    with sharding.scope(mesh):
      key = KeyDomain.TRAINING.key(state.seed)
      key = jax.random.fold_in(key, state.step)
      sample_key, credit_key, early_key = jax.random.split(key, 3)
      frozen = policy.for_decoding(
          state.params, spec.param_axes, cfg=cfg.model
      )
      rolled = sample(
          frozen, prompts, sample_key, cfg, vocabulary, planting
      )
      grades = grader(rolled, prompts)
      probe = probing(frozen, rolled, grades, prompts, cfg, vocabulary)
      reward, named = own.reward and own.reward(rolled, grades, prompts), {}
      if rewarder:
        reward, named = rewarder(rolled, prompts)
      credited, metrics = credit.assign(
          rolled, grades, probe, state.weights, credit_key, cfg,
          reward=reward, parts=named, own=own.credit,
      )  # fmt: skip
      experience = update.gather_experience(
          ref_params, prompts, rolled, credited.advantages, credited.learned,
          cfg,
      )  # fmt: skip
      if cfg.loss.early_weight:
        early = early_answers.cut(
            rolled.tokens, grades, vocabulary.elicitation, early_key
        )
        experience = update.with_early_answers(
            experience, early, weight=cfg.loss.early_weight
        )
      state, update_metrics = update.update(
          state, experience, cfg, optimizer, metrics
      )
      samples = record(rolled, grades, credited)
    return state, StepOutput(metrics | update_metrics, samples)

  return jax.jit(
      step,
      donate_argnums=0,
      in_shardings=(spec.shardings, reference, batch),
      out_shardings=(spec.shardings, StepOutput(whole, batch)),
  )


def record(
    rolled: Rollout, grades: Grades, credited: credit.Credited
) -> Samples:
  """Makes the per-token record of a step.

  `information` is D, even if a control credits something else.
  """
  known = credited.evidence
  return Samples(
      tokens=rolled.tokens,
      lengths=rolled.lengths,
      ended=rolled.ended,
      reasoning_lengths=grades.reasoning_lengths,
      correct=grades.correct,
      well_formed=grades.well_formed,
      rewards=known.rewards,
      entropies=rolled.entropies,
      answer_entropies=known.uncertainty,
      information=mi.realised_information(known.uncertainty, known.reasoning),
      group_advantages=known.group_advantages,
      advantages=credited.advantages,
      learned=credited.learned,
  )


def sample(
    params: Params,
    prompts: Prompts,
    key: Array,
    cfg: Config,
    vocabulary: Vocabulary,
    planting: Planting | None = None,
) -> Rollout:
  """Samples the training rollout."""
  return rollout.sample(
      params,
      prompts,
      key,
      cfg=cfg.model,
      group_size=cfg.group_size,
      max_tokens=cfg.rollout.max_tokens,
      eos_ids=vocabulary.eos_ids,
      pad_id=vocabulary.pad_id,
      temperature=cfg.rollout.temperature,
      planting=planting,
  )


def run_probes(
    params: Params,
    rolled: Rollout,
    grades: Grades,
    prompts: Prompts,
    cfg: Config,
    vocabulary: Vocabulary,
) -> AnswerStatistics | None:
  """Returns answer statistics [b, t + 1] for the gold answer's first token.

  Probes run on reasoning tokens, or on every completion token for a credit mode
  that needs them there (`faithful`). None without probes.
  """
  if not cfg.probe.stride:
    return None
  every_token = CREDITS[cfg.credit.mode].at_every_token
  if cfg.probe.at == "sentences":
    ends = jnp.zeros(cfg.model.vocab_size, bool)
    ends = ends.at[jnp.asarray(vocabulary.sentence_ends, jnp.int32)].set(True)
    marks = probes.after(rolled.tokens, ends)
  else:
    marks = probes.strided(cfg.rollout.max_tokens + 1, cfg.probe.stride)
  context, model = rolled.context, cfg.model
  if cfg.probe.layers:
    params, context, model = policy.shallow(
        params, context, model, cfg.probe.layers
    )
  return probes.answer_statistics(
      params,
      context,
      rolled.lengths if every_token else grades.reasoning_lengths,
      marks,
      jnp.asarray(vocabulary.elicitation, jnp.int32),
      jnp.repeat(prompts.gold[:, 0], cfg.group_size),
      cfg=model,
      answers=_asked_for(grades, prompts, cfg),
      temperature=cfg.rollout.temperature,
      most=probes.most(cfg),
      budget=cfg.tokens_per_pass,
      head_chunk=cfg.loss.head_chunk,
  )


def _asked_for(
    grades: Grades, prompts: Prompts, cfg: Config
) -> tuple[Array, Array] | None:
  """Returns the answers that the estimator scores, and their lengths."""
  if cfg.probe.estimator == "entropy":
    return None
  if cfg.probe.estimator in OF_OWN_ANSWER:
    return grades.answers, grades.answer_lengths
  most = cfg.probe.answer_tokens
  gold = prompts.gold[:, :most], jnp.minimum(prompts.gold_lengths, most)
  return tuple(jnp.repeat(x, cfg.group_size, axis=0) for x in gold)

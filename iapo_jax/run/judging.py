"""Evaluations within a run, on problems that it does not train on."""

from iapo_jax.core import files, processes
from iapo_jax.core.types import Params, TrainState
from iapo_jax.run import evaluation, sources
from iapo_jax.run import workdir as workdir_lib
from iapo_jax.run.context import Run
from iapo_jax.run.logs import Metrics


def validate(run: Run, state: TrainState, done: int) -> Metrics | None:
  """Evaluates on the validation split if that is due, and logs the result.

  `done` is the number of finished steps of reinforcement learning. Returns the
  metrics, or None if no validation is due.
  """
  every = run.cfg.evaluation.every
  if not every or (done % every and done != run.cfg.num_steps):
    return None
  results = evaluation.evaluate(
      run.parts, run.sampler, state.params, "validation",
      run.cfg.evaluation.problems,
  )  # fmt: skip
  summary = evaluation.summarise(results)
  run.log.write("validation", done, summary)
  run.log.write_evaluation({
      "step": done,
      "lengths": results.lengths.tolist(),
      "reasoning_lengths": results.reasoning_lengths.tolist(),
      "correct": results.correct.tolist(),
      "well_formed": results.well_formed.tolist(),
      "ended": results.ended.tolist(),
  })
  return summary


def summarise(run: Run, state: TrainState) -> None:
  """Evaluates on the test split; `summary.json` marks the run as finished."""
  table = run.parts.task.tables["test"]
  params, name = _judged(run, state)
  results = evaluation.evaluate(
      run.parts, run.sampler, params, "test", len(table.kept)
  )
  summary = evaluation.summarise(results)
  how = evaluation.sampling(run.cfg.evaluation)
  extra = how | {
      "skipped": table.skipped,
      "checkpoint": name,
      "seconds": run.seconds,
  }
  if run.parts.task.note:
    extra["note"] = run.parts.task.note
  if run.parts.own.described:
    extra["own"] = run.parts.own.described
  told = evaluation.cut_warning([results])
  if told:
    run.log.warn("test", int(name.rpartition("/")[2]), told)
  place = run.workdir / workdir_lib.SUMMARY
  processes.on_first(lambda: files.write_json(place, summary | extra))
  text = evaluation.sampled(how)
  print(
      f"test       accuracy {summary['accuracy']:.3f} ±"
      f" {summary['accuracy_se']:.3f}, {summary['mean_tokens']:.1f} tokens on"
      f" {len(table.kept)} problems, checkpoint {name}"
      f"{f', sampling: {text}' if text else ''}"
  )


def _judged(run: Run, state: TrainState) -> tuple[Params, str]:
  """Returns the policy to evaluate on the test split, and its name."""
  cfg = run.cfg
  only_warm = cfg.warm_start.num_steps and not cfg.num_steps
  stage = "warm_start" if only_warm else "rl"
  if cfg.evaluation.checkpoint == "last" or stage != "rl":
    return state.params, f"{stage}/{int(state.step)}"
  step = processes.on_first(lambda: sources.best(run.workdir).step)
  best = sources.Source(run.workdir, stage, step)
  return sources.load(run.parts, best, verify=False), best.name

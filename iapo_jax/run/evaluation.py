"""Sampled evaluation of a policy on held-out problems."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import struct

from iapo_jax.config.records import EvaluationConfig
from iapo_jax.core import endings, sharding
from iapo_jax.core.types import Array, KeyDomain, Params, Prompts
from iapo_jax.data.pipeline import PromptTable
from iapo_jax.data.steps import CheckCounts, count_checks
from iapo_jax.rl import policy, rollout
from iapo_jax.run import assembly
from iapo_jax.run.assembly import Assembly


@struct.dataclass
class Completions:
  """Results of n completions of each of m problems.

  Attributes:
    correct: bool[m, n].
    well_formed: bool[m, n].
    lengths: int[m, n], in tokens, EOS included.
    reasoning_lengths: int[m, n], R in tokens.
    timed_out: bool[m, n], answers that took too long to compare.
    ended: bool[m, n], whether the last token is an EOS.
    checks: int[m, n] each, counts of steps' results and of the checked ones;
      None if the task has no slips.
    levels: int[m], difficulty of each problem; None if the task has no levels.
    guessed: bool[m, n], answers outside the place that the format asks for;
      None unless the format is lenient.
  """

  correct: Array
  well_formed: Array
  lengths: Array
  reasoning_lengths: Array
  timed_out: Array
  ended: Array
  checks: CheckCounts | None = None
  levels: np.ndarray | None = None
  guessed: Array | None = None


SAMPLING = ("temperature", "top_p", "top_k")
Sampler = Callable[[Params, Prompts, Array], Completions]


def pass_at_k(correct: np.ndarray, k: int) -> float:
  """Estimates the probability that k completions hold a correct one.

  Unbiased from n >= k completions, c of them correct (Chen et al. 2021,
  arXiv 2107.03374): the mean over the problems of `correct`, bool[m, n], of

    1 - C(n - c, k) / C(n, k)  =  1 - Π_{i = n-c+1..n} (1 - k / i)

  Raises `ValueError` for a k outside 1 .. n.
  """
  n = correct.shape[1]
  if not 1 <= k <= n:
    raise ValueError(f"k = {k}: must be in [1, {n}], the samples per problem")
  factors = np.maximum(1 - k / np.arange(1, n + 1), 0.0)
  # failing[j] is the product over i = j + 1 .. n.
  failing = np.append(np.cumprod(factors[::-1])[::-1], 1.0)
  return float(np.mean(1 - failing[n - np.sum(correct, axis=1)]))


def length_at_k(lengths: np.ndarray, k: int) -> float:
  """Returns the mean of the first k lengths of int[m, n], as in the paper.

  The unbiased form, the expected mean over k of the n completions drawn without
  replacement, is the mean over all n, whatever k is.
  """
  return float(np.mean(lengths[:, :k]))


def powers_of_two(n: int) -> list[int]:
  """Returns 1, 2, 4, ... up to n: the k of pass@k and length@k."""
  return [2**i for i in range(n.bit_length())]


def summarise(results: Completions) -> dict[str, float]:
  """Returns the metrics of an evaluation; docs/metrics.md gives their units.

  Standard errors are over problems, because the completions of one problem are
  not independent.
  """
  problems, samples = results.correct.shape
  rows = results.lengths, results.ended, results.reasoning_lengths
  ends = endings.of(*rows, results.well_formed)
  summary = {
      "accuracy": float(np.mean(results.correct)),
      "accuracy_se": _standard_error(results.correct),
      "mean_tokens": float(np.mean(results.lengths)),
      "mean_tokens_se": _standard_error(results.lengths),
      "mean_reasoning_tokens": float(np.mean(results.reasoning_lengths)),
      "mean_answer_tokens": float(np.mean(endings.answer_lengths(*rows))),
      "format_rate": float(np.mean(results.well_formed)),
      "cut_rate": float(np.mean(ends.cut)),
      "ended_in_reasoning_rate": float(np.mean(ends.in_reasoning)),
      "malformed_end_rate": float(np.mean(ends.malformed)),
      "timeout_rate": float(np.mean(results.timed_out)),
      "problems": problems,
      "samples": samples,
  }
  if results.guessed is not None:
    summary["guessed_rate"] = float(np.mean(results.guessed))
  for k in powers_of_two(samples):
    summary[f"pass@{k}"] = passed = pass_at_k(results.correct, k)
    summary[f"length@{k}"] = length = length_at_k(results.lengths, k)
    summary[f"efficiency@{k}"] = passed / length
  if results.levels is not None:
    summary |= _by_level(results, results.levels)
  if results.checks is not None:
    summary |= _check_rates(results.checks)
  return summary


def cut_warning(results: Sequence[Completions]) -> str | None:
  """Returns a warning if more than 10 % of all completions are cut off."""
  lengths = np.concatenate([x.lengths.reshape(-1) for x in results])
  ended = np.concatenate([x.ended.reshape(-1) for x in results])
  cut = float(np.mean(~ended))
  if cut <= endings.MOST_CUT:
    return None
  # All that are cut have the longest length.
  longest = int(np.max(lengths))
  told = endings.describe_cut(
      cut, *map(float, endings.late(lengths, ended, longest)), longest
  )
  return (
      f"{told}. Those without an answer count as wrong; `iapo evaluate"
      " --max_tokens` allows longer ones"
  )


def _by_level(results: Completions, levels: np.ndarray) -> dict[str, float]:
  """Returns accuracy, tokens and number of problems of each level."""
  summary: dict[str, float] = {}
  for level in np.unique(levels):
    rows = levels == level
    summary[f"accuracy/level_{level}"] = float(np.mean(results.correct[rows]))
    summary[f"tokens/level_{level}"] = float(np.mean(results.lengths[rows]))
    summary[f"problems/level_{level}"] = int(np.sum(rows))
  return summary


def _check_rates(checks: CheckCounts) -> dict[str, float]:
  """Returns shares of all wrong and all right results; 0 if there are none."""
  totals = jax.tree.map(lambda x: int(np.sum(x)), checks)
  return {
      "check_after_slip": totals.wrong_checked / max(totals.wrong, 1),
      "check_after_none": totals.right_checked / max(totals.right, 1),
      "results_wrong": totals.wrong,
      "results_right": totals.right,
  }


def _standard_error(values: np.ndarray) -> float:
  return float(np.std(np.mean(values, axis=1)) / math.sqrt(len(values)))


def best_step(points: Sequence[Mapping[str, float]]) -> int:
  """Returns the step of the checkpoint that the paper chooses.

  `points` are validations with `step`, `accuracy`, `samples`, `efficiency@K`.
  Takes the five with the highest accuracy, and from them the one with the
  highest pass@k / length@k for the largest k. Equal ratios go to the higher
  accuracy, then to the latest step.
  """
  latest_first = sorted(points, key=lambda p: -p["step"])
  best = sorted(latest_first, key=lambda p: -p["accuracy"])[:5]
  k = powers_of_two(int(best[0]["samples"]))[-1]
  return int(max(best, key=lambda p: p[f"efficiency@{k}"])["step"])


def sampling(settings: EvaluationConfig) -> dict[str, float]:
  """Returns the fields that say how completions are sampled."""
  return {name: getattr(settings, name) for name in SAMPLING}


def sampled(how: Mapping[str, Any]) -> str:
  """Returns what of `sampling` is not a default, for people; "" if nothing.

  A record of an older version lacks fields; it had their defaults.
  """
  if how.get("temperature") == 0:
    return "greedy"
  default = sampling(EvaluationConfig())
  return ", ".join(
      f"{name.replace('_', '-')} {how[name]:g}"
      for name in SAMPLING
      if how.get(name, default[name]) != default[name]
  )


def make_sampler(parts: Assembly) -> Sampler:
  """Returns a jitted program that samples and grades completions of prompts.

  It maps (fp32 parameters, prompts, key) to `Completions` of
  `evaluation.samples` per prompt, without levels.
  """
  cfg, task, mesh = parts.cfg, parts.task, parts.mesh
  samples = cfg.evaluation.samples
  param_axes = assembly.reinforcement_stage(parts).spec.param_axes

  def run(params: Params, prompts: Prompts, key: Array) -> Completions:
    with sharding.scope(mesh):
      frozen = policy.for_decoding(params, param_axes, cfg=cfg.model)
      rolled = rollout.sample(
          frozen,
          prompts,
          key,
          cfg=cfg.model,
          group_size=samples,
          max_tokens=cfg.rollout.max_tokens,
          eos_ids=task.vocabulary.eos_ids,
          pad_id=task.vocabulary.pad_id,
          **sampling(cfg.evaluation),
          planting=task.planting,
      )
      grades = parts.grader(rolled, prompts)
    checks = None
    if task.steps:
      checks = count_checks(rolled.tokens, rolled.lengths, task.steps)
    rows = Completions(
        correct=grades.correct,
        well_formed=grades.well_formed,
        lengths=rolled.lengths,
        reasoning_lengths=grades.reasoning_lengths,
        timed_out=grades.timed_out,
        ended=rolled.ended,
        checks=checks,
        guessed=grades.guessed,
    )
    return jax.tree.map(lambda x: x.reshape(-1, samples), rows)

  return jax.jit(run, out_shardings=sharding.replicated(mesh))


def batches(
    parts: Assembly, split: str, problems: int
) -> Iterator[tuple[Prompts, int]]:
  """Yields the first problems of a split, placed on the mesh, call by call.

  Also yields the number of new prompts in the call: repeats fill the last one.
  A split with fewer than `problems` problems gives all of them.
  """
  table, settings = parts.task.tables[split], parts.cfg.evaluation
  size = settings.batch_size // settings.samples
  count = min(problems, len(table.kept))
  for start in range(0, count, size):
    rows = np.arange(start, start + size) % count
    prompts = jax.tree.map(lambda x, rows=rows: x[rows], table.prompts)
    yield sharding.put_batch(prompts, parts.mesh), min(size, count - start)


def evaluate(
    parts: Assembly,
    sampler: Sampler,
    params: Params,
    split: str,
    problems: int,
) -> Completions:
  """Samples the first `problems` problems of a split, or all if it has fewer.

  Uses the same key at every call, so that the points of a curve differ only by
  the policy, and folds the number of the sampler call into it. `params` are
  fp32 weights.
  """
  key = KeyDomain.EVALUATION.key(parts.cfg.seed)
  calls = [
      counted(sampler(params, prompts, jax.random.fold_in(key, i)), count)
      for i, (prompts, count) in enumerate(batches(parts, split, problems))
  ]
  return concatenate(calls, parts.task.tables[split])


def counted(results: Completions, count: int) -> Completions:
  """Fetches a sampler's results without the repeats of its last call."""
  return jax.tree.map(lambda x: x[:count], jax.device_get(results))


def concatenate(
    calls: Sequence[Completions], table: PromptTable
) -> Completions:
  """Joins calls on the first problems of a table and adds their levels."""
  whole = jax.tree.map(lambda *arrays: np.concatenate(arrays), *calls)
  if table.levels is None:
    return whole
  return whole.replace(levels=table.levels[: len(whole.correct)])

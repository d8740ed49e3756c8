"""Sampled evaluation of a policy on held-out problems."""

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from iapo_jax import rewards, rollout, sharding
from iapo_jax.config import Config
from iapo_jax.data.pipeline import PromptTable
from iapo_jax.types import Array, Params, Prompts, PyTree, Vocabulary

Sampler = Callable[[Params, Prompts, Array], dict[str, Array]]


@dataclasses.dataclass(frozen=True)
class Summary:
  """One sampled completion for each of n problems.

  Attributes:
    accuracy: share of correct completions.
    accuracy_se: its binomial standard error.
    mean_tokens: completion length in tokens, EOS included.
    mean_reasoning_tokens: R in tokens.
    format_rate: share of well-formed completions.
    problems: n.
  """

  accuracy: float
  accuracy_se: float
  mean_tokens: float
  mean_reasoning_tokens: float
  format_rate: float
  problems: int


def make_sampler(
    cfg: Config,
    mesh: Mesh,
    *,
    vocabulary: Vocabulary,
    grader: rewards.Grader,
    param_axes: PyTree,
) -> Sampler:
  """One completion a prompt, sampled and graded in one compiled program.

  Args:
    cfg: the run's configuration.
    mesh: devices.
    vocabulary: of the tokenizer.
    grader: grades inside the program.
    param_axes: logical axes of the parameters.

  Returns:
    (fp32 parameters, prompts, key) -> arrays [q] by name.
  """

  def run(params: Params, prompts: Prompts, key: Array) -> dict[str, Array]:
    with sharding.scope(mesh):
      frozen = sharding.gather_for_decoding(
          params, param_axes, cfg.model.dtype
      )
      rolled = rollout.sample(
          frozen,
          prompts,
          key,
          cfg=cfg.model,
          group_size=1,
          max_tokens=cfg.rollout.max_tokens,
          eos_ids=vocabulary.eos_ids,
          pad_id=vocabulary.pad_id,
          temperature=cfg.evaluation.temperature,
      )
      grades = grader(rolled, prompts)
    return {
        "correct": grades.correct,
        "well_formed": grades.well_formed,
        "lengths": rolled.lengths,
        "reasoning_lengths": grades.reasoning_lengths,
    }

  return jax.jit(run, out_shardings=sharding.replicated(mesh))


def evaluate(
    sampler: Sampler,
    params: Params,
    table: PromptTable,
    mesh: Mesh,
    *,
    problems: int,
    batch_size: int,
    key: Array,
) -> Summary:
  """Samples the first `problems` problems of a table once each.

  Args:
    sampler: of `make_sampler`.
    params: fp32 weights.
    table: of a split.
    mesh: devices.
    problems: how many; all where the table has fewer.
    batch_size: problems per call; the last call is filled up with repeats
      that are not counted.
    key: a PRNG key.

  Returns:
    The summary.
  """
  count = min(problems, len(table.kept))
  collected: dict[str, list[np.ndarray]] = {}
  for batch, start in enumerate(range(0, count, batch_size)):
    rows = np.arange(start, start + batch_size) % count
    prompts = jax.tree.map(lambda x, rows=rows: x[rows], table.prompts)
    batch_key = jax.random.fold_in(key, batch)
    results = sampler(params, sharding.put_batch(prompts, mesh), batch_key)
    for name, values in jax.device_get(results).items():
      collected.setdefault(name, []).append(values[: count - start])
  values = {name: np.concatenate(parts) for name, parts in collected.items()}
  accuracy = float(np.mean(values["correct"]))
  return Summary(
      accuracy=accuracy,
      accuracy_se=math.sqrt(accuracy * (1 - accuracy) / count),
      mean_tokens=float(np.mean(values["lengths"])),
      mean_reasoning_tokens=float(np.mean(values["reasoning_lengths"])),
      format_rate=float(np.mean(values["well_formed"])),
      problems=count,
  )

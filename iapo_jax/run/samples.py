"""Completions as records for people and the report page."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from iapo_jax.core import endings, processes
from iapo_jax.core.types import Prompts, Samples
from iapo_jax.hf import tokenizer as tokenizer_lib
from iapo_jax.hf.decoding import token_texts


def fetch(
    prompts: Prompts, samples: Samples, count: int
) -> tuple[Prompts, Samples]:
  """Gathers the first `count` completions and their prompts in every process.

  `samples` holds the completions of all processes, prompt-major, so that the
  members of a group stay together. Returns NumPy arrays; all completions if
  there are fewer than `count`.
  """
  group = len(samples.lengths) // len(prompts.lengths)
  count = min(count, len(samples.lengths))
  shown = -(-count // group)
  return processes.gather((
      jax.tree.map(lambda x: x[:shown], prompts),
      jax.tree.map(lambda x: x[:count], samples),
  ))


def records(
    step: int,
    prompts: Prompts,
    samples: Samples,
    tokenizer: Any,
    *,
    group_size: int,
    probed: bool,
) -> Iterator[dict[str, Any]]:
  """Yields a step's completions as JSON-ready records, token by token.

  `prompts` and `samples` come from `fetch`; docs/metrics.md describes the
  fields. Without probes (`probed`), answer entropies and information are empty.
  """
  for i in range(len(samples.lengths)):
    q = i // group_size
    prompt = prompts.tokens[q, : prompts.lengths[q]]
    gold = prompts.gold[q, : prompts.gold_lengths[q]]
    length = int(samples.lengths[i])
    reasoning = int(samples.reasoning_lengths[i])
    ended = bool(samples.ended[i])
    known = reasoning if probed else 0
    yield {
        "step": step,
        "prompt": tokenizer_lib.decode_prompt(tokenizer, prompt.tolist()),
        "gold": tokenizer_lib.decode(tokenizer, gold.tolist()),
        "tokens": token_texts(samples.tokens[i, :length].tolist(), tokenizer),
        "reasoning_tokens": reasoning,
        "answer_tokens": endings.answer_lengths(length, ended, reasoning),
        "ended": ended,
        "correct": bool(samples.correct[i]),
        "well_formed": bool(samples.well_formed[i]),
        "reward": float(samples.rewards[i]),
        "entropies": _floats(samples.entropies[i, :length]),
        "answer_entropies": _floats(
            samples.answer_entropies[i, : known + probed]
        ),
        "information": _floats(samples.information[i, :known]),
        "group_advantage": _floats(samples.group_advantages[i : i + 1])[0],
        "advantages": _floats(samples.advantages[i, :length]),
    }


def _floats(values: np.ndarray) -> list[float]:
  """Rounds to six digits: enough for pictures, a third of the bytes."""
  return [float(f"{value:.6g}") for value in values]

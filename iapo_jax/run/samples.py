"""Completions as records that people and the report page can read."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from iapo_jax.core import processes
from iapo_jax.core.types import Prompts, Samples


def fetch(
    prompts: Prompts, samples: Samples, count: int
) -> tuple[Prompts, Samples]:
  """The first completions of a step and their prompts, for every process.

  Args:
    prompts: q of them.
    samples: b of them, prompt-major, of all processes.
    count: completions wanted; the first of the batch, so that the members of a
      group stay together.

  Returns:
    NumPy arrays; of all completions, where there are no more.
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
  """Completions of a step, token by token.

  Args:
    step: of reinforcement learning.
    prompts: of `fetch`.
    samples: of `fetch`.
    tokenizer: a Hugging Face tokenizer.
    group_size: completions of a prompt.
    probed: whether there were probes; without them no answer's entropy and no
      information is known.

  Yields:
    JSON-ready records; docs/metrics.md tells their fields.
  """
  for i in range(len(samples.lengths)):
    q = i // group_size
    length = int(samples.lengths[i])
    reasoning = int(samples.reasoning_lengths[i])
    known = reasoning if probed else 0
    yield {
        "step": step,
        "prompt": decoded(tokenizer, prompts.tokens[q, : prompts.lengths[q]]),
        "gold": decoded(tokenizer, prompts.gold[q, : prompts.gold_lengths[q]]),
        "tokens": token_texts(samples.tokens[i, :length].tolist(), tokenizer),
        "reasoning_tokens": reasoning,
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


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
  """What each token adds to the text of those before it.

  Joined they are the decoded text. A token that ends inside a character adds
  nothing; the one that completes the character adds all of it.

  Args:
    ids: of a completion.
    tokenizer: a Hugging Face tokenizer.

  Returns:
    As many texts as ids.
  """
  texts: list[str] = []
  # Decoding every prefix would be quadratic: a few tokens of context decide
  # about white space, and characters have at most four bytes.
  start, told = 0, ""
  for end in range(1, len(ids) + 1):
    text = decoded(tokenizer, ids[start:end])
    broken = text.endswith("\N{REPLACEMENT CHARACTER}")
    whole = not broken or end == len(ids) or end - start >= 64
    texts.append(text[len(told) :] if whole else "")
    if whole:
      told = text
      if end - start >= 8:
        start = end - 1
        told = decoded(tokenizer, ids[start:end])
  return texts


def decoded(tokenizer: Any, ids: Sequence[int] | np.ndarray) -> str:
  """The text of tokens, all of it: special tokens and blanks, too."""
  return tokenizer.decode(
      ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
  )


def _floats(values: np.ndarray) -> list[float]:
  """Six digits: enough for pictures, a third of the bytes."""
  return [float(f"{value:.6g}") for value in values]

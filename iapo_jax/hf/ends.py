"""Finds the tokens that end a completion, and tells where files disagree."""

import pathlib
from collections.abc import Sequence
from typing import Any

from iapo_jax.hf import folder, tokenizer


def find(
    tok: Any,
    named: Sequence[int],
    *,
    chat: bool = False,
    size: int | None = None,
) -> tuple[int, ...]:
  """Returns the EOS ids, possibly none; the first one ends demonstrations.

  They are the end of a turn in the chat template, the tokenizer's EOS, and
  those that the model's configuration names: a model may have learned any of
  them.

  Args:
    tok: a Hugging Face tokenizer.
    named: ids of `folder.read_tokens`.
    chat: whether prompts go through the chat template.
    size: rows of the model; it never samples an id beyond them. None if every
      id has a row.
  """
  own = (tokenizer.turn_end(tok) if chat else None, tok.eos_token_id)
  found = dict.fromkeys(i for i in (*own, *named) if i is not None)
  return tuple(i for i in found if size is None or i < size)


def describe(
    tok: Any, ends: Sequence[int], place: pathlib.Path | None, *, chat: bool
) -> list[str]:
  """Returns lines for the plan: the ends, and a warning if files disagree.

  Args:
    tok: a Hugging Face tokenizer.
    ends: from `find`.
    place: the folder whose configurations name ends; None if there is none.
    chat: whether prompts go through the chat template.
  """
  sources = folder.named_ends(place) if place else {}
  # transformers asks only the first of the files that names any.
  asked = next(iter(sources.values()), ())
  for name, end in (
      ("the tokenizer", tok.eos_token_id),
      ("the chat template", tokenizer.turn_end(tok) if chat else None),
  ):
    if end is not None:
      sources[name] = (end,)
  told = {name: _shown(tok, ids) for name, ids in sources.items()}
  lines = [f"ends       {_shown(tok, ends)}"]
  if asked and not all({*ids} <= {*asked} for ids in sources.values()):
    named = "; ".join(f"{name} names {ids}" for name, ids in told.items())
    lines.append(f"warning: these ends are used, but files differ: {named}")
  return lines


def _shown(tok: Any, ids: Sequence[int]) -> str:
  return ", ".join(f"{i} {tok.convert_ids_to_tokens(i)!r}" for i in ids)

"""Warns about texts that a tokenizer does not know."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def warn(
    tok: Any, texts: Iterable[Sequence[int]], what: str, advice: str
) -> None:
  """Prints a warning if most tokens of some texts are the unknown token.

  Args:
    tok: a Hugging Face tokenizer.
    texts: the token ids of each text.
    what: the name of the texts, in the plural.
    advice: the end of the warning.
  """
  if tok.unk_token_id is None:
    return
  counts = [(len(x), int(np.sum(np.equal(x, tok.unk_token_id)))) for x in texts]
  bad = [(size, unknown) for size, unknown in counts if 2 * unknown > size]
  if bad:
    size, unknown = (sum(column) for column in zip(*bad, strict=True))
    print(
        f"warning: of {len(bad)} of {len(counts)} {what} the tokenizer does not"
        f" know most tokens ({unknown} of {size} are {tok.unk_token!r});"
        f" {advice}",
        flush=True,
    )

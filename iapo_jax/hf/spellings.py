"""Writes an export's files so that transformers 4.57 and 5 read the same.

Version 5 renamed fields and classes. Version 4.57 does not know the new names:
it takes a default without a warning, or raises an error.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import transformers

from iapo_jax.config.model import ModelConfig
from iapo_jax.core import files
from iapo_jax.hf import folder, positions, tokenizer

_TOKENIZER = "tokenizer_config.json"
_DTYPES = ("dtype", "torch_dtype")
_SAMPLE = 2000  # tokens whose text two tokenizers must encode alike


def write_config(
    output: pathlib.Path,
    raw: Mapping[str, Any],
    model: ModelConfig,
    dtype: str,
) -> None:
  """Writes config.json with the dtype of the weights.

  Args:
    output: an existing folder.
    raw: the configuration, as this version of transformers reads it.
    model: the decoder that `raw` describes.
    dtype: of the weights.
  """
  raw = dict(raw)
  for name in [name for name in _DTYPES if name in raw] or _DTYPES[:1]:
    raw[name] = dtype
  pad = raw.get("pad_token_id")
  if type(pad) is int and pad >= model.vocab_size:
    raw["pad_token_id"] = None  # transformers loads no model without its row
  if "rope_parameters" in raw:
    raw |= positions.older(model)
  files.write_json(output / folder.CONFIG, raw)


def name_ends(output: pathlib.Path, ends: Sequence[int]) -> None:
  """Adds the ends of a run to those that a pretrained model's files name.

  Without them a completion of the exported model goes on after its end.
  """
  named = folder.named_ends(output)
  name = next(iter(named), folder.CONFIG)
  known = named.get(name, ())
  more = [end for end in ends if end not in known]
  if more:
    raw = files.read_json(output / name)
    files.write_json(output / name, raw | {"eos_token_id": [*known, *more]})


def mend_tokenizer(output: pathlib.Path) -> None:
  """Rewrites what only version 5 reads in tokenizer_config.json, if anything.

  All classes named ...Backend are new; a fast tokenizer of either version is
  what tokenizer.json says. The list `extra_special_tokens` makes 4.57 fail.
  """
  path = output / _TOKENIZER
  if not path.exists():
    return
  found = files.read_json(path)
  mended = dict(found)
  if str(found.get("tokenizer_class")).endswith("Backend"):
    mended["tokenizer_class"] = "PreTrainedTokenizerFast"
  if isinstance(found.get("extra_special_tokens"), list):
    mended["additional_special_tokens"] = mended.pop("extra_special_tokens")
  if mended != found:
    files.write_json(path, mended)


def auto_fault(output: pathlib.Path) -> str | None:
  """Describes how `AutoTokenizer` fails to give the tokens of tokenizer.json.

  For some model types transformers 5 ignores the class that the folder names,
  and builds a tokenizer of that type from parts of tokenizer.json. Returns None
  if it gives the same tokens, or if there is no tokenizer.
  """
  if not (output / tokenizer.FILE).exists():
    return None
  exact = tokenizer.load(output)
  size = len(exact)
  text = tokenizer.decode(exact, range(0, size, max(size // _SAMPLE, 1)))
  try:
    auto = transformers.AutoTokenizer.from_pretrained(
        output, local_files_only=True, trust_remote_code=False
    )
    if auto.encode(text) == exact.encode(text):
      return None
    fault = f"makes a {type(auto).__name__}, which encodes text otherwise"
  except Exception as error:  # its classes raise many kinds
    fault = f"fails ({' '.join(str(error).split())})"
  return (
      f"transformers.AutoTokenizer {fault}; load the tokenizer with"
      " transformers.PreTrainedTokenizerFast"
  )

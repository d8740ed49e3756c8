"""Reads the weights of a GGUF file, a tensor or rows of it at a time."""

import collections
import pathlib

import gguf
import numpy as np

from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import gguf_config, gguf_header
from iapo_jax.hf.gguf_header import Header, Stored

# How numbers may be stored: all that `gguf.dequantize` undoes.
PLAIN = ("F32", "F16", "BF16")
READABLE = (
    *PLAIN,
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S",
    "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4",
)  # fmt: skip
# llama.cpp pairs neighbouring numbers of a head to rotate them in these.
_ROTATED_PAIRS = ("llama",)
_PERMUTED = ("q_proj", "k_proj")
# Norms whose weight the file stores with the 1 that Gemma adds to it.
_OFFSET = ("gemma2", "gemma3")
_CHUNK = 2**20  # numbers that are dequantised at once


class GGUFReader:
  """The tensors of a GGUF file as `weights.Reader` gives those of a folder.

  Attributes:
    place: the file.
    names: the names in the file, by Hugging Face's names.
    described: what gives the shapes that tensors must have, for errors.
  """

  described = "its metadata"

  def __init__(self, place: pathlib.Path) -> None:
    """Finds the tensors; raises `ConfigError` if one cannot be read."""
    header = gguf_header.read(place)
    keys = gguf_config.Keys(header)
    self.place, self._header = place, header
    self._architecture = keys.architecture
    self.names = gguf_config.stored_names(
        keys.architecture, list(header.tensors)
    )
    if lost := header.tensors.keys() - {
        *self.names.values(), *gguf_config.FACTORS
    }:
      header.fail(f"has tensor {lost.pop()!r} under another name, too")
    self._width = 1
    if keys.architecture in _ROTATED_PAIRS:
      self._width = gguf_config.head_width(keys)
    for name, stored in header.tensors.items():
      if stored.kind.name not in READABLE:
        header.fail(
            f"tensor {name!r} has the type {stored.kind.name}, which cannot be"
            f" read; must be one of {', '.join(READABLE)}"
        )

  def header(self) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns the shape of every tensor and the dtype that `read` gives."""
    return {
        name: (self._header.tensors[stored].shape, "F32")
        for name, stored in self.names.items()
    }

  def read(self, name: str, rows: tuple[slice, ...]) -> np.ndarray:
    """Reads some rows (and columns) of a tensor, as float32."""
    stored = self._header.tensors[self.names[name]]
    first, last, _ = rows[0].indices(stored.shape[0])
    permuted = self._width > 1 and name.split(".")[-2] in _PERMUTED
    heads = self._width if permuted else 1
    begin, end = first // heads * heads, -(-last // heads) * heads
    found = read_rows(self.place, stored, slice(begin, end), *rows[1:])
    if permuted:
      pairs = found.reshape(-1, heads // 2, 2, *found.shape[1:])
      found = pairs.swapaxes(1, 2).reshape(found.shape)
    found = found[first - begin : last - begin]
    if self._architecture in _OFFSET and name.endswith("norm.weight"):
      found -= 1
    return found


def read_rows(
    place: pathlib.Path,
    stored: Stored,
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> np.ndarray:
  """Reads a tensor of one or two dimensions, or a part of it, as float32.

  Only the blocks of the part are dequantised, some rows at a time.
  """
  shape = stored.shape if len(stored.shape) > 1 else (1, *stored.shape)
  if len(stored.shape) == 1:
    rows, columns = slice(None), rows
  first, last, _ = rows.indices(shape[0])
  left, right, _ = columns.indices(shape[1])
  numbers, size = gguf.GGML_QUANT_SIZES[stored.kind]
  width = shape[1] // numbers * size  # bytes of a row
  begin, end = left // numbers, -(-right // numbers)
  out = np.empty((last - first, right - left), np.float32)
  step = max(_CHUNK // shape[1], 1)
  with gguf_header.readable(place), place.open("rb") as file:
    for row in range(first, last, step):
      count = min(step, last - row)
      file.seek(stored.start + row * width)
      data = np.frombuffer(file.read(count * width), np.uint8)
      if data.size < count * width:
        raise ConfigError(f"{str(place)!r}: became shorter while it was read")
      blocks = data.reshape(count, width)[:, begin * size : end * size]
      # As one row: the library undoes 16 rows at a time.
      found = gguf.dequantize(blocks.reshape(1, -1), stored.kind)
      found = found.reshape(count, -1)
      cut = found[:, left - begin * numbers : right - begin * numbers]
      out[row - first : row - first + count] = cut
  return out if len(stored.shape) > 1 else out[0]


def quantised(place: pathlib.Path) -> dict[str, int]:
  """Counts the tensors of each type, the most frequent first.

  Returns nothing if none of them is quantised.
  """
  counted = collections.Counter(
      stored.kind.name for stored in _tensors(gguf_header.read(place))
  )
  return {} if {*counted} <= {*PLAIN} else dict(counted.most_common())


def _tensors(header: Header) -> list[Stored]:
  return [
      stored
      for name, stored in header.tensors.items()
      if name not in gguf_config.FACTORS
  ]

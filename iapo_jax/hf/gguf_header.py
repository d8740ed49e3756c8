"""Reads what a GGUF file says before its weights; trusts none of it.

The format is llama.cpp's: a magic number, key-value metadata, the name, shape,
type and place of every tensor, and then their bytes. Every count, length and
place is compared with the size of the file before anything is made for it, so
a file that lies costs no more than one that is as long. `gguf.GGUFReader` does
not do so.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NoReturn

import gguf
import numpy as np

from iapo_jax.core.errors import ConfigError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = "general.alignment"
_MOST_DIMENSIONS = 4  # of a tensor, in ggml
_LONGEST_NAME = 65_535  # bytes of a key, in the specification
# The codes of `struct` for the types of values but strings and arrays.
_FORMATS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?",
    10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
# Bytes that the shortest entry takes: a key and its value, a tensor.
_LEAST_PAIR, _LEAST_TENSOR = 13, 32


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor in the file.

  Attributes:
    kind: how its numbers are stored.
    shape: sizes, rows first; the last one counts numbers, not bytes.
    start: first byte in the file.
    size: bytes.
  """

  kind: gguf.GGMLQuantizationType
  shape: tuple[int, ...]
  start: int
  size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Numbers:
  """A list of numbers, which equals nothing else: arrays compare by element."""

  values: np.ndarray

  def __repr__(self) -> str:
    more = ", ..." if len(self.values) > 3 else ""
    return f"[{', '.join(map(repr, self.values[:3].tolist()))}{more}]"


@dataclasses.dataclass(frozen=True)
class Header:
  """Everything but the bytes of the tensors.

  Attributes:
    path: the file.
    metadata: numbers, texts, `Numbers` and tuples of texts, by key.
    tensors: by name.
  """

  path: pathlib.Path
  metadata: Mapping[str, Any]
  tensors: Mapping[str, Stored]

  def fail(self, rule: str) -> NoReturn:
    """Raises a `ConfigError` that names the file."""
    _fail(self.path, rule)


def _fail(path: pathlib.Path, rule: str) -> NoReturn:
  raise ConfigError(f"{str(path)!r}: {rule}")


def read(path: pathlib.Path) -> Header:
  """Reads the header of a GGUF file; raises `ConfigError` if it breaks a rule.

  Remembers the last one, since model, tokenizer and weights each ask for it.
  """
  with readable(path):
    status = path.stat()
  return _read(path.absolute(), status.st_size, status.st_mtime_ns)


@contextlib.contextmanager
def readable(path: pathlib.Path) -> Iterator[None]:
  """Raises `ConfigError` if the block cannot read the file."""
  try:
    yield
  except OSError as error:
    raise ConfigError(
        f"{str(path)!r}: cannot be read ({error.strerror})"
    ) from error


@functools.lru_cache(maxsize=1)
def _read(path: pathlib.Path, size: int, changed: int) -> Header:
  del changed  # a file that was written anew is read anew
  with readable(path), path.open("rb") as file:
    return _Parser(path, file, size).header()


class _Parser:
  """Reads values one after another, none beyond the end of the file."""

  def __init__(self, path: pathlib.Path, file: BinaryIO, size: int) -> None:
    self._path, self._file, self._size = path, file, size
    self._at = 0

  def header(self) -> Header:
    """Reads the whole header."""
    if self._take(len(_MAGIC), "its magic number") != _MAGIC:
      self._fail("is not a GGUF file (it does not begin with GGUF)")
    version = self._number("I", "its version")
    if version not in _VERSIONS:
      why = "big-endian" if version & 0xFFFF == 0 else f"of version {version}"
      known = " and ".join(map(str, _VERSIONS))
      self._fail(f"is {why}; versions {known}, little-endian, can be read")
    tensors = self._number("Q", "its number of tensors")
    pairs = self._number("Q", "its number of metadata keys")
    self._check_room(pairs, _LEAST_PAIR, f"{pairs} metadata keys")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
      key = self._text("a metadata key", _LONGEST_NAME)
      if key in metadata:
        self._fail(f"has the metadata key {key!r} twice")
      metadata[key] = self._value(self._number("I", key), key)
    self._check_room(tensors, _LEAST_TENSOR, f"{tensors} tensors")
    infos = dict(self._infos(tensors))
    return Header(self._path, metadata, self._placed(infos, metadata))

  def _fail(self, rule: str) -> NoReturn:
    _fail(self._path, rule)

  def _check_room(self, count: int, each: int, what: str) -> None:
    left = self._size - self._at
    if count * each > left:
      self._fail(
          f"is damaged or cut off: {what} cannot be in the {left} bytes that"
          " are left"
      )

  def _take(self, size: int, what: str) -> bytes:
    self._check_room(size, 1, f"{what} of {size} bytes")
    found = self._file.read(size)
    if len(found) != size:  # it has become shorter
      self._fail(f"is cut off at {what}")
    self._at += size
    return found

  def _number(self, code: str, what: str) -> Any:
    size = struct.calcsize(f"<{code}")
    return struct.unpack(f"<{code}", self._take(size, what))[0]

  def _text(self, what: str, longest: int | None = None) -> str:
    size = self._number("Q", what)
    if longest and size > longest:
      self._fail(f"is damaged: {what} has {size} bytes, more than {longest}")
    try:
      return self._take(size, what).decode()
    except UnicodeDecodeError as error:
      self._fail(f"{what} is not UTF-8 ({error.reason})")

  def _value(self, kind: int, key: str) -> Any:
    if kind == _STRING:
      return self._text(key)
    if kind != _ARRAY:
      return self._scalars(kind, 1, key)[0].item()
    inner, count = self._number("I", key), self._number("Q", key)
    if inner == _ARRAY:
      self._fail(f"{key} is a list of lists, which is not supported")
    if inner != _STRING:
      return Numbers(self._scalars(inner, count, key))
    self._check_room(count, 8, f"{count} texts of {key}")
    return tuple(self._text(f"an entry of {key}") for _ in range(count))

  def _scalars(self, kind: int, count: int, key: str) -> np.ndarray:
    if kind not in _FORMATS:
      self._fail(f"{key} has values of type {kind}, which is not known")
    dtype = np.dtype(f"<{_FORMATS[kind]}")
    self._check_room(count, dtype.itemsize, f"{count} values of {key}")
    data = self._take(count * dtype.itemsize, key)
    return np.frombuffer(data, dtype)

  def _infos(
      self, count: int
  ) -> Iterator[tuple[str, tuple[int, tuple[int, ...], int]]]:
    """Yields the name, type, shape and relative place of every tensor."""
    names = set()
    for _ in range(count):
      name = self._text("the name of a tensor", _LONGEST_NAME)
      if name in names:
        self._fail(f"has the tensor {name!r} twice")
      names.add(name)
      dimensions = self._number("I", name)
      if not 1 <= dimensions <= _MOST_DIMENSIONS:
        self._fail(
            f"tensor {name!r} has {dimensions} dimensions: must have 1 to"
            f" {_MOST_DIMENSIONS}"
        )
      shape = tuple(self._number("Q", name) for _ in range(dimensions))[::-1]
      kind, start = self._number("I", name), self._number("Q", name)
      yield name, (kind, shape, start)

  def _placed(
      self,
      infos: Mapping[str, tuple[int, tuple[int, ...], int]],
      metadata: Mapping[str, Any],
  ) -> dict[str, Stored]:
    """Checks and returns where each tensor lies."""
    align = metadata.get(_ALIGNMENT, gguf.GGUF_DEFAULT_ALIGNMENT)
    if type(align) is not int or align < 1 or align & (align - 1):
      self._fail(f"{_ALIGNMENT} = {align!r}: must be a power of two")
    data = -(-self._at // align) * align
    found = {}
    for name, (kind, shape, start) in infos.items():
      if start % align:
        self._fail(f"tensor {name!r} does not start at a multiple of {align}")
      stored = self._stored(name, kind, shape, data + start)
      if stored.start + stored.size > self._size:
        self._fail(
            f"is damaged or cut off: tensor {name!r} ends at byte"
            f" {stored.start + stored.size} of {self._size}"
        )
      found[name] = stored
    # Many tensors on the same bytes would make a small file a large model.
    by_start = sorted(found.items(), key=lambda item: item[1].start)
    for (first, one), (second, other) in itertools.pairwise(by_start):
      if one.start + one.size > other.start:
        self._fail(f"tensors {first!r} and {second!r} overlap")
    return found

  def _stored(
      self, name: str, kind: int, shape: tuple[int, ...], start: int
  ) -> Stored:
    try:
      known = gguf.GGMLQuantizationType(kind)
    except ValueError:
      self._fail(f"tensor {name!r} has the type {kind}, which is not known")
    if 0 in shape:
      self._fail(f"tensor {name!r} has shape {list(shape)}, which is empty")
    numbers, size = gguf.GGML_QUANT_SIZES[known]
    if shape[-1] % numbers:
      self._fail(
          f"tensor {name!r} has rows of {shape[-1]} numbers: {known.name} has"
          f" blocks of {numbers}"
      )
    return Stored(known, shape, start, math.prod(shape) // numbers * size)

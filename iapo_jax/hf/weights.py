"""Reads weights, and writes them as safetensors, one tensor at a time.

A process reads only the shards that its devices keep, one weight after another,
the largest first. So the host never holds the model twice.
"""

import contextlib
import dataclasses
import itertools
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from iapo_jax.config.model import ModelConfig
from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError
from iapo_jax.core.types import Params, PyTree
from iapo_jax.hf import gguf, names
from iapo_jax.hf.gguf_weights import GGUFReader
from iapo_jax.hf.names import Part, Path, Tensor

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_READABLE = ("F32", "F16", "BF16")
# Tables in old checkpoints; they follow from the config, so they are not read.
_DERIVED = re.compile(
    r"(?:.+\.)?rotary_emb(?:_local)?\."
    r"(?:inv_freq|original_inv_freq|cos_cached|sin_cached)"
)
# Added by torch.compile and DistributedDataParallel around a model.
_WRAPPERS = re.compile(r"^(?:module\.)+|_orig_mod\.")
_EMBEDDING = "model.embed_tokens.weight"
_TIED_HEAD = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class _Source:
  """The place of one of our weights in a checkpoint.

  Attributes:
    tensor: the tensor of the checkpoint.
    part: the part of the tensor.
    first_row: the first row of the part in the tensor.
    shape: the shape of the weight with all its layers.
  """

  tensor: Tensor
  part: Part
  first_row: int
  shape: tuple[int, ...]


class Reader:
  """The tensors of a folder, by the names that transformers writes today.

  Attributes:
    place: the folder.
    described: what gives the shapes that tensors must have, for errors.
    names: the names in the files, by today's names.
    files: the file of each tensor, by the name in the file.
  """

  described = "config.json"

  def __init__(self, folder: pathlib.Path) -> None:
    """Finds the tensors of one safetensors file, or of several with an index.

    Raises `ConfigError` if there are none, the index is malformed, or two
    tensors have one name today.
    """
    self.place = folder
    self.files = _locate(folder)
    self.names: dict[str, str] = {}
    for name in self.files:
      other = self.names.setdefault(_today(name), name)
      if other != name:
        raise ConfigError(
            f"{str(folder)!r}: has both {other} and {name}, which are names of"
            " one tensor"
        )

  def header(self) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns the shape and dtype of every tensor."""
    held: dict[str, list[str]] = {}
    for name, stored in self.names.items():
      held.setdefault(self.files[stored], []).append(name)
    found = {}
    for file, members in held.items():
      with _opened(self.place / file) as opened:
        for name in members:
          stored = self.names[name]
          if stored not in opened.keys():  # noqa: SIM118 - not a mapping
            raise ConfigError(f"{self.place / file}: has no tensor {stored}")
          view = opened.get_slice(stored)
          found[name] = (tuple(view.get_shape()), view.get_dtype())
    return found

  def read(self, name: str, rows: tuple[slice, ...]) -> np.ndarray:
    """Reads some rows (and columns) of a tensor.

    Opens the file each time, since the mapped pages of an open file count as
    memory of this process.
    """
    stored = self.names[name]
    with _opened(self.place / self.files[stored]) as opened:
      return opened.get_slice(stored)[rows]


def reader(place: pathlib.Path) -> Reader | GGUFReader:
  """Returns the reader of a folder or a GGUF file.

  Raises `ConfigError` if its tensors cannot be found or read.
  """
  return GGUFReader(place) if gguf.is_file(place) else Reader(place)


def _today(name: str) -> str:
  """Returns a tensor's name as transformers writes it today.

  Older files, and those of a decoder without its head, lack the first `model.`;
  others have it twice.
  """
  if _DERIVED.fullmatch(name):
    return name
  name = _WRAPPERS.sub("", name)
  if name.startswith(("model.model.", f"model.{_TIED_HEAD}")):
    return name.removeprefix("model.")
  return name if name.startswith(("model.", _TIED_HEAD)) else f"model.{name}"


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      yield file
  except (OSError, safetensors.SafetensorError) as error:
    raise ConfigError(f"{str(path)!r}: cannot be read ({error})") from error


def _locate(folder: pathlib.Path) -> dict[str, str]:
  """Maps tensors to their files; prefers a single file to an index."""
  paths = sorted(folder.glob("*.safetensors"))
  if (folder / _SINGLE).exists():
    paths = [folder / _SINGLE]
  elif (folder / _INDEX).exists():
    return _read_index(folder)
  if len(paths) == 1:
    with _opened(paths[0]) as file:
      return dict.fromkeys(file.keys(), paths[0].name)
  if paths:
    rule = f"has several *.safetensors files, but no {_INDEX}"
    raise ConfigError(f"{str(folder)!r}: {rule}")
  if file := next(iter(sorted(folder.glob("*.gguf"))), None):
    rule = f"has no *.safetensors; name its GGUF file, {str(file)!r}"
    raise ConfigError(f"{str(folder)!r}: {rule}")
  pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
  hint = ""
  if pickled:
    hint = " (pickled weights are never read; convert them to safetensors)"
  raise ConfigError(f"{str(folder)!r}: has no *.safetensors{hint}")


def _read_index(folder: pathlib.Path) -> dict[str, str]:
  found = files.read_json(folder / _INDEX).get("weight_map")
  if not isinstance(found, dict) or not found:
    raise ConfigError(f"{folder / _INDEX}: has no weight_map")
  for file in found.values():
    is_name = isinstance(file, str) and pathlib.PurePath(file).name == file
    if not is_name or file in ("", "..") or "\0" in file:
      raise ConfigError(f"{folder / _INDEX}: {file!r} is not a file name")
  return found


def check(reader: Reader | GGUFReader, cfg: ModelConfig) -> None:
  """Checks that a checkpoint has the decoder's tensors and no others.

  Raises `ConfigError` that names missing, unexpected or misshapen tensors, or
  one whose dtype is not a plain float.
  """
  if cfg.tie_embeddings and _EMBEDDING not in reader.names:
    # Some programs keep the other name of two tied tensors.
    head = reader.names.pop(_TIED_HEAD, None)
    reader.names |= {_EMBEDDING: head} if head else {}
  letters, found = names.sizes(cfg), reader.header()
  expected = {
      name: names.tensor_shape(tensor, letters)
      for tensor in names.tensors(cfg)
      for name in _names(tensor, cfg)
  }
  where = repr(str(reader.place))
  _refuse(f"{where}: lacks", [name for name in expected if name not in found])
  extra = {n for n in found if n not in expected and not _DERIVED.fullmatch(n)}
  if cfg.tie_embeddings and _TIED_HEAD in extra:
    _check_tied(reader)
    extra.remove(_TIED_HEAD)
  unknown = sorted(reader.names[name] for name in extra)
  _refuse(f"{where}: {reader.described} does not describe", unknown)
  for name, shape in expected.items():
    theirs, dtype = found[name]
    if theirs != shape:
      raise ConfigError(
          f"{where}: {name} has shape {list(theirs)}, but {reader.described}"
          f" gives {list(shape)}"
      )
    if dtype not in _READABLE:
      raise ConfigError(
          f"{where}: {name} has dtype {dtype}: must be one of"
          f" {', '.join(_READABLE)}"
      )


def _names(tensor: Tensor, cfg: ModelConfig) -> list[str]:
  count = cfg.num_layers if tensor.in_layers else 1
  return [tensor.name.format(layer) for layer in range(count)]


def _refuse(what: str, found: Sequence[str]) -> None:
  if found:
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    raise ConfigError(f"{what} {', '.join(found[:3])}{more}")


def _check_tied(reader: Reader | GGUFReader) -> None:
  """Raises `ConfigError` if a stored tied head differs from the embedding."""
  whole = (slice(None),)
  head = reader.read(_TIED_HEAD, whole)
  if not np.array_equal(head, reader.read(_EMBEDDING, whole)):
    raise ConfigError(
        f"{str(reader.place)!r}: {_TIED_HEAD} differs from the embedding, but"
        f" {reader.described} ties the two (tie_word_embeddings)"
    )


def load(
    folder: pathlib.Path,
    cfg: ModelConfig,
    *,
    dtype: str = "float32",
    shardings: PyTree | None = None,
) -> Params:
  """Loads a checkpoint; each process reads the shards that it keeps.

  Args:
    folder: the folder of the checkpoint, or its GGUF file.
    cfg: the decoder that it holds.
    dtype: dtype of the weights; weights of norms are always float32.
    shardings: a tree like the parameters; None puts all on one device.

  Raises:
    ConfigError: if `check` fails.
  """
  tensors = reader(folder)
  check(tensors, cfg)
  letters = names.sizes(cfg)
  sources: dict[Path, _Source] = {}
  for tensor in names.tensors(cfg):
    row, layers = 0, (cfg.num_layers,) if tensor.in_layers else ()
    for part in tensor.parts:
      shape = (*layers, *names.shape(part.ours, letters))
      sources[part.path] = _Source(tensor, part, row, shape)
      row += names.shape(part.theirs, letters)[0]
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  where = dict.fromkeys(sources, device)
  if shardings is not None:
    where = traverse_util.flatten_dict(shardings)
  params = {}
  for path in sorted(sources, key=lambda path: -math.prod(sources[path].shape)):
    kind = jnp.dtype("float32" if path[-1] == "scale" else dtype)
    params[path] = _load_one(tensors, sources[path], kind, where[path], letters)
  return traverse_util.unflatten_dict(params)


def _load_one(
    tensors: Reader | GGUFReader,
    source: _Source,
    dtype: np.dtype,
    sharding: jax.sharding.Sharding,
    letters: Mapping[str, int],
) -> jax.Array:
  """Loads a weight with all its layers."""
  read: dict[tuple[range, ...], np.ndarray] = {}  # shared by copies of a shard

  def shard(index: tuple[slice, ...]) -> np.ndarray:
    chosen = tuple(
        range(*entry.indices(size))
        for entry, size in zip(index, source.shape, strict=True)
    )
    if chosen not in read:
      out = np.empty([len(entry) for entry in chosen], dtype)
      if source.tensor.in_layers:
        for slot, layer in enumerate(chosen[0]):
          out[slot] = _read_part(tensors, source, layer, chosen[1:], letters)
      else:
        out[...] = _read_part(tensors, source, 0, chosen, letters)
      read[chosen] = out
    return read[chosen]

  array = jax.make_array_from_callback(source.shape, sharding, shard)
  return array.block_until_ready()  # before `read` is freed


def _read_part(
    tensors: Reader | GGUFReader,
    source: _Source,
    layer: int,
    chosen: tuple[range, ...],
    letters: Mapping[str, int],
) -> np.ndarray:
  """Reads a block of one layer of a weight, and no other rows or columns."""
  part, ours = source.part, source.part.ours.split()
  block = dict(zip(ours, chosen, strict=True))
  rows, expanded = [], [*itertools.chain(*part.groups)]
  for first, *rest in part.groups:
    width = math.prod(letters[letter] for letter in rest)
    if any(len(block[letter]) != letters[letter] for letter in rest):
      raise NotImplementedError(
          f"{part.path}: a sharding must not split axes {rest}"
      )
    rows.append(slice(block[first].start * width, block[first].stop * width))
  rows[0] = slice(
      rows[0].start + source.first_row, rows[0].stop + source.first_row
  )
  name = source.tensor.name.format(layer)
  found = tensors.read(name, tuple(rows))
  found = found.reshape([len(block[letter]) for letter in expanded])
  return found.transpose([expanded.index(letter) for letter in ours])


def save(
    folder: pathlib.Path,
    params: Params,
    cfg: ModelConfig,
    *,
    dtype: str,
    max_shard_bytes: int = 5 * 10**9,
) -> list[str]:
  """Writes weights to an existing folder and returns the files' names.

  Args:
    folder: an existing folder.
    params: the decoder's weights, whole on this host.
    cfg: the decoder.
    dtype: dtype of every written tensor.
    max_shard_bytes: largest size of a file; a larger tensor has a
      separate file.

  Raises:
    ConfigError: if a weight is not finite in `dtype`.
  """
  letters, kind = names.sizes(cfg), jnp.dtype(dtype)
  plan = {
      name: (tensor, layer)
      for tensor in names.tensors(cfg)
      for layer, name in enumerate(_names(tensor, cfg))
  }
  split = huggingface_hub.split_state_dict_into_shards_factory(
      plan,
      get_storage_size=lambda entry: (
          math.prod(names.tensor_shape(entry[0], letters)) * kind.itemsize
      ),
      filename_pattern="model{suffix}.safetensors",
      max_shard_size=max_shard_bytes,
  )
  flat = traverse_util.flatten_dict(params)
  for file, members in split.filename_to_tensors.items():
    content = {
        name: _written(*plan[name], flat, kind, letters) for name in members
    }
    for name, tensor in content.items():
      if not np.isfinite(tensor).all():
        raise ConfigError(
            f"--dtype = {dtype!r}: {name} is not finite in this dtype; use"
            " --dtype=float32"
        )
    # transformers rejects files without this format.
    with files.usual_mode(folder / file):
      safetensors.numpy.save_file(content, folder / file, {"format": "pt"})
  if split.is_sharded:
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    files.write_json(folder / _INDEX, index)
  return list(split.filename_to_tensors)


def _written(
    tensor: Tensor,
    layer: int,
    flat: Mapping[Path, jax.Array],
    dtype: np.dtype,
    letters: Mapping[str, int],
) -> np.ndarray:
  """Returns a tensor in Hugging Face's layout."""
  rows = []
  for part in tensor.parts:
    weight = flat[part.path]
    block = np.asarray(weight[layer] if tensor.in_layers else weight)
    ours = part.ours.split()
    order = [ours.index(letter) for letter in [*itertools.chain(*part.groups)]]
    block = block.transpose(order)
    rows.append(block.reshape(names.shape(part.theirs, letters)))
  with np.errstate(over="ignore"):  # `save` checks for overflow
    return np.ascontiguousarray(np.concatenate(rows).astype(dtype))

"""TensorFlow Datasets builders of the published data sets, without TensorFlow.

Rows are converted once, kept as array_record files in their published order
and read through `as_data_source`. What is prepared is named by the content it
was made from, so that other files are another data set.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow
import tensorflow_datasets as tfds
from absl import logging
from pyarrow import parquet

from iapo_jax.data import published
from iapo_jax.data.examples import Example
from iapo_jax.data.published import DataSet
from iapo_jax.errors import ConfigError

_FIELDS = ("question", "answer", "solution")
_VERSION = "1.0.0"  # of the conversion
# Where the hub's and other repositories keep their files.
_SUBFOLDERS = ("", "data", "main", "default")


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Prepares a published data set; what it is of differs by subclass."""

  VERSION = tfds.core.Version(_VERSION)
  DATA_SET: DataSet

  def __init__(
      self,
      *,
      files: Mapping[str, Sequence[pathlib.Path]] | None = None,
      data_dir: str | None = None,
  ) -> None:
    """Makes a builder.

    Args:
      files: for each published split its local files; None to fetch them.
      data_dir: where prepared data sets are kept, TFDS's own place by default.
    """
    self._files = files
    name = f"local_{_digest(files)[:16]}" if files else "published"
    super().__init__(
        file_format="array_record",
        data_dir=data_dir,
        config=tfds.core.BuilderConfig(
            name=name, version=_VERSION, description=self.DATA_SET.homepage
        ),
    )

  @property
  def url_infos(self) -> dict[str, tfds.download.checksums.UrlInfo]:
    """What every fetched file must be, by its address."""
    return {
        file.url: tfds.download.checksums.UrlInfo(
            size=file.size, checksum=file.sha256, filename=None
        )
        for files in self.DATA_SET.downloads.values()
        for file in files
    }

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text()
    return tfds.core.DatasetInfo(
        builder=self,
        homepage=self.DATA_SET.homepage,
        features=tfds.features.FeaturesDict(dict.fromkeys(_FIELDS, text)),
        disable_shuffling=True,  # the first rows are the first published ones
    )

  def _split_generators(
      self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
    files = self._files
    if files is None:
      files = {
          split: [pathlib.Path(dl_manager.download(x.url)) for x in downloads]
          for split, downloads in self.DATA_SET.downloads.items()
      }
    return {
        split: self._generate_examples(paths) for split, paths in files.items()
    }

  def _generate_examples(
      self, paths: Sequence[pathlib.Path]
  ) -> Iterator[tuple[int, dict[str, str]]]:
    seen: set[str] = set()
    key = 0
    for path in paths:
      for line, row in enumerate(_rows(path), start=1):
        try:
          example = self.DATA_SET.convert(row)
        except (ValueError, TypeError, KeyError) as error:
          raise ConfigError(
              f"{path}: row {line} is none of {self.DATA_SET.name}: {error}"
          ) from error
        if self.DATA_SET.repeats and example.question in seen:
          continue
        seen.add(example.question)
        yield key, {name: getattr(example, name) for name in _FIELDS}
        key += 1


class Gsm8k(Builder, skip_registration=True):
  """GSM8K: 7,473 train and 1,319 test problems."""

  name = "gsm8k"
  DATA_SET = published.data_set("gsm8k")


class Math500(Builder, skip_registration=True):
  """MATH-500: 500 test problems."""

  name = "math500"
  DATA_SET = published.data_set("math500")


class DapoMath(Builder, skip_registration=True):
  """DAPO-Math-17k: train problems, each once."""

  name = "dapo_math"
  DATA_SET = published.data_set("dapo_math")


class CommonsenseQa(Builder, skip_registration=True):
  """CommonsenseQA: train and validation questions with five choices."""

  name = "commonsense_qa"
  DATA_SET = published.data_set("commonsense_qa")


class Aime24(Builder, skip_registration=True):
  """AIME 2024: 30 test problems."""

  name = "aime24"
  DATA_SET = published.data_set("aime24")


class Aime25(Builder, skip_registration=True):
  """AIME 2025: 30 test problems."""

  name = "aime25"
  DATA_SET = published.data_set("aime25")


_BUILDERS = (Gsm8k, Math500, DapoMath, CommonsenseQa, Aime24, Aime25)


def load(
    task: str, *, source_dir: str = "", prepared_dir: str = ""
) -> dict[str, list[Example]]:
  """The published splits of a data set, prepared if need be.

  Args:
    task: one of `config_rules.PUBLISHED`.
    source_dir: a folder with its files, or with a folder of the task's name
      that has them; by default they are fetched.
    prepared_dir: where prepared data sets are kept, TFDS's own place by
      default.

  Returns:
    The examples of each split, in their published order.

  Raises:
    ConfigError: where files are missing, cannot be fetched, or are something
      else.
  """
  kind = next(builder for builder in _BUILDERS if builder.name == task)
  data_dir = os.path.expanduser(prepared_dir) or None
  files = _find(kind.DATA_SET, source_dir) if source_dir else None
  with _quiet():
    builder = kind(files=files, data_dir=data_dir)
    prepared = builder.is_prepared()
  if not prepared:
    if files is None:
      _check_can_fetch(builder)
    _prepare(builder, source_dir)
  return {
      split: [
          Example(*(record[name].decode() for name in _FIELDS))
          for record in builder.as_data_source(split)
      ]
      for split in builder.info.splits
  }


def _prepare(builder: Builder, source_dir: str) -> None:
  settings = tfds.download.DownloadConfig(
      force_checksums_validation=not source_dir
  )
  print(f"data       {builder.name}: prepares {builder.data_path}", flush=True)
  try:
    with _quiet():
      builder.download_and_prepare(download_config=settings)
  except ConfigError:
    raise
  except Exception as error:  # of the network, of checksums, of the disk
    reason = str(error).strip().splitlines()[0]
    raise ConfigError(
        f"config.data.source_dir = {source_dir!r}: {builder.name} could not be"
        f" prepared in {builder.data_path} ({reason})"
    ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without TFDS's bars and hints: its errors are told by exceptions."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)


def _find(
    data: DataSet, source_dir: str
) -> dict[str, list[pathlib.Path]]:
  """The local files of each split."""
  root = pathlib.Path(source_dir).expanduser()
  own = root / data.name
  root = own if own.is_dir() else root
  if not root.is_dir():
    raise ConfigError(
        f"config.data.source_dir = {source_dir!r}: is no folder"
    )
  found = {}
  for split, patterns in data.files.items():
    matches = (
        sorted((root / folder).glob(pattern))
        for pattern in patterns
        for folder in _SUBFOLDERS
    )
    found[split] = next(filter(None, matches), [])
    if not found[split]:
      raise ConfigError(
          f"config.data.source_dir = {source_dir!r}: has no {split} file of"
          f" {data.name} ({_wanted(data, split)})"
      )
  return found


def _wanted(data: DataSet, split: str) -> str:
  return " or ".join(data.files[split])


def _check_can_fetch(builder: Builder) -> None:
  """Finds out at once what the network's own time-outs tell after minutes."""
  if urllib.request.getproxies():
    return  # which find hosts themselves
  data = builder.DATA_SET
  for file in (f for files in data.downloads.values() for f in files):
    host = urllib.parse.urlsplit(file.url).hostname
    try:
      socket.getaddrinfo(host, None)
    except OSError as error:
      files = " and ".join(names[0] for names in data.files.values())
      raise ConfigError(
          f"data {data.name!r}: is not prepared in {builder.data_path}, and"
          f" {host} cannot be reached ({error.strerror}); name a folder with"
          f" its {files} with --config.data.source_dir=FOLDER"
      ) from error


def _rows(path: pathlib.Path) -> Iterator[Mapping[str, Any]]:
  """The rows of a jsonl or parquet file."""
  with path.open("rb") as file:
    is_parquet = file.read(4) == b"PAR1"
  if is_parquet:
    try:
      with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
          yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
      raise ConfigError(f"{path}: is no parquet file ({error})") from error
    return
  with path.open(encoding="utf-8") as lines:
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        continue
      try:
        row = json.loads(line)
      except ValueError as error:
        raise ConfigError(f"{path}: line {number} is no JSON") from error
      if not isinstance(row, dict):
        raise ConfigError(f"{path}: line {number} is no JSON object")
      yield row


def _digest(files: Mapping[str, Sequence[pathlib.Path]]) -> str:
  """SHA-256 of what the files hold, split by split."""
  digest = hashlib.sha256()
  for split, paths in sorted(files.items()):
    digest.update(split.encode())
    for path in paths:
      with path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
  return digest.hexdigest()

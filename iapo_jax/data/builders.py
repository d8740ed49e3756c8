"""TensorFlow Datasets builders of data sets, without TensorFlow.

Rows are converted once, written as array_record files in their published order
and read through `as_data_source`. The name of a prepared folder is a hash of
its source files, so changed files make a new data set.
"""

import collections
import contextlib
import fcntl
import hashlib
import io
import json
import pathlib
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow
import tensorflow_datasets as tfds
from absl import logging
from pyarrow import parquet

from iapo_jax.core import errors
from iapo_jax.core.errors import ConfigError, fail
from iapo_jax.data import published, registered
from iapo_jax.data.examples import READ, Example
from iapo_jax.data.published import DataSet
from iapo_jax.data.rows import Spelled

_Files = Mapping[str, Sequence[pathlib.Path]]
_COLUMNS = "row"  # the JSON of the other columns
# Folders in which repositories keep their files.
_SUBFOLDERS = ("", "data", "main", "default")


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Prepares any data set of `published`, under its name.

  Attributes:
    data: the data set.
    files: its local files by split; None if they are fetched.
    repeated: number of rows left out because they repeat a problem.
  """

  VERSION = tfds.core.Version("1.0.0")  # `data.version` takes precedence

  def __init__(
      self, data: DataSet, files: _Files | None, data_dir: pathlib.Path
  ) -> None:
    """Opens the data prepared from these files in `data_dir`, if any."""
    self.name = data.name
    self.data = data
    self.files = files
    self.repeated = 0
    super().__init__(
        file_format="array_record",
        data_dir=data_dir,
        config=tfds.core.BuilderConfig(
            name=_source(data, files),
            version=data.version,
            description=data.homepage,
        ),
    )

  @property
  def url_infos(self) -> dict[str, tfds.download.checksums.UrlInfo]:
    """The pinned size and SHA-256 of every fetched file, by its URL."""
    return {
        file.url: tfds.download.checksums.UrlInfo(
            size=file.size, checksum=file.sha256, filename=None
        )
        for file in self.data.downloads
    }

  def _info(self) -> tfds.core.DatasetInfo:
    names = (*READ, _COLUMNS) if self.data.keeps_columns else READ
    text = tfds.features.Text()
    return tfds.core.DatasetInfo(
        builder=self,
        homepage=self.data.homepage,
        features=tfds.features.FeaturesDict(dict.fromkeys(names, text)),
        disable_shuffling=True,  # keeps the published order
    )

  def _split_generators(
      self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
    files = self.files
    if files is None:
      files = collections.defaultdict(list)
      for file in self.data.downloads:
        path = pathlib.Path(dl_manager.download(file.url))
        files[file.split].append(path)
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
          example = self.data.convert(row)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
          raise ConfigError(
              f"{path}: row {line} is not a row of {self.name}: {error}"
          ) from error
        if self.data.repeats:
          question = " ".join(example.question.casefold().split())
          if question in seen:
            self.repeated += 1
            continue
          seen.add(question)
        stored = {name: getattr(example, name) for name in READ}
        if self.data.keeps_columns:
          stored[_COLUMNS] = json.dumps(dict(example.row))
        yield key, stored
        key += 1


def load(
    task: str,
    *,
    source_dir: str = "",
    prepared_dir: str = "",
    scratch: pathlib.Path | None = None,
) -> dict[str, list[Example]]:
  """Returns the published splits of a data set; prepares it if needed.

  Args:
    task: one of `config.data.READ`.
    source_dir: a folder with the files, or with a subfolder that has them and
      the name of the task; empty fetches them. For `own` it may be `tfds:NAME`.
    prepared_dir: folder of prepared data sets; empty means TFDS's default.
    scratch: folder to prepare in what `prepared_dir` lacks, where nothing is
      written then; None prepares in `prepared_dir`.

  Returns:
    The examples of each split, in their published order.

  Raises:
    ConfigError: if files are missing, cannot be fetched, or have rows of
      another form.
  """
  place = prepared_dir or tfds.core.constants.DATA_DIR
  root = pathlib.Path(place).expanduser()
  if task == "own" and source_dir.startswith(registered.PREFIX):
    return _load_registered(source_dir, root, scratch or root)
  data = published.DATA_SETS[task]
  files = _find(data, source_dir) if source_dir else None
  builder, is_prepared = _open(data, files, root)
  if not is_prepared:
    if files is None:
      _check_can_fetch(builder)
    place = scratch or root
    with _alone(place, task):
      # Another process may have prepared it while this one waited.
      builder, is_prepared = _open(data, files, place)
      if not is_prepared:
        _prepare(builder, kept=scratch is None)
  rows = _read(builder)
  for split, there in data.rows.items():
    if len(rows[split]) != there:
      print(
          f"warning: data {task}: {split} has {len(rows[split])} rows, the"
          f" published one has {there}",
          flush=True,
      )
  return rows


def _load_registered(
    source: str, root: pathlib.Path, place: pathlib.Path
) -> dict[str, list[Example]]:
  """Reads a registered data set; prepares it in `place` if `root` lacks it."""
  with _quiet():
    builder = registered.find(source, root)
    if not builder.is_prepared():
      with _alone(place, "own"):
        builder = registered.find(source, place)
        if not builder.is_prepared():
          registered.prepare(source, builder)
    return registered.read(source, builder)


def _open(
    data: DataSet, files: _Files | None, root: pathlib.Path
) -> tuple[Builder, bool]:
  """Returns a builder, and whether its data set is prepared."""
  try:
    with _quiet():
      builder = Builder(data, files, root)
      return builder, builder.is_prepared()
  except ConfigError:
    raise  # a file of the user's; the prepared data may be intact
  except Exception as error:  # protocol buffers raise several types
    raise _damaged(data.name, root / data.name) from error


@contextlib.contextmanager
def _alone(root: pathlib.Path, task: str) -> Iterator[None]:
  """Holds a lock, so that one process at a time prepares a data set."""
  try:
    root.mkdir(parents=True, exist_ok=True)
    lock = (root / f".{task}.lock").open("w")
  except OSError as error:
    rule = f"must be a writable folder ({error.strerror})"
    fail("data.prepared_dir", str(root), rule)
  with lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _prepare(builder: Builder, *, kept: bool) -> None:
  """Prepares a data set; prints where, unless it will not be kept there."""
  name, is_fetched, size = builder.name, builder.files is None, ""
  place = builder.data_path if kept else "its rows in a temporary folder"
  if is_fetched:
    total = sum(file.size for file in builder.data.downloads)
    size = f", downloads {total / 1e6:.1f} MB"
  print(f"data       {name}: prepares {place}{size}", flush=True)
  settings = tfds.download.DownloadConfig(force_checksums_validation=is_fetched)
  try:
    with _quiet():
      builder.download_and_prepare(download_config=settings)
  except ConfigError:
    raise
  except Exception as error:  # the network, checksums or the disk fail
    reason = errors.reason(error)
    raise ConfigError(
        f"data {name!r}: could not be prepared in {builder.data_path}"
        f" ({reason}); to use local files, set --config.data.source_dir=FOLDER"
    ) from error
  if builder.repeated:
    print(
        f"data       {name}: leaves out {builder.repeated} rows that repeat a"
        " problem",
        flush=True,
    )


def _read(builder: Builder) -> dict[str, list[Example]]:
  """Reads the examples of a prepared data set."""
  try:
    with _quiet():
      sources = {
          split: builder.as_data_source(split) for split in builder.data.files
      }
    return {
        split: [_example(record) for record in source]
        for split, source in sources.items()
    }
  except Exception as error:  # TFDS, array_record and protocol buffers raise it
    raise _damaged(builder.name, builder.data_path) from error


def _example(record: Mapping[str, bytes]) -> Example:
  """Reads a prepared example; only some data sets keep columns."""
  read = (record[name].decode() for name in READ)
  return Example(*read, row=json.loads(record.get(_COLUMNS, b"{}")))


def _damaged(name: str, path: Any) -> ConfigError:
  return ConfigError(
      f"data {name!r}: the data prepared in {path} is damaged; delete that"
      " folder"
  )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences progress bars and hints of TFDS; errors are still raised."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)


def _find(data: DataSet, source_dir: str) -> _Files:
  """Finds the local files of each split."""
  root = pathlib.Path(source_dir).expanduser()
  own = root / data.name
  root = own if own.is_dir() else root
  if not root.is_dir():
    fail("data.source_dir", source_dir, "must be a folder")
  found = {}
  for split, patterns in data.files.items():
    matches = (
        sorted((root / folder).glob(pattern))
        for pattern in patterns
        for folder in _SUBFOLDERS
    )
    paths = found[split] = next(filter(None, matches), [])
    if not paths:
      rule = f"must have a {split} file of {data.name}: {' or '.join(patterns)}"
      fail("data.source_dir", source_dir, rule)
    counted = re.search(r"-of-(\d+)\.", paths[0].name)
    if counted and len(paths) != int(counted.group(1)):
      raise ConfigError(
          f"{paths[0]}: must have all {int(counted.group(1))} parts beside it,"
          f" but the folder has {len(paths)}"
      )
  return found


def _check_can_fetch(builder: Builder) -> None:
  """Fails at once if a host has no address; a download would take minutes."""
  if urllib.request.getproxies().keys() & {"http", "https", "all"}:
    return  # proxies resolve names themselves
  data = builder.data
  for file in data.downloads:
    host = urllib.parse.urlsplit(file.url).hostname
    try:
      socket.getaddrinfo(host, None)
    except OSError as error:
      files = " and ".join(names[0] for names in data.files.values())
      raise ConfigError(
          f"data {data.name!r}: is not prepared in {builder.data_path}, and"
          f" {host} cannot be reached ({error.strerror}); put {files} into a"
          " folder and set --config.data.source_dir=FOLDER"
      ) from error


def _rows(path: pathlib.Path) -> Iterator[Mapping[str, Any]]:
  """Yields the rows of a jsonl or parquet file."""
  with path.open("rb") as file:
    is_parquet = file.read(4) == b"PAR1"
  return _parquet_rows(path) if is_parquet else _json_rows(path)


def _parquet_rows(path: pathlib.Path) -> Iterator[Mapping[str, Any]]:
  try:
    with parquet.ParquetFile(path) as file:
      narrow = {
          column.name: column.type.to_pandas_dtype()
          for column in file.schema_arrow
          if column.type in (pyarrow.float16(), pyarrow.float32())
      }
      for batch in file.iter_batches():
        for row in batch.to_pylist():
          # As a Python float, the float32 0.1 has 18 digits.
          yield row | {
              name: float(str(kind(row[name])))
              for name, kind in narrow.items()
              if row[name] is not None
          }
  except UnicodeDecodeError as error:
    raise ConfigError(f"{path}: has text that is not UTF-8") from error
  except pyarrow.ArrowException as error:
    raise ConfigError(f"{path}: is not a parquet file ({error})") from error


def _json_rows(path: pathlib.Path) -> Iterator[Mapping[str, Any]]:
  """Yields JSON objects; their numbers are `rows.Spelled`."""
  with path.open("rb") as lines:
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        continue
      try:
        row = json.loads(line, parse_int=Spelled, parse_float=Spelled)
      # ValueError also means bad UTF-8; RecursionError means deep nesting.
      except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: line {number} is not JSON") from error
      if not isinstance(row, dict):
        raise ConfigError(f"{path}: line {number} is not a JSON object")
      yield row


def _source(data: DataSet, files: _Files | None) -> str:
  """Returns the name of a prepared folder, a hash of its source files."""
  if not files:
    pinned = sorted(data.downloads, key=lambda file: file.split)
    sums = "\n".join(f"{file.split} {file.sha256}" for file in pinned)
    return f"fetched_{hashlib.sha256(sums.encode()).hexdigest()[:16]}"
  digest = hashlib.sha256()
  for split, paths in sorted(files.items()):
    digest.update(split.encode())
    for path in paths:
      try:
        with path.open("rb") as file:
          digest.update(hashlib.file_digest(file, "sha256").digest())
      except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise ConfigError(f"{str(path)!r}: {problem}") from error
  return f"local_{digest.hexdigest()[:16]}"

"""Says what a place is, so that an error about the wrong one helps."""

import collections
import dataclasses
import enum
import pathlib
from collections.abc import Iterator

from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import folder, gguf, tokenizer

_DEPTH, _MOST = 3, 1000  # of the folders that `_below` looks into
_DATA = (".jsonl", ".parquet")


class Kind(enum.Enum):
  """What a path is; the value completes "it ...".

  A `PART` is anything else inside a run.
  """

  MISSING = "does not exist"
  FILE = "is a file"
  GGUF = "is a GGUF file"
  EMPTY = "is an empty folder"
  RUN = "is a run"
  CHECKPOINT = "is a checkpoint of the run"
  PART = "is a part of the run"
  MODEL = "is a Hugging Face folder"
  RUNS = "is a parent of runs"
  MODELS = "is a parent of Hugging Face folders"
  GGUFS = "holds GGUF files"
  PREPARED = "holds prepared data"
  DATA = "holds data files"
  OTHER = "is another folder"


@dataclasses.dataclass(frozen=True)
class Place:
  """A path that was looked at.

  Attributes:
    found: the run that it is a part of, or the first folder or file below it
      for which it has its kind; None for other kinds.
  """

  path: pathlib.Path
  kind: Kind
  found: pathlib.Path | None = None


def look(path: pathlib.Path) -> Place:
  """Says what a path is, from the names of files and the configuration."""
  if gguf.is_file(path):
    return Place(path, Kind.GGUF)
  if not path.is_dir():
    return Place(path, Kind.FILE if path.exists() else Kind.MISSING)
  if _is_run(path):
    return Place(path, Kind.RUN)
  if not any(path.iterdir()):
    return Place(path, Kind.EMPTY)
  for run in list(path.absolute().parents)[:4]:
    if _is_run(run):
      inside = path.absolute().relative_to(run)
      step = len(inside.parts) == 3 and inside.parts[0] == "checkpoints"
      return Place(path, Kind.CHECKPOINT if step else Kind.PART, run)
  if is_model(path):
    return Place(path, Kind.MODEL)
  for below in _below(path):
    if _is_run(below):
      return Place(path, Kind.RUNS, below)
    if is_model(below):
      return Place(path, Kind.MODELS, below)
    if (below / "dataset_info.json").exists():
      return Place(path, Kind.PREPARED, below)
  if models := sorted(filter(gguf.is_file, path.iterdir())):
    return Place(path, Kind.GGUFS, models[0])
  if any(file.suffix in _DATA for file in path.iterdir()):
    return Place(path, Kind.DATA)
  return Place(path, Kind.OTHER)


def is_model(path: pathlib.Path) -> bool:
  """Returns whether a folder has the configuration of a Hugging Face model."""
  return "model_type" in _config(path)


def _is_run(path: pathlib.Path) -> bool:
  found = _config(path)
  return "num_steps" in found and "model_type" not in found


def _config(path: pathlib.Path) -> dict:
  """Returns `config.json`, which runs and models have; empty if it is not."""
  if not (path / folder.CONFIG).is_file():
    return {}
  try:
    return files.read_json(path / folder.CONFIG)
  except ConfigError:
    return {}


def _below(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields the folder and those below it, from the top, within limits."""
  waiting = collections.deque([(path, 0)])
  for _ in range(_MOST):
    if not waiting:
      return
    here, depth = waiting.popleft()
    yield here
    if depth < _DEPTH:
      try:
        inside = sorted(x for x in here.iterdir() if x.is_dir())
      except OSError:
        continue
      waiting.extend((x, depth + 1) for x in inside)


def explain(path: pathlib.Path, wanted: str) -> str:
  """Says what a path is, and what to name or to call instead.

  `wanted` is `run`, `model` (a Hugging Face folder or a GGUF file), `policy`
  (either) or `tokenizer`.
  """
  place = look(path)
  kind, found, here = place.kind, place.found, str(path)
  told = _told(place)
  if kind in (Kind.RUN, Kind.CHECKPOINT, Kind.PART):
    return f"{told}; {_of_run(place, str(found or path), wanted)}"
  if kind in (Kind.MODEL, Kind.GGUF):
    return told if wanted != "run" else f"{told}; {_of_model(here)}"
  if kind is Kind.RUNS and wanted in ("model", "tokenizer"):
    return f"{told}; {_of_run(Place(found, Kind.RUN), str(found), wanted)}"
  if kind in (Kind.MODELS, Kind.GGUFS) and wanted == "run":
    return f"{told}; {_of_model(str(found))}"
  if kind in (Kind.RUNS, Kind.MODELS, Kind.GGUFS):
    return f"{told}; name one of them, such as {str(found)!r}"
  if kind is Kind.DATA:
    return f"{told}; name them with --config.data.source_dir={here}"
  if kind is Kind.OTHER:
    name = tokenizer.FILE if wanted == "tokenizer" else folder.CONFIG
    return f"it has no {name}"
  return told


def _told(place: Place) -> str:
  """Says what a path is; of a part of a run, which run."""
  told = f"it {place.kind.value}"
  if place.kind in (Kind.CHECKPOINT, Kind.PART):
    told += f" {str(place.found)!r}"
  return told


def _of_model(model: str) -> str:
  """Says what to call instead, where a run is wanted."""
  return (
      f"score it with `iapo score --model={model}`, train from it with"
      f" --config.model.pretrained={model}, or evaluate it as a run without"
      f" steps: `iapo train --config=NAME --config.model.pretrained={model}"
      " --config.num_steps=0 --config.warm_start.num_steps=0`"
  )


def _of_run(place: Place, run: str, wanted: str) -> str:
  """Says what to name or to call instead of a run or a part of it."""
  if wanted == "tokenizer":
    kept = [x for x in (folder.TOKENIZER, folder.KEPT)
            if (pathlib.Path(run) / x).is_dir()]  # fmt: skip
    if not kept:
      return "it has no tokenizer either; name another folder"
    return f"name its tokenizer, {str(pathlib.Path(run) / kept[0])!r}"
  which = ""
  if place.kind is Kind.CHECKPOINT and place.path.parent.name == "rl":
    which = f" --checkpoint={place.path.name}"
  export = f"`iapo export {run}{which} --output=FOLDER`"
  if wanted == "model":
    begin = str(place.path) if place.kind is Kind.CHECKPOINT else run
    return (
        f"begin from its policy with --config.init_from={begin}, or make a"
        f" Hugging Face folder of it with {export}"
    )
  if not which:
    return f"name {run!r}"
  if wanted == "policy":
    return f"name {run!r}, or make a Hugging Face folder with {export}"
  return f"name {run!r}; `iapo evaluate` and `iapo export` take{which}"


def check(path: pathlib.Path, field: str, wanted: str) -> None:
  """Raises ConfigError if a folder is known not to be `wanted`.

  `wanted` is one of `explain`, except `run`. A folder of no known kind passes;
  its reader says what it lacks.
  """
  there = tokenizer.FILE if wanted == "tokenizer" else folder.CONFIG
  place = look(path)
  has = (path / there).exists() and place.kind is not Kind.RUN
  if not has and place.kind not in (Kind.MODEL, Kind.GGUF, Kind.OTHER):
    needed = {
        "model": "a Hugging Face folder, a GGUF file or a hub name",
        "policy": "a run, a Hugging Face folder, a GGUF file or a hub name",
        "tokenizer": (
            "a folder with a tokenizer.json, a GGUF file or a hub name"
        ),
    }[wanted]
    raise ConfigError(
        f"{field} = {str(path)!r}: must be {needed}; {explain(path, wanted)}"
    )


def check_workdir(path: pathlib.Path) -> None:
  """Raises ConfigError if a new run would be written into something else."""
  place = look(path)
  if place.kind in (Kind.CHECKPOINT, Kind.PART, Kind.MODEL, Kind.RUNS):
    name = "another folder"
    if place.kind is Kind.RUNS:
      name = f"--workdir={path / 'NAME'}"
    raise ConfigError(
        f"workdir {str(path)!r}: must be new, empty or the folder of this run;"
        f" {_told(place)}; use {name}"
    )

"""Warm starts as archives of one small file each.

The same seed gives other weights on another kind of processor or with other
versions. To reproduce a comparison, or to add comparable trials, you need its
exact starting weights.
"""

import pathlib
import shutil
import tarfile
import tempfile

from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError
from iapo_jax.run import checkpoint, sources
from iapo_jax.run import workdir as workdir_lib

_ABOUT = ("config.json", workdir_lib.SUMMARY)


def pack(run: pathlib.Path, archive: pathlib.Path) -> None:
  """Packs what other runs need of a finished run to begin from it.

  Writes its configuration, its result and the policy of its last checkpoint,
  without optimizer moments, to a compressed tar. Raises ConfigError if the run
  has no intact checkpoint.
  """
  last = sources.last(run)
  if problem := last.fault():
    raise ConfigError(f"checkpoint {str(last)!r}: {problem}")
  draft = files.draft_of(archive)
  with tempfile.TemporaryDirectory() as folder:
    slim = pathlib.Path(folder) / run.name
    place = checkpoint.stage_folder(slim, last.stage) / str(last.step)
    shutil.copytree(last.folder / str(last.step) / "params", place / "params")
    checkpoint.seal(place)
    for name in _ABOUT:
      shutil.copy(run / name, slim / name)
    with tarfile.open(draft, "w:gz") as tar:
      tar.add(slim, arcname=run.name, filter=_anybody)
  draft.rename(archive)


def _anybody(member: tarfile.TarInfo) -> tarfile.TarInfo:
  """Removes owner and time, so that archives do not depend on them."""
  member.uid = member.gid = member.mtime = 0
  member.uname = member.gname = ""
  return member


def _usual_mode(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
  """Returns the member as the umask has it, not as the packing user had it."""
  return tarfile.data_filter(member, folder).replace(mode=None, deep=False)


def unpack(archive: pathlib.Path, run: pathlib.Path) -> None:
  """Unpacks the run that `pack` wrote to the new folder `run`.

  The folder must have the name of the packed run. A folder that another process
  creates in the meantime is kept. Raises ConfigError if the file is no such
  archive or is damaged.
  """
  run.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=run.parent) as folder:
    try:
      with tarfile.open(archive, "r:gz") as tar:
        tar.extractall(folder, filter=_usual_mode)
      found = pathlib.Path(folder) / run.name
      last = sources.last(found)
    except (OSError, EOFError, tarfile.TarError, ConfigError) as error:
      raise ConfigError(
          f"{str(archive)!r}: is no packed run {run.name} ({error})"
      ) from error
    if problem := last.fault():
      raise ConfigError(f"{str(archive)!r}: its checkpoint {problem}")
    try:
      found.rename(run)
    except OSError:
      if not run.exists():  # another process unpacked it first
        raise

"""What the benchmarks with peers share: environments, processes, checks."""

import contextlib
import json
import math
import os
import pathlib
import subprocess
import sys
import venv
from typing import Any

from peers import protocol

from iapo_jax.core.errors import ConfigError

_HERE = pathlib.Path(__file__).parent
_STAMP = "installed.txt"


def environment(name: str, folder: pathlib.Path) -> pathlib.Path:
  """The Python of a peer's virtual environment, which is made if need be.

  Args:
    name: of the peer; `peers/NAME.txt` has what it needs.
    folder: of all environments.

  Returns:
    The interpreter.

  Raises:
    ConfigError: where it cannot be installed.
  """
  place = folder / name
  requirements = _HERE / "peers" / f"{name}.txt"
  wanted = requirements.read_text(encoding="utf-8")
  python, stamp = place / "bin" / "python", place / _STAMP
  if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
    return python
  print(f"installing {name} in {place}", file=sys.stderr)
  venv.create(place, with_pip=True)
  command = [python, "-m", "pip", "install", "--quiet", "-r", requirements]
  try:
    subprocess.run(command, check=True)
  except subprocess.CalledProcessError as error:
    raise ConfigError(f"--contestants: {name} cannot be installed") from error
  stamp.write_text(wanted, encoding="utf-8")  # last: it is complete
  return python


def pythons(names: list[str], folder: str) -> dict[str, pathlib.Path]:
  """The interpreter of each contestant; `ours` has the one that runs this."""
  place = pathlib.Path(folder).expanduser()
  return {
      name: pathlib.Path(sys.executable)
      if name == "ours"
      else environment(name, place)
      for name in names
  }


def check_names(names: list[str], peers: tuple[str, ...]) -> None:
  """Raises where `--contestants` names somebody else, or nobody."""
  unknown = [name for name in names if name not in ("ours", *peers)]
  if unknown or not names:
    rule = f"must be of ours, {', '.join(peers)}"
    raise ConfigError(f"--contestants {','.join(unknown)!r}: {rule}")


class Worker:
  """A contestant's process, and what it said.

  Attributes:
    name: of the contestant.
    facts: its first answer.
  """

  def __init__(
      self,
      name: str,
      python: pathlib.Path,
      job: pathlib.Path,
      *,
      script: str,
      **variables: str,
  ) -> None:
    """Starts the process and waits until it has answered.

    Args:
      name: of the contestant.
      python: its interpreter.
      job: the file that it reads; its log lies beside it.
      script: under this folder.
      variables: of its environment, beside those of `_environ`.

    Raises:
      RuntimeError: where the process ends without an answer.
    """
    self.name = name
    rehearsal = protocol.load_job(job)["rehearsal"]
    self._log = job.parent / f"{name}.log"
    with self._log.open("w", encoding="utf-8") as log:
      self._process = subprocess.Popen(
          [python, _HERE / script, job],
          stdin=subprocess.PIPE,
          stdout=subprocess.PIPE,
          stderr=log,
          env=_environ(name, rehearsal) | variables,
          text=True,
      )
    self.facts = self._answer()

  def ask(self, command: str) -> dict[str, Any]:
    """Sends a command and waits for its answer."""
    with contextlib.suppress(BrokenPipeError):  # _answer tells what happened
      print(command, file=self._process.stdin, flush=True)
    return self._answer()

  def close(self) -> None:
    """Ends the process, however it is."""
    self._process.kill()
    self._process.communicate()

  def _answer(self) -> dict[str, Any]:
    line = self._process.stdout.readline()
    if not line:
      self.close()
      said = self._log.read_text(encoding="utf-8", errors="replace")
      raise RuntimeError(f"{self.name} ended early:\n{said[-4000:]}")
    return json.loads(line)


def _environ(name: str, rehearsal: bool) -> dict[str, str]:
  """A worker's environment: quiet, off-line, and its own packages only."""
  kept = dict(os.environ)
  # Other numbers of devices and threads would not be everyone's.
  dropped = ["OMP_NUM_THREADS", "MKL_NUM_THREADS"]
  if not rehearsal:  # its seconds do not count: it compiles as the caller does
    dropped.append("XLA_FLAGS")
  for variable in dropped + ([] if name == "ours" else ["PYTHONPATH"]):
    kept.pop(variable, None)
  return kept | {
      "HF_HUB_OFFLINE": "1",
      "TF_CPP_MIN_LOG_LEVEL": "3",
      "TOKENIZERS_PARALLELISM": "false",
      "TRANSFORMERS_VERBOSITY": "error",
  }


def check(name: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
  """Raises where what was done is not what was asked for.

  Args:
    name: of the contestant.
    found: its answer.
    expected: fields of the answer, with their values.

  Raises:
    RuntimeError: naming the field.
  """
  for field, value in expected.items():
    if found[field] != value:
      raise RuntimeError(f"{name}: {field} = {found[field]}, not {value}")


def check_learning(name: str, found: dict[str, Any]) -> None:
  """Raises where `loss`, `grad_norm` or `moved` say that nothing was learned.

  Args:
    name: of the contestant.
    found: its answer.

  Raises:
    RuntimeError: naming the field.
  """
  if not math.isfinite(found["loss"]):
    raise RuntimeError(f"{name}: loss = {found['loss']}")
  for field in ("grad_norm", "moved"):
    if not 0 < found[field] < math.inf:
      raise RuntimeError(f"{name}: {field} = {found[field]}")

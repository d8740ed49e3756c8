"""What tests of whole runs share."""

import contextlib
import io
import json
import os
import pathlib
import runpy
import shutil
import struct
import sys
import time
import types

from absl import flags
from tensorboardX.proto import event_pb2

from iapo_jax.cli import iapo
from iapo_jax.config import parsing
from iapo_jax.run import logs
from iapo_jax.tools.report.runs import Group, Run

ODD_LABELS = [
    r"$\frac$", "_hidden", "a$b$c", "50 %", "x" * 90, "\ud800", "seed 1, " * 9,
]  # fmt: skip
HERE = pathlib.Path(__file__).parent
BENCHMARKS = HERE.parent / "benchmarks"
# Sums whose completions are so short that a loop over tokens is one loop, not
# one for each quarter of the cache: a step compiles in half the time.
SHORT = {"data.arithmetic.operands": 3, "rollout.max_tokens": 56}
# Nothing that needs probes or a reference: the smallest step there is.
LEAN = SHORT | {
    "credit.mode": "grpo", "probe.stride": 0, "loss.kl_weight": 0.0,
    "loss.early_weight": 0.0,
}  # fmt: skip


def environment(devices=1):
  """Of programs that tests start: with one device, as on a laptop, or more.

  Like the suite itself they compile fast; unlike it they have no torch.
  """
  flags = [
      flag
      for flag in os.environ["XLA_FLAGS"].split()
      if "device_count" not in flag
  ]
  flags.append(f"--xla_force_host_platform_device_count={devices}")
  path = f"{HERE / 'without_torch'}{os.pathsep}{HERE.parent}"
  return os.environ | {"XLA_FLAGS": " ".join(flags), "PYTHONPATH": path}


def module(path):
  """A program or configuration of the repository, read as it is there."""
  return types.SimpleNamespace(**runpy.run_path(str(HERE.parent / path)))


def untimed(line):
  return {k: v for k, v in line.items() if not k.startswith("time/")}


def lines(folder, name=logs.METRICS):
  """A log without its times: what a repetition must repeat."""
  return [untimed(line) for line in logs.read(folder, name)]


def edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@contextlib.contextmanager
def umask(bits):
  """New files and folders lack these permissions."""
  before = os.umask(bits)
  try:
    yield
  finally:
    os.umask(before)


def odd_modes(folder):
  """What is in a folder, itself included, whose modes the umask does not give.
  """
  bits = os.umask(0)
  os.umask(bits)
  return [
      f"{path}: {path.stat().st_mode & 0o777:o}"
      for path in (folder, *folder.rglob("*"))
      if path.stat().st_mode & 0o777
      != (0o777 if path.is_dir() else 0o666) & ~bits
  ]


def unfinished_copy(run, folder):
  shutil.copytree(run, folder)
  (folder / "summary.json").unlink()
  return folder


def events(folder):
  """(step, tag, value) of TensorBoard's files, and their wall times."""
  found, times = [], []
  for path in sorted(folder.glob("events*")):
    content = path.read_bytes()
    while content:
      (size,) = struct.unpack("<Q", content[:8])
      event = event_pb2.Event.FromString(content[12 : 12 + size])
      content = content[16 + size :]
      for value in event.summary.value:
        found.append((event.step, value.tag, value.simple_value))
        times.append(event.wall_time)
  return found, times


def read_wandb(workdir, count):
  """The lines, and the run itself, in W&B's files of a workdir.

  Another process writes them: waits until there are as many lines.
  """
  (path,) = (workdir / "wandb").glob("offline-run-*/run-*.wandb")
  deadline = time.monotonic() + 60
  while len((found := _read_wandb(path))[0]) < count:
    assert time.monotonic() < deadline, found
    time.sleep(0.1)
  return found


def _read_wandb(path):
  from wandb.proto import wandb_internal_pb2

  lines, run = [], None
  for content in _records(path.read_bytes()):
    record = wandb_internal_pb2.Record()
    record.ParseFromString(content)
    if record.HasField("history"):
      lines.append({
          "/".join(x.nested_key) or x.key: json.loads(x.value_json)
          for x in record.history.item
      })
    if record.HasField("run"):
      run = record.run
  return lines, run


def _records(content, block=2**15, head=7):
  """Of a log like LevelDB's: crc, size, kind, and a part of a record.

  Parts do not cross blocks; kinds are whole, first, middle, last.
  """
  assert content[:4] == b":W&B"
  place, whole = head, b""
  while place < len(content):
    if block - place % block < head:
      place += block - place % block
      continue
    _, size, kind = struct.unpack("<IHB", content[place : place + head])
    place += head
    whole += content[place : place + size]
    place += size
    if kind in (1, 4):
      yield whole
      whole = b""


def synthetic(label, place, seeds=1, points=3):
  """A group whose numbers follow its place."""
  members = []
  for seed in range(seeds):
    lines = [
        {"stage": "validation", "step": 10 * i, "accuracy": 0.5 + 0.01 * place,
         "mean_tokens": 60.0 - place}
        for i in range(points)
    ]  # fmt: skip
    summary = {"accuracy": 0.5 + 0.01 * place, "accuracy_se": 0.01,
               "mean_tokens": 20.0 + 40 * seed}  # fmt: skip
    config = {"seed": seed, "num_steps": 1, "credit.mode": "grpo"}
    members.append(
        Run(
            pathlib.Path(), config, {"validation": lines}, [], [], [], summary
        )
    )
  return Group(label, tuple(members))


def small_sums():
  """A run of every stage in seconds, as a configuration to change."""
  config = parsing.default()
  config.update({"num_steps": 2, "prompts_per_step": 4, "group_size": 4})
  config.update_from_flattened_dict(SHORT)
  config.warm_start.update({"num_steps": 4, "batch_size": 8})
  config.evaluation.update({"every": 1, "problems": 8, "batch_size": 16})
  config.data.arithmetic.update({
      "train_problems": 48, "validation_problems": 8, "test_problems": 16,
  })
  config.model.update({"d_model": 32, "mlp_dim": 64})
  return config


def command(name, *arguments, cwd=HERE.parent):
  """`iapo NAME ARGUMENTS` in this process: status, stdout, stderr.

  Process state that a command changes stays changed.
  """
  return captured(lambda: iapo.run(name, [str(x) for x in arguments]), cwd)


def benchmark(name, *arguments):
  """A program of benchmarks/ in this process, like `command`."""
  return program(BENCHMARKS / f"{name}.py", *arguments)


def program(path, *arguments):
  """A program of the repository in this process, like `command`."""
  argv = sys.argv
  sys.argv = [str(path), *map(str, arguments)]
  sys.path.insert(0, str(path.parent))
  try:
    with _without_other_programs(path.parent):
      return captured(lambda: runpy.run_path(str(path), run_name="__main__"))
  finally:
    sys.argv = argv
    sys.path.remove(str(path.parent))


@contextlib.contextmanager
def _without_other_programs(folder):
  """Sets aside flags of other programs, and modules named like the folder's.

  Tests import those of studies and benchmarks. What the program leaves behind
  is gone afterwards.
  """
  values = flags.FLAGS
  kept = {
      name: (values.find_module_defining_flag(name), values[name])
      for name in _flags_of_programs()
  }
  names = [x.stem for x in folder.glob("*.py")]
  modules = {x: sys.modules.pop(x) for x in names if x in sys.modules}
  for name in kept:
    delattr(values, name)
  try:
    yield
  finally:
    for name in _flags_of_programs():
      delattr(values, name)
    for name, (owner, flag) in kept.items():
      values[name] = flag
      values.register_flag_by_module(owner, flag)
    for name in names:
      sys.modules.pop(name, None)
    sys.modules.update(modules)


def _flags_of_programs():
  """Those that no library defines; those of fields have absl as their owner."""
  values = flags.FLAGS
  owners = {name: values.find_module_defining_flag(name) for name in values}
  files = {
      name: getattr(sys.modules.get(owner), "__file__", None) or ""
      for name, owner in owners.items()
  }
  return [
      name
      for name, file in files.items()
      if "." in name or "site-packages" not in file
  ]


def captured(run, cwd=HERE.parent):
  """Status, stdout and stderr of a program that ends its process."""
  streams = [
      io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
      for _ in range(2)
  ]
  with (
      contextlib.chdir(cwd),
      contextlib.redirect_stdout(streams[0]),
      contextlib.redirect_stderr(streams[1]),
  ):
    try:
      run()
      status = 0
    except SystemExit as end:
      status = end.code or 0
  texts = [stream.buffer.getvalue().decode() for stream in streams]
  return types.SimpleNamespace(
      returncode=status, stdout=texts[0], stderr=texts[1]
  )

"""What tests of whole runs share."""

import json
import shutil
import struct

from tensorboardX.proto import event_pb2

from iapo_jax import logs


def untimed(line):
  return {k: v for k, v in line.items() if not k.startswith("time/")}


def lines(folder, name=logs.METRICS):
  """A log without its times: what a repetition must repeat."""
  return [untimed(line) for line in logs.read(folder, name)]


def edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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

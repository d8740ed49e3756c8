"""Transfers between devices, read from the text of a compiled program.

XLA writes a program as computations of instructions. An instruction that moves
data names the shape of its result and its groups of devices. A loop names its
body and, where the compiler knows it, its trip count. The text is the only
source for the bytes sent: the compiler's analysis counts a loop once and
ignores communication.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator

# Bits of a number; other types, such as `token`, hold no data.
_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16,
    "s32": 32, "u32": 32, "s64": 64, "u64": 64, "f16": 16, "bf16": 16,
    "f32": 32, "f64": 64, "c64": 64, "c128": 128,
    "f8e4m3fn": 8, "f8e5m2": 8, "f8e4m3": 8,
}  # fmt: skip
Array = tuple[str, tuple[int, ...]]  # its type and shape

# A TPU's program sends data to another slice through its host.
_BETWEEN = '_xla_host_transfer_handler_name="xla_megascale_runtime"'
BETWEEN_SLICES = "between-slices"
_KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all",
    "collective-permute", "ragged-all-to-all", "collective-broadcast",
    BETWEEN_SLICES,
)  # fmt: skip

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\([^\n]*)?\{\s*$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?[\w.\-]+ = (?P<type>\(.*?\)|\S+) (?P<op>[\w\-]+)\("
)
_COMMENT = re.compile(r"/\*.*?\*/")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)"
    r"=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_NAME = re.compile(r'op_name="([^"]*)"')
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_TILED = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_AXES = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? \{([^}]*)\}"
)
_PAIRS = re.compile(
    r"collective-permute(?:-start)?\(.*source_target_pairs=\{(.*?)\}\}"
)
_RING = re.compile(r"body=%?([\w.\-]*windowed_dot_general[\w.\-]*)")
_CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclasses.dataclass(frozen=True)
class Transfer:
  """One instruction that moves data between devices.

  Attributes:
    kind: `all-gather`, `all-reduce`, ...; `BETWEEN_SLICES` for data that leaves
      a slice (its reduction or gathering within the slice is another transfer).
    scope: the operation's name with the scopes it was traced in; that of the
      surrounding loop or call if it has none.
    result: types and shapes of the results on one device.
    devices: size of the group that takes part.
    times: executions per call of the program.
  """

  kind: str
  scope: str
  result: tuple[Array, ...]
  devices: int
  times: int

  @property
  def sent_bytes(self) -> float:
    """Bytes that each device sends per call of the program.

    Assumes rings, which send the least: each of n devices passes on n − 1 parts
    to gather, scatter or exchange, and twice that to reduce. A transfer between
    slices sends everything once.
    """
    n = self.devices
    size = sum(
        _BITS.get(dtype, 0) * math.prod(shape) // 8
        for dtype, shape in self.result
    )
    once = {
        "all-gather": size * (n - 1) / n,
        "all-reduce": 2 * size * (n - 1) / n,
        "reduce-scatter": size * (n - 1),
        "all-to-all": size * (n - 1) / n,
        "ragged-all-to-all": size * (n - 1) / n,
    }.get(self.kind, size)
    return once * self.times


def transfers(text: str, trips: Callable[[str], int]) -> list[Transfer]:
  """Returns every transfer that is reached from the program's entry.

  In a conditional only the branch that sends most counts. A TPU splits some
  transfers into steps; the text lists every step, all on one channel, and they
  count once.

  Args:
    text: of a compiled program, as XLA writes it.
    trips: maps a loop's operation name to its trip count, for loops whose count
      the compiler does not know.

  Raises:
    ValueError: if replica groups have an unknown notation.
  """
  program = _Program(text, trips)
  found = {}
  for number, (channel, transfer) in enumerate(program.walk(program.entry, 1)):
    found.setdefault((channel or -number, transfer.times), transfer)
  return list(found.values())


class _Program:
  """The computations of a program, by name."""

  def __init__(self, text: str, trips: Callable[[str], int]) -> None:
    self._trips = trips
    self._lines: dict[str, list[str]] = {}
    self.entry = ""
    name = None
    for line in text.splitlines():
      if name is None:
        found = _HEADER.match(line)
        if found and not line.startswith("HloModule"):
          name = found[1]
          self._lines[name] = []
          if line.startswith("ENTRY"):
            self.entry = name
      elif line.startswith("}"):
        name = None
      else:
        self._lines[name].append(_COMMENT.sub("", line))

  def walk(
      self, name: str, times: int, around: str = ""
  ) -> Iterator[tuple[int, Transfer]]:
    """Yields (channel, transfer) of a computation that runs `times` times.

    Transfers without a scope take that of the caller, `around`.
    """
    for line in self._lines.get(name, ()):
      found = _INSTRUCTION.match(line)
      if not found:
        continue
      operation = found["op"]
      if operation == "send" and _BETWEEN in line:
        operation = BETWEEN_SLICES
      scope = _scope(line) or around
      kind = operation.removesuffix("-start")
      if kind in _KINDS:
        channel = _CHANNEL.search(line)
        result = _result(operation, found["type"])
        yield (
            int(channel[1]) if channel else 0,
            Transfer(kind, scope, result, _group(line), times),
        )
      elif branches := _BRANCHES.search(line):
        yield from max(
            (
                list(self.walk(branch, times, scope))
                for branch in re.findall(r"[\w.\-]+", branches[1])
            ),
            key=lambda found: sum(x.sent_bytes for _, x in found),
        )
      else:
        often = times * (self._often(line) if kind == "while" else 1)
        for called in _CALLED.findall(line):
          yield from self.walk(called, often, scope)

  def _often(self, line: str) -> int:
    if known := _TRIPS.search(line):
      return int(known[1])
    if ring := _RING.search(line):
      return self._turns(ring[1])
    return self._trips(_scope(line))

  def _turns(self, body: str) -> int:
    """Returns the trips of a loop that multiplies while it passes parts on.

    The compiler makes such a loop from a product with a gathered or scattered
    factor. All parts of a ring pass each device, several of them per trip.
    """
    passed = [x for x in self._lines[body] if _PAIRS.search(x)]
    if not passed:
      return 1
    pairs = re.findall(r"(\d+),(\d+)", _PAIRS.search(passed[0])[1])
    following = {int(a): int(b) for a, b in pairs}
    first = at = next(iter(following))
    size = 1
    while (at := following.get(at, first)) != first:
      size += 1
    return math.ceil(size / len(passed))


def _result(operation: str, text: str) -> tuple[Array, ...]:
  """Returns the results among the arrays that an instruction's type names.

  The type of an asynchronous instruction also names its operands and, for some
  kinds, two flags; that of an all-reduce does not.
  """
  arrays = [
      (dtype, tuple(int(n) for n in dims.split(",") if n))
      for dtype, dims in _ARRAY.findall(text)
  ]
  if operation == BETWEEN_SLICES:
    arrays = arrays[:1]  # the others are signals
  elif operation.endswith("-start") and operation != "all-reduce-start":
    data = [x for x in arrays if x[0] not in ("u32", "s32") or x[1]]
    arrays = data[len(data) // 2 :]
  return tuple(arrays)


def _scope(line: str) -> str:
  found = _NAME.search(line)
  return found[1] if found else ""


def _group(line: str) -> int:
  """Returns how many devices take part, at least 1.

  Raises:
    ValueError: if the groups have an unknown notation.
  """
  if axes := _AXES.search(line):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
    return math.prod(int(sizes[x]) for x in re.findall(r"\w+", axes[2]))
  if tiled := _TILED.search(line):
    return int(tiled[2])
  if listed := _LISTED.search(line):
    return max(1, len(listed[1].split(",")))
  if "replica_groups=" in line:
    raise ValueError(f"replica_groups: unknown notation: {line.strip()}")
  return 1

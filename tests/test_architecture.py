"""Walls: imports go down through the rooms, and a newcomer finds each room."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "iapo_jax"
# From the ground up: a room imports rooms before it, never those after it.
ROOMS = (
    "core", "config", "models", "hf", "rewards", "rl", "data", "run", "tools",
    "cli",
)  # fmt: skip
STUDIES = ROOT / "experiments" / "studies"


def imported(source):
  """Names of all modules that a source imports, wherever it does.

  `from a import b` counts as a.b: b may be a module.
  """
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.ImportFrom):
      assert not node.level, "imports are absolute"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)


def room_of(name):
  """The room of a module's name; None outside of the rooms."""
  top, _, rest = name.partition(".")
  room = rest.partition(".")[0]
  return room if top == "iapo_jax" and room in ROOMS else None


def upward(source, room):
  """The imports of a source in a room that go up."""
  here = ROOMS.index(room)
  return [
      name
      for name in imported(source)
      if (other := room_of(name)) and ROOMS.index(other) > here
  ]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down(room):
  for path in (PACKAGE / room).rglob("*.py"):
    found = upward(path.read_text(encoding="utf-8"), room)
    assert not found, f"{path.relative_to(ROOT)} imports upwards: {found}"


@pytest.mark.parametrize(
    "line",
    [
        "from iapo_jax.run import trainer",
        "from iapo_jax.run.trainer import train",
        "import iapo_jax.run.trainer",
        "def later():\n  from iapo_jax.run import trainer",
        "if TYPE_CHECKING:\n  from iapo_jax.run.trainer import Run",
    ],
)
def test_an_import_that_goes_up_is_seen(line):
  assert upward(line, "rl")
  assert not upward(line, "cli")


def modules():
  for path in PACKAGE.rglob("*.py"):
    parts = path.relative_to(ROOT).with_suffix("").parts
    yield ".".join(parts).removesuffix(".__init__"), path


def test_no_modules_import_each_other_in_a_circle():
  known = dict(modules())
  graph = {
      name: {
          found if found in known else found.rpartition(".")[0]
          for found in imported(path.read_text(encoding="utf-8"))
          if found.startswith("iapo_jax.")
      }
      for name, path in known.items()
  }
  # The API of the package's own __init__ is lazy, and has a test below.
  graph["iapo_jax"] = set()
  while leaves := {name for name, below in graph.items() if not below}:
    graph = {
        name: below - leaves
        for name, below in graph.items()
        if name not in leaves
    }
  assert not graph


def test_every_room_says_in_one_line_what_lives_there():
  found = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
  assert found == set(ROOMS)
  for path in PACKAGE.rglob("__init__.py"):
    if path.parent == PACKAGE:
      continue
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text.partition("\n")[0].endswith("."), path


def test_the_readme_names_every_room():
  text = (ROOT / "README.md").read_text(encoding="utf-8")
  named = set(re.findall(r"`iapo_jax/(\w+)/`", text))
  packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
  assert named == packages


def test_the_package_has_few_names():
  names = {
      path.name
      for path in PACKAGE.iterdir()
      if not path.name.startswith("__pycache__")
  }
  assert len(names) <= 13, sorted(names)


def test_the_product_imports_no_study():
  studies = {path.stem for path in STUDIES.rglob("*.py")}
  for name, path in modules():
    found = set(imported(path.read_text(encoding="utf-8")))
    tops = {x.partition(".")[0] for x in found}
    assert not tops & (studies | {"experiments"}), name


def test_a_study_is_outside_the_wheel():
  assert not any((path / "__init__.py").exists() for path in STUDIES.iterdir())

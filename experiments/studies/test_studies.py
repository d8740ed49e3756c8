"""Every study runs alone: it imports its own folder and the package only."""

import ast
import pathlib
import sys

import pytest

STUDIES = pathlib.Path(__file__).parent
ROOT = STUDIES.parents[1]
MODULES = {
    path.stem: path
    for path in STUDIES.glob("*/*.py")
    if path.stem != "conftest" and not path.stem.startswith("test_")
}


def imported(path):
  """The first names of all modules that a file imports."""
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      yield from (alias.name.partition(".")[0] for alias in node.names)
    if isinstance(node, ast.ImportFrom) and not node.level:
      yield node.module.partition(".")[0]


@pytest.mark.parametrize("name", MODULES)
def test_a_study_imports_no_other_one(name):
  for other in set(imported(MODULES[name])) & MODULES.keys():
    assert MODULES[other].parent == MODULES[name].parent, other


def test_the_package_imports_no_study():
  for path in (ROOT / "iapo_jax").rglob("*.py"):
    assert not set(imported(path)) & MODULES.keys(), path


def test_names_are_of_one_module_each():
  assert {"compare", "oracle", "theorem"} <= MODULES.keys()
  others = [
      path.stem
      for folder in (STUDIES, ROOT / "tests")
      for path in folder.rglob("*.py")
      if path.stem != "conftest"
  ]
  assert len(others) == len(set(others))
  assert not set(others) & sys.stdlib_module_names

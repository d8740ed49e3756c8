"""The suite's devices and order, as in tests/; studies are full tests."""

import pathlib

import pytest
import suite
from suite import (  # noqa: F401
  programs_of_other_files_are_gone,
  pytest_runtest_setup,
)

HERE = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items):
  suite.pytest_collection_modifyitems(items)
  for item in items:
    if HERE in item.path.parents:
      item.add_marker(pytest.mark.full)

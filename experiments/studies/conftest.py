"""The suite's devices and order; see `suite` in tests/."""

from suite import (  # noqa: F401
  programs_of_other_files_are_gone,
  pytest_collection_modifyitems,
  pytest_runtest_setup,
)

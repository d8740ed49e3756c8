"""Tests of exact expectations compute in float64."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
  """Lets JAX compute in float64 during a test."""
  with jax.enable_x64(True):
    yield

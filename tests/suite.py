"""Eight CPU devices, of which a test has one; set before JAX is imported.

A test that means a mesh is marked `mesh`: then runs that leave the mesh to the
devices there are take all eight. Others name theirs by `jax.local_devices()`.

The suite compiles some fifty programs and runs each for milliseconds: LLVM's
optimisation is left out, loops are generated in the way that compiles fastest
and by one thread, since every core has a worker, and what one test compiled the
next ones read, in every worker. The programs themselves are those of a user.
"""

import atexit
import gc
import importlib.metadata
import os
import pathlib
import shutil
import tempfile

import pytest

_FLAGS = (
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
)
# XLA ends the process for a flag that it does not know.
_RELEASE = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
if _RELEASE <= (0, 10):
  _FLAGS += ("--xla_cpu_use_fusion_emitters=false",)
os.environ["XLA_FLAGS"] = " ".join(_FLAGS)
os.environ["JAX_PLATFORMS"] = "cpu"
# A device that waits for the others in a collective takes a thread, and XLA
# starts collectives that do not depend on each other in any order: with as many
# threads as devices all of them can come to wait.
os.environ["PJRT_NPROC"] = "32"
# Tracing makes objects by the million, few of them in cycles.
gc.set_threshold(100_000, 50, 100)
# Made by the first process; its workers, and programs that tests start, inherit
# it. Nothing locks it: JAX compiles anew what another process has half written.
if "PYTEST_XDIST_WORKER" not in os.environ:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  atexit.register(
      shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
  )


def pytest_addoption(parser):
  """How far the tests go that docs/reliability.md has at full length."""
  options = {
      "--kills": (1, "moments at which a run is killed"),
      "--completions": (1500, "hostile completions that are graded and shown"),
      "--soak": (0, "steps of a long run that is watched"),
      "--precision": (0, "steps in bfloat16 that are compared with float32"),
  }
  for name, (number, text) in options.items():
    parser.addoption(name, type=int, default=number, help=text)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
  """Before fixtures: whether runs see one device or all."""
  import jax  # not before the environment above is set

  everything = jax.local_devices()
  chosen = everything if item.get_closest_marker("mesh") else everything[:1]
  jax.devices = lambda *_: list(chosen)
  jax.device_count = lambda *_: len(chosen)


@pytest.fixture(autouse=True, scope="module")
def programs_of_other_files_are_gone():
  """A process has 65,530 mappings of memory on Linux; programs need many."""
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
    import jax

    jax.clear_caches()
    gc.collect()


def pytest_collection_modifyitems(items):
  """Files that take minutes come first, so that no worker ends long before."""
  longest = (
      "test_benchmarks", "test_processes", "test_resume", "test_recipes",
      "test_report", "test_trainer", "test_checkpoint", "test_export",
  )  # fmt: skip
  items.sort(key=lambda item: item.path.stem not in longest)

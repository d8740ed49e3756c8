import multiprocessing

import pytest

from iapo_jax.core.errors import ConfigError
from iapo_jax.run import workdir


def hold(folder, ready, leave):
  with workdir.locked(folder):
    ready.set()
    leave.wait(60)


def test_two_processes_cannot_write_one_workdir(tmp_path):
  context = multiprocessing.get_context("spawn")
  ready, leave = context.Event(), context.Event()
  process = context.Process(target=hold, args=(tmp_path, ready, leave))
  process.start()
  assert ready.wait(60)
  with pytest.raises(ConfigError) as error, workdir.locked(tmp_path):
    pass
  assert str(error.value) == (
      f"workdir {str(tmp_path)!r}: process {process.pid} writes to it; wait"
      " for it, or use another --workdir"
  )
  # A killed process holds nothing.
  process.kill()
  process.join()
  with workdir.locked(tmp_path):
    pass


def test_a_folder_that_other_processes_do_not_see(tmp_path):
  """What the first process has claimed is not on this one's disk."""
  rule = "that all processes share; the first one's config.json is not in it"
  with pytest.raises(ConfigError, match=rule):
    workdir.check_shared(tmp_path)


def test_a_folder_without_a_run(tmp_path):
  with pytest.raises(ConfigError, match="holds no run; it is an empty folder"):
    workdir.load_config(tmp_path)

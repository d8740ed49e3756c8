import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import runs

from iapo_jax.core.errors import ConfigError
from iapo_jax.run import logs
from iapo_jax.run.logs import RunLog


def test_lines_come_back(tmp_path):
  with RunLog(tmp_path) as log:
    log.write("rl", 1, {"reward/total": 0.5})
    log.write_samples([{"tokens": ["a\n", "</script>"]}, {"tokens": []}])
    log.write_evaluation({"step": 0})
    log.warn("rl", 1, "careful")
  (line,) = logs.read(tmp_path, logs.METRICS)
  assert abs(line.pop("time/written") - time.time()) < 60
  assert line == {"stage": "rl", "step": 1, "reward/total": 0.5}
  first, _ = logs.read(tmp_path, logs.SAMPLES)
  assert first == {"tokens": ["a\n", "</script>"]}
  assert logs.read(tmp_path, logs.EVALUATIONS) == [{"step": 0}]
  assert logs.read(tmp_path, logs.WARNINGS) == [
      {"stage": "rl", "step": 1, "warning": "careful"}
  ]
  assert logs.read(tmp_path / "none", logs.METRICS) == []


def test_a_warning_is_shown_too(tmp_path, capsys):
  with RunLog(tmp_path) as log:
    log.warn("rl", 7, "careful")
  assert capsys.readouterr().out == "warning: rl step 7: careful\n"


def test_without_a_workdir_nothing_is_written(tmp_path, monkeypatch, capsys):
  """The log of every process but the first."""
  monkeypatch.chdir(tmp_path)
  with RunLog(None, {logs.METRICS: 7}, wandb="offline") as log:
    log.write("rl", 1, {"a": 1.0})
    log.write_samples([{"tokens": []}])
    log.write_evaluation({"step": 0})
    log.warn("rl", 1, "careful")
    assert log.position() == {}
  assert capsys.readouterr().out == ""
  assert list(tmp_path.iterdir()) == []


def test_every_line_can_be_read_at_once(tmp_path):
  with RunLog(tmp_path) as log:
    log.write("rl", 1, {"a": 1.0})
    assert len(logs.read(tmp_path, logs.METRICS)) == 1


def test_a_restart_cuts_back_to_the_checkpoint(tmp_path):
  with RunLog(tmp_path) as log:
    log.write("rl", 1, {"a": 1.0})
    position = log.position()
    log.write("rl", 2, {"a": 2.0})
    log.warn("rl", 2, "soon repeated")
  # Killed in the middle of a line.
  with (tmp_path / logs.METRICS).open("a") as file:
    file.write('{"stage": "rl", "st')
  assert len(logs.read(tmp_path, logs.METRICS)) == 2
  with RunLog(tmp_path, position) as log:
    log.write("rl", 2, {"a": 2.5})
  assert [x["a"] for x in logs.read(tmp_path, logs.METRICS)] == [1.0, 2.5]
  assert logs.read(tmp_path, logs.WARNINGS) == []


def test_without_a_checkpoint_a_run_starts_over_and_loses_nothing(tmp_path):
  for value in (1.0, 2.0, 3.0):
    with RunLog(tmp_path) as log:
      log.write("rl", 1, {"a": value})
  for name, value in (("", 3.0), (".1", 1.0), (".2", 2.0)):
    lines = logs.read(tmp_path, logs.METRICS + name)
    assert [x["a"] for x in lines] == [value]


def test_a_log_that_lost_lines_is_refused(tmp_path):
  with RunLog(tmp_path) as log:
    log.write("rl", 1, {"a": 1.0})
    position = log.position()
  (tmp_path / logs.METRICS).unlink()
  with pytest.raises(ConfigError, match=r"metrics.jsonl': has 0 bytes, but"):
    RunLog(tmp_path, position)


@pytest.mark.parametrize("line", ["{", "[1]", "7"])
def test_a_line_that_is_no_record(tmp_path, line):
  (tmp_path / logs.METRICS).write_text('{"a": 1}\n' + line + "\n")
  rule = r"metrics.jsonl': line 2 is not a JSON object"
  with pytest.raises(ConfigError, match=rule):
    logs.read(tmp_path, logs.METRICS)


def test_what_is_not_finite_is_null_and_comes_back_as_nan(tmp_path):
  with RunLog(tmp_path) as log:
    log.write("rl", 1, {"a": math.nan, "b": -math.inf, "c": 1.0})
    log.write_samples([{"information": [0.5, math.nan]}])
  (line,) = (tmp_path / logs.METRICS).read_text().splitlines()
  line = json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON
  assert (line["a"], line["b"], line["c"]) == (None, None, 1)
  (read,) = logs.read(tmp_path, logs.METRICS)
  assert math.isnan(read["a"])
  assert math.isnan(read["b"])
  (sample,) = logs.read(tmp_path, logs.SAMPLES)
  assert sample["information"] == [0.5, pytest.approx(math.nan, nan_ok=True)]
  found, _ = runs.events(tmp_path / "tensorboard" / "rl")
  assert math.isnan(found[0][2])
  assert found[1:] == [(1, "b", -math.inf), (1, "c", 1.0)]


def assert_boards_are_the_lines(folder):
  """TensorBoard says what metrics.jsonl says, once, and of the same time."""
  lines = logs.read(folder, logs.METRICS)
  for stage in {line["stage"] for line in lines}:
    found, times = runs.events(folder / "tensorboard" / stage)
    expected = [
        (line["step"], name, np.float32(value), line["time/written"])
        for line in lines
        if line["stage"] == stage
        for name, value in line.items()
        if name not in ("stage", "step", "time/written")
    ]
    assert found == [entry[:3] for entry in expected]
    assert times == [entry[3] for entry in expected]


def test_tensorboard_has_the_same_names_and_numbers(tmp_path):
  with RunLog(tmp_path) as log:
    log.write("validation", 0, {"accuracy": 0.25, "pass@1": 0.3})
    log.write("rl", 1, {"reward/total": 0.5, "length/reasoning": 7.0})
  found, _ = runs.events(tmp_path / "tensorboard" / "rl")
  assert found == [(1, "reward/total", 0.5), (1, "length/reasoning", 7.0)]
  assert_boards_are_the_lines(tmp_path)


def test_tensorboard_is_cut_back_too(tmp_path):
  with RunLog(tmp_path) as log:
    for step in (1, 2):
      log.write("rl", step, {"a": float(step)})
    position = log.position()
    log.write("rl", 3, {"a": 3.0})
    log.write("validation", 3, {"b": 3.0})
  with RunLog(tmp_path, position) as log:
    log.write("rl", 3, {"a": 3.5})
  found, _ = runs.events(tmp_path / "tensorboard" / "rl")
  assert found == [(1, "a", 1.0), (2, "a", 2.0), (3, "a", 3.5)]
  assert_boards_are_the_lines(tmp_path)
  assert not (tmp_path / "tensorboard" / "validation").exists()


KILLED = """
import os, pathlib, signal, sys
from iapo_jax.run.logs import RunLog
log = RunLog(pathlib.Path(sys.argv[1]))
for step in range(50):
  log.write("rl", step, {"a": step / 3, "b": 1.0})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_has_written_everything(tmp_path):
  command = [sys.executable, "-c", KILLED, str(tmp_path)]
  killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": os.getcwd()})
  assert killed.returncode == -signal.SIGKILL
  assert len(logs.read(tmp_path, logs.METRICS)) == 50
  assert_boards_are_the_lines(tmp_path)


def test_lines_of_a_stage(tmp_path):
  with RunLog(tmp_path) as log:
    for step in (1, 2):
      log.write("rl", step, {"a": 1.0})
      log.write("validation", step, {"b": 2.0})
  assert [x["b"] for x in logs.stage_metrics(tmp_path, "validation")] == [2, 2]
  assert logs.stage_metrics(tmp_path / "none", "rl") == []


def test_a_last_line_without_its_end_is_not_counted(tmp_path):
  whole = json.dumps({"a": 1}) + "\n"
  (tmp_path / logs.METRICS).write_text(whole + '{"a":')
  assert logs.read(tmp_path, logs.METRICS) == [{"a": 1}]

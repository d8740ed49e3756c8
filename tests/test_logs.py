import json
import struct

import pytest
from tensorboardX.proto import event_pb2

from iapo_jax import logs
from iapo_jax.errors import ConfigError
from iapo_jax.logs import RunLog


def test_lines_come_back(tmp_path):
  with RunLog(tmp_path) as log:
    log.write("rl", 1, {"reward/total": 0.5})
    log.write_samples([{"tokens": ["a\n", "</script>"]}, {"tokens": []}])
    log.write_evaluation({"step": 0})
    log.warn("rl", 1, "careful")
  assert logs.read(tmp_path, logs.METRICS) == [
      {"stage": "rl", "step": 1, "reward/total": 0.5}
  ]
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
  with pytest.raises(ConfigError, match=r"metrics.jsonl': line 2 is no JSON"):
    logs.read(tmp_path, logs.METRICS)


def test_what_is_not_finite_is_no_json(tmp_path):
  with RunLog(tmp_path) as log, pytest.raises(ValueError, match="JSON"):
    log.write("rl", 1, {"a": float("nan")})


def events(folder):
  """(step, tag, value) of TensorBoard's files, in the order written."""
  found, purged = [], []
  for path in sorted(folder.glob("events*")):
    content = path.read_bytes()
    while content:
      (size,) = struct.unpack("<Q", content[:8])
      event = event_pb2.Event.FromString(content[12 : 12 + size])
      content = content[16 + size :]
      if event.HasField("session_log"):
        purged.append(event.step)
      for value in event.summary.value:
        found.append((event.step, value.tag, value.simple_value))
  return found, purged


def test_tensorboard_has_the_same_names_and_numbers(tmp_path):
  with RunLog(tmp_path) as log:
    log.write("validation", 0, {"accuracy": 0.25})
    log.write("rl", 1, {"reward/total": 0.5, "length/reasoning": 7.0})
  found, _ = events(tmp_path / "tensorboard" / "rl")
  assert found == [(1, "reward/total", 0.5), (1, "length/reasoning", 7.0)]
  found, _ = events(tmp_path / "tensorboard" / "validation")
  assert found == [(0, "accuracy", 0.25)]


def test_tensorboard_forgets_what_a_restart_repeats(tmp_path):
  for first in (1, 3):
    with RunLog(tmp_path) as log:
      for step in range(first, 5):
        log.write("rl", step, {"a": float(step)})
  _, purged = events(tmp_path / "tensorboard" / "rl")
  assert purged[-1] == 3  # what the first process wrote from step 3 on


def test_a_last_line_without_its_end_is_not_counted(tmp_path):
  whole = json.dumps({"a": 1}) + "\n"
  (tmp_path / logs.METRICS).write_text(whole + '{"a":')
  assert logs.read(tmp_path, logs.METRICS) == [{"a": 1}]

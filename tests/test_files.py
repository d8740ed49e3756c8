import threading

import pytest

from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / "summary.json"
  files.write_json(path, {"a": 1})
  with pytest.raises(TypeError):
    files.write_json(path, {"a": object()})
  assert path.read_text() == '{\n  "a": 1\n}\n'
  assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
  assert files.read_json(path) == {"a": 1}


def test_fields_have_a_line_each(tmp_path):
  path = tmp_path / "config.json"
  fields = {"a.b": [1.5, 2.0], "c": None, "d": "x"}
  files.write_fields(path, fields)
  assert path.read_text() == (
      '{\n  "a.b": [1.5, 2.0],\n  "c": null,\n  "d": "x"\n}\n'
  )
  assert files.read_json(path) == fields


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"a\.json': is not JSON"),
        ("[]", r"a\.json': is not a JSON object"),
        (None, r"a\.json': No such file"),
    ],
)
def test_what_is_no_object(tmp_path, content, message):
  path = tmp_path / "a.json"
  if content is not None:
    path.write_text(content)
  with pytest.raises(ConfigError, match=message):
    files.read_json(path)


def test_ends_of_lines_and_what_has_no_utf8(tmp_path):
  path = tmp_path / "a.csv"
  files.write_text(path, "a\r\n\ud800\n", errors="backslashreplace")
  assert path.read_bytes() == b"a\r\n\\ud800\n"
  with pytest.raises(UnicodeEncodeError):
    files.write_text(path, "\ud800")
  assert path.read_bytes() == b"a\r\n\\ud800\n"


def test_others_wait(tmp_path):
  """For the folder, until it is free; what was made in it can be synced."""
  order = []

  def other():
    with files.alone(tmp_path):
      order.append("other")

  with files.alone(tmp_path):
    thread = threading.Thread(target=other)
    thread.start()
    (tmp_path / "a").write_text("a")
    files.sync(tmp_path)
    thread.join(0.2)
    order.append("first")
  thread.join(10)
  assert order == ["first", "other"]


def test_free_names(tmp_path):
  path = tmp_path / "a.b"
  assert files.numbered(path, ".").name == "a.b.1"
  (tmp_path / "a.b.1").touch()
  (tmp_path / "a.b.2").mkdir()
  assert files.numbered(path, ".").name == "a.b.3"
  assert files.numbered(path, "-").name == "a.b-1"

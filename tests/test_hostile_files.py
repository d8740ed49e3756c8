"""Files of strangers: nothing is run, and no memory is taken for claims."""

import json
import os
import pathlib
import pickle
import resource
import shutil
import struct

import numpy as np
import pytest
from test_tokenizer import words

from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError
from iapo_jax.data import builders
from iapo_jax.hf import folder, tokenizer, weights
from iapo_jax.run import logs

GOLDEN = pathlib.Path(__file__).parent / "golden"


class Trap:
  """Whoever unpickles it makes a file."""

  def __reduce__(self):
    return os.mkdir, ("trapped",)


@pytest.fixture(autouse=True)
def nothing_is_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  yield
  assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.__init__.__globals__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.mkdir('trapped') }}", "unsafe"),
        ("{% set _ = messages.append(messages) %}", "unsafe"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "[Rr]ange too big"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ messages", "unexpected|end of template"),
    ],
)
def test_chat_templates_are_in_a_sandbox(template, message):
  tok = words(template)
  with pytest.raises(ConfigError, match=f"chat template of '.*({message})"):
    tokenizer.render_chat(
        tok, [{"role": "user", "content": "1"}], date="2026-01-01"
    )


def test_content_is_no_template():
  tok = words("{% for m in messages %}{{ m.content }}{% endfor %}")
  told = [{"role": "user", "content": "{{ 7 * 7 }}"}]
  shown = tokenizer.render_chat(tok, told, date="2026-01-01")
  assert shown == "{{ 7 * 7 }}"


def model(place, **changes):
  shutil.copytree(GOLDEN / "qwen2", place)
  path = place / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  return place


def refusal(place):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(ConfigError) as error:
    weights.load(place, folder.read_model(place))
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert after - before < 2**18, "MiB for what is not there"
  return str(error.value)


@pytest.mark.parametrize(
    "claim",
    [
        {"vocab_size": 10**9},
        {"hidden_size": 2**20},
        {"intermediate_size": 10**9},
        {"num_hidden_layers": 10**5, "layer_types": None},
    ],
)
def test_a_config_that_claims_more_than_there_is(tmp_path, claim):
  """A terabyte, say: sizes are compared before anything is made for them."""
  said = refusal(model(tmp_path / "m", **claim))
  assert "lacks" in said or "must" in said or "has shape" in said


def header(tensors, size=None):
  """A safetensors file with these claims and 64 bytes of numbers."""
  text = json.dumps(tensors).encode()
  size = len(text) if size is None else size
  return struct.pack("<Q", size) + text + bytes(64)


@pytest.mark.parametrize(
    "content",
    [
        header({}, 2**62),
        header({"x": {"dtype": "F32", "shape": [2**40],
                      "data_offsets": [0, 2**42]}}),
        header({"x": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}}),
        header({"x": {"dtype": "F32", "shape": [4], "data_offsets": [60, 76]}}),
        header({"x": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}}),
        pickle.dumps(Trap()),
    ],
)  # fmt: skip
def test_weights_that_claim_what_is_not_there(tmp_path, content):
  place = model(tmp_path / "m")
  (place / "model.safetensors").write_bytes(content)
  assert "model.safetensors': cannot be read" in refusal(place)


def test_links_and_names_out_of_a_folder(tmp_path):
  place = model(tmp_path / "m")
  (place / "model.safetensors").rename(tmp_path / "outside.safetensors")
  for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"),
               "..", "", "a\x00b"):  # fmt: skip
    index = {"weight_map": {"model.norm.weight": name}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "is not a file name" in refusal(place)


def test_a_batch_of_pickles_is_no_batch(tmp_path):
  trap = np.array([Trap()], dtype=object)
  np.savez(tmp_path / "batch.npz", trap)
  with pytest.raises(ValueError, match="allow_pickle=False"):
    np.load(tmp_path / "batch.npz", allow_pickle=False)["arr_0"]


@pytest.mark.parametrize("depth", [10, 10**5])
def test_rows_that_are_nested_deep(tmp_path, depth):
  """Python's parser ends with an error of its own, which becomes ours."""
  place = tmp_path / "gsm8k"
  place.mkdir()
  row = "[" * depth + "]" * depth
  for split in ("train", "test"):
    (place / f"{split}.jsonl").write_text(f'{{"question": {row}}}\n')
  prepared = str(tmp_path / "prepared")
  with pytest.raises(ConfigError, match=r"train.jsonl"):
    builders.load("gsm8k", source_dir=str(tmp_path), prepared_dir=prepared)
  (tmp_path / "config.json").write_text(row)
  with pytest.raises(ConfigError, match="is not"):
    files.read_json(tmp_path / "config.json")
  (tmp_path / logs.METRICS).write_text(row + "\n")
  with pytest.raises(ConfigError, match="line 1 is not a JSON object"):
    logs.read(tmp_path, logs.METRICS)

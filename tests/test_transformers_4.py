"""Exports in transformers 4.57 and 5: the same logits and the same tokens.

Version 4.57 is installed beside the environment, into pytest's cache, so that a
checkout needs it once; it shares torch and all else with the environment.
"""

import dataclasses
import json
import os
import pathlib
import platform
import subprocess
import sys

import checkpoints
import numpy as np
import pytest
import texts
import tiny
from tokenizers import processors

pytest.importorskip("torch", reason="torch is installed in CI only")

import loads
import transformers

from iapo_jax.config.schema import Config
from iapo_jax.core import files
from iapo_jax.hf import families, folder, spellings, weights
from iapo_jax.tools import export

pytestmark = pytest.mark.full

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE / "golden"
OLD = (
    "transformers==4.57.*", "tokenizers>=0.22,<=0.23.0", "huggingface_hub<1",
)  # fmt: skip
# transformers 5 builds a tokenizer for these from parts of tokenizer.json.
REBUILT = ("qwen2", "qwen2_window")
# Every kind of rotary embedding once.
COPIED = (
    "qwen2", "qwen3_yarn", "llama", "gemma3", "phi3", "olmo3", "phi3_longrope",
)  # fmt: skip
EXPORTS = [
    *(f"new {name}" for name in checkpoints.CONFIGS),
    *(f"copied {name}" for name in COPIED),
]


@pytest.fixture(scope="module")
def old(request):
  """A folder of packages to put before those of the environment."""
  name = f"transformers-4.57-python{platform.python_version()}"
  place = request.config.cache.mkdir("packages") / name
  if not place.exists():
    draft = files.draft_of(place)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
         "--no-compile", "--disable-pip-version-check", "--retries=1",
         f"--target={draft}", *OLD],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode:
      reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
      pytest.skip(f"pip cannot install transformers 4.57 here: {reason}")
    draft.rename(place)
  return place


def decoder(name):
  """A golden decoder with another base of its rotary embedding.

  Most of them have 10,000, which 4.57 takes where it finds nothing.
  """
  cfg = checkpoints.rebased(folder.read_model(GOLDEN / name))
  return dataclasses.replace(cfg, max_positions=128)


def new(name, place):
  """The export of a run that began from random weights."""
  tok = tiny.words()
  tok.save_pretrained(place / "run" / folder.TOKENIZER)
  (place / "out").mkdir()
  cfg = dataclasses.replace(Config(), model=decoder(name))
  export.write_configs(place / "run", place / "out", cfg, "float32")
  spellings.mend_tokenizer(place / "out")
  params = weights.load(GOLDEN / name, cfg.model)
  weights.save(place / "out", params, cfg.model, dtype="float32")
  return place / "out"


def copied(name, place, dtype="float32"):
  """The export of a model that transformers 5 saved, with a chat template.

  Its tokenizer has a BOS and tokens of its own.
  """
  source, cfg = place / "model", decoder(name)
  texts.write_tokenizer(source)
  tok = transformers.PreTrainedTokenizerFast.from_pretrained(source)
  tok.add_special_tokens({"extra_special_tokens": ["<|im_start|>"]})
  tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
      single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
  )
  tok.save_pretrained(source)
  raw = files.read_json(GOLDEN / name / folder.CONFIG)
  raw["rope_parameters"] = families.config_of(cfg).rope_parameters
  files.write_json(source / folder.CONFIG, raw)
  params = weights.load(GOLDEN / name, cfg)
  export.convert(source, place / "out", params, cfg, dtype)
  return place / "out"


@pytest.fixture(scope="module")
def found(old, tmp_path_factory):
  """By export: its folder, what 4.57 makes of it, and what 5 does."""

  def made(make, name, *more):
    place = tmp_path_factory.mktemp(f"{make.__name__}-{name}")
    return make(name, place, *more)

  places = {f"new {name}": made(new, name) for name in checkpoints.CONFIGS}
  places |= {f"copied {name}": made(copied, name) for name in COPIED}
  places["bfloat16"] = made(copied, "llama", "bfloat16")
  output = tmp_path_factory.mktemp("found") / "old.json"
  path = os.pathsep.join(map(str, (old, HERE.parent)))
  subprocess.run(
      [sys.executable, HERE / "loads.py", output, *places.values()],
      env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
      capture_output=True, timeout=300, check=True,
  )  # fmt: skip
  theirs = json.loads(output.read_text())
  assert theirs["version"].startswith("4.57.")
  assert transformers.__version__.startswith("5.")
  return {
      name: (place, theirs[str(place)], loads.described(place))
      for name, place in places.items()
  }


@pytest.mark.parametrize("name", [*EXPORTS, "bfloat16"])
def test_both_versions_load_the_same_model(found, name):
  _, old, new = found[name]
  np.testing.assert_allclose(old["logits"], new["logits"], atol=1e-5, rtol=0)
  for field in ("greedy", "dtype", "ends"):
    assert old[field] == new[field], field
  assert old["dtype"] == f"torch.{'bfloat16' if ' ' not in name else 'float32'}"


@pytest.mark.parametrize("name", EXPORTS)
def test_both_versions_load_the_same_tokenizer(found, name):
  place, old, new = found[name]
  for field in ("ids", "text", "special", "chat"):
    assert old[field] == new[field], field
  assert old["auto"] == old["ids"]
  # Where `AutoTokenizer` of transformers 5 does not give it, an export says so.
  rebuilt = name.split()[1] in REBUILT
  assert (new["auto"] != new["ids"]) == rebuilt
  fault = spellings.auto_fault(place)
  assert ("makes a Qwen2Tokenizer" in fault) if rebuilt else (fault is None)
  if name.startswith("copied"):
    assert old["ids"][0] == 0
    assert old["chat"].endswith("assistant\n")

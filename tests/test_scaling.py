"""The table of compiled cells."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest
import runs

from iapo_jax.config import parsing as config_lib
from iapo_jax.config import rules as config_rules
from iapo_jax.hf import folder, tokenizer

pytestmark = pytest.mark.full

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(name="scaling", scope="module")
def load():
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / "benchmarks")
    import cases
    import scaling

    yield scaling, cases


def test_every_cell_is_a_mesh_that_its_model_allows(scaling):
  scaling, cases = scaling
  found = scaling.cells()
  assert len({cell.name for cell in found}) == len(found)
  for cell in found:
    base = config_lib.default()
    base.prompts_per_step, base.group_size = cell.prompts, 8
    base.loss.micro_batches = cell.micro_batches
    base.evaluation.update({
        "samples": 32, "batch_size": 32 * cell.data * cell.fsdp,
    })  # fmt: skip
    base.mesh.update(
        {"data": cell.data, "fsdp": cell.fsdp, "tensor": cell.tensor}
    )
    cfg = dataclasses.replace(
        config_lib.parse(base), model=cases.published()[cell.model]
    )
    chips = cell.slices
    for side in cell.topology.partition(":")[2].split("x"):
      chips *= int(side)
    assert config_rules.mesh_shape(cfg, chips), cell.name


def test_a_shape_is_read_like_a_pretrained_model(scaling, tmp_path):
  _, cases = scaling
  for name, model in cases.published().items():
    place = tmp_path / name
    place.mkdir()
    cases.write_shape(model, place)
    found = folder.read_model(place)
    # Of positions the folder names more than the bare shape.
    assert dataclasses.replace(found, max_positions=0) == model, name
  words = tokenizer.load(place)
  text = "</think>\n<answer>"
  ids = tokenizer.encode(words, text)
  assert len(ids) == 6 and tokenizer.decode(words, ids) == text
  chat = tokenizer.render_chat(
      words, [{"role": "user", "content": "one"}], date="2026-01-01"
  )
  assert chat == "user\none<|im_end|>\nassistant\n"


def entry(scaling, name, **more):
  cell = next(cell for cell in scaling.cells() if cell.name == name)
  return {name: {"cell": dataclasses.asdict(cell)} | more}


def test_tables_are_of_what_the_file_has(scaling, tmp_path):
  scaling, _ = scaling
  phases = ("rollout", "probes", "reference", "update")
  bounds = {"compute": 2.0, "memory": 1.0, "links": 0.5, "network": 3.0}
  known = entry(
      scaling,
      "7b@2*v5e:16x16",
      compile_seconds=80.4,
      memory={
          "argument_bytes": 4e9, "peak_bytes": 12.34e9, "device_bytes": 16e9,
      },
      flops=dict.fromkeys(phases, 5e12),
      read_bytes=dict.fromkeys(phases, 6e9),
      collective_bytes=dict.fromkeys(phases, 7e9),
      network_bytes=dict.fromkeys(phases, 8e9),
      roofline_seconds=dict.fromkeys(phases, bounds),
  )  # fmt: skip
  known |= entry(scaling, "32b@v6e:8x8", error="the step needs 40G of 31G")
  path = tmp_path / "scaling.json"
  path.write_text(json.dumps(known))
  done = subprocess.run(
      [sys.executable, "benchmarks/scaling.py", f"--json={path}", "--tables"],
      cwd=ROOT, env=runs.environment(), capture_output=True, text=True,
      timeout=120, check=True,
  )  # fmt: skip
  assert (
      "| 7b@2*v5e:16x16 | 8 × 16 × 4 | 512 / 16 | 80 | 4.0 | 12.3 | 16 |"
      " 3 network | 3 network |" in done.stdout
  )
  assert "| 5 / 6 / 7 / 8 |" in done.stdout
  assert "the step needs 40G of 31G |" in done.stdout
  assert json.loads(path.read_text()) == known


def test_a_cell_becomes_the_command_for_it(scaling):
  scaling, _ = scaling
  cell = scaling.Cell("32b", "v5p:4x4x4", 2, 4, 8, 64, 16, slices=2)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(scaling, "_LEVEL", type("Flag", (), {"value": "O0"}))
    found = scaling.arguments_of(cell, pathlib.Path("shape"), pathlib.Path("a"))
  assert found[1] == "experiments/compile.py"
  assert {
      "--config=configs/qwen_math.py:7b-gsm8k-to_go",
      "--topology=v5p:4x4x4", "--slices=2", "--json=a", "--level=O0",
      "--config.model.pretrained=shape", "--config.model.attention=fused",
      "--config.mesh.data=2",
      "--config.mesh.fsdp=4", "--config.mesh.tensor=8",
      "--config.prompts_per_step=64", "--config.loss.micro_batches=16",
      "--config.evaluation.batch_size=256",
  } == set(found[2:])  # fmt: skip

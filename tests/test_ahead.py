"""The step of a real shape, compiled for TPUs that are not there."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import programs
import pytest
import runs
from recorded import make_config, make_setup

from iapo_jax.core.errors import ConfigError
from iapo_jax.run import assembly
from iapo_jax.tools import ahead

pytestmark = pytest.mark.full

ROOT = pathlib.Path(__file__).parent.parent
PHASES = {"rollout", "probes", "reference", "update"}
TOKENS, CHUNK = 192, 64
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiles for TPUs: needs libtpu",
)


@pytest.fixture(name="shape", scope="module")
def write_shape(tmp_path_factory):
  """A folder like Qwen2.5-0.5B's, without weights."""
  folder = tmp_path_factory.mktemp("shape")
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / "benchmarks")
    import cases

    cases.write_shape(cases.published()["0.5b"], folder)
  return folder


def run(shape, *arguments):
  """The command, for 4 chips and completions that are short."""
  return subprocess.run(
      [
          sys.executable, "experiments/compile.py",
          "--config=configs/qwen_math.py:0.5b-gsm8k-to_go",
          "--topology=v5e:2x2", f"--config.model.pretrained={shape}",
          "--config.mesh.data=1", "--config.mesh.fsdp=2",
          "--config.mesh.tensor=2", "--config.prompts_per_step=8",
          "--config.loss.micro_batches=2", "--level=O0",
          f"--config.rollout.max_tokens={TOKENS}", *arguments,
      ],
      cwd=ROOT,
      env=runs.environment(),
      capture_output=True,
      text=True,
      timeout=600,
      check=False,
  )  # fmt: skip


@pytest.fixture(name="compiled", scope="module")
def compile_once(shape, tmp_path_factory):
  """(what is printed, the JSON, the program)."""
  folder = tmp_path_factory.mktemp("compiled")
  done = run(
      shape, f"--json={folder / 'a.json'}", f"--program={folder / 'a.txt'}"
  )
  assert done.returncode == 0, done.stderr
  found = json.loads((folder / "a.json").read_text())
  return done.stdout, found, (folder / "a.txt").read_text()


@needs_libtpu
def test_a_step_that_fits_is_told_of(compiled):
  printed, found, _ = compiled
  assert found["topology"] == "v5e:2x2"
  assert found["mesh"] == {"data": 1, "fsdp": 2, "tensor": 2}
  assert found["compile_seconds"] > 0
  held = found["memory"]
  # 494,032,768 weights: fp32 with two moments, and the reference in bfloat16.
  state = 494_032_768 * 14 / 4
  assert state < held["argument_bytes"] < 1.02 * state
  assert held["argument_bytes"] < held["peak_bytes"] < held["device_bytes"]
  assert held["device_bytes"] == 16e9
  by_phase = (
      "flops", "read_bytes", "collective_bytes", "network_bytes",
      "roofline_seconds",
  )  # fmt: skip
  for name in by_phase:
    assert set(found[name]) - {"rest"} == PHASES, name
  for phase in PHASES:
    assert found["flops"][phase] > 0
    bounds = found["roofline_seconds"][phase]
    assert set(bounds) == {"compute", "memory", "links", "network"}
    assert f"{max(bounds.values()):.3g}" in printed


@needs_libtpu
def test_what_a_tpu_moves_and_holds(compiled):
  _, found, text = compiled
  vocab, width, layers, mlp = 151_936, 896, 24, 4864
  params = {
      "embedding": jax.ShapeDtypeStruct((vocab, width), "float32"),
      "layers": {
          "up": jax.ShapeDtypeStruct((layers, width, mlp), "float32"),
          "q": jax.ShapeDtypeStruct((layers, width, width), "float32"),
          "k": jax.ShapeDtypeStruct((layers, width, 128), "float32"),
      },
  }
  assert not programs.decoding_gathers(text, params, 2)
  assert not programs.of_the_vocabulary(text, vocab, 2, 8 * TOKENS)
  assert programs.of_the_vocabulary(text, vocab, 2, CHUNK)
  # An update gathers its bfloat16 weights of either half at least once.
  assert found["collective_bytes"]["update"] > 494_032_768 / 2


@needs_libtpu
def test_one_that_does_not_fit_ends_in_advice(shape, tmp_path):
  path = tmp_path / "a.json"
  done = run(
      shape, f"--json={path}", "--config.loss.micro_batches=1",
      "--config.prompts_per_step=2048",
  )  # fmt: skip
  assert done.returncode == 2, done.stdout
  assert done.stderr.splitlines()[-1].startswith("error: the step needs ")
  assert "raise loss.micro_batches" in done.stderr
  assert "Traceback" not in done.stderr
  assert not path.exists()


MESSAGES = {
    "Used 20.1G of 15.75G hbm. Exceeded": "20.1GB of 15.75GB",
    "required for HLO temporaries (22.03G) exceeds available HBM (15.75G).":
        "22.03GB of 15.75GB",
    "something new": "more than there is",
}  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES)
def test_what_the_compiler_says_becomes_advice(message, monkeypatch):
  setup = make_setup()

  class Lowered:
    def lower(self, *_):
      return self

    def compile(self):
      raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}")

  monkeypatch.setattr(ahead.assembly, "train_step_of", lambda *_: Lowered())
  with pytest.raises(ConfigError, match=r"device\. Estimated parts: ") as error:
    ahead.train_step(setup.parts, setup.stage)
  assert MESSAGES[message] in str(error.value)


def test_more_than_is_published_is_refused():
  setup = make_setup()
  found = {"memory": {"peak_bytes": 2**30, "device_bytes": 2**30}}
  ahead.check_fits(found, setup.parts, setup.stage)
  found["memory"]["peak_bytes"] += 2**29
  with pytest.raises(ConfigError, match=r"1\.5 GiB of 1\.0 GiB on a device"):
    ahead.check_fits(found, setup.parts, setup.stage)


def test_other_failures_stay_what_they_are(monkeypatch):
  setup = make_setup()

  class Lowered:
    def lower(self, *_):
      return self

    def compile(self):
      raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

  monkeypatch.setattr(ahead.assembly, "train_step_of", lambda *_: Lowered())
  with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
    ahead.train_step(setup.parts, setup.stage)


def test_settings_are_for_the_compiler_only(monkeypatch):
  """No lines of code, the level asked for; and then all is as before."""
  setup = make_setup()
  names = (
      "jax_traceback_in_locations_limit",
      "jax_optimization_level",
  )  # fmt: skip
  seen = []

  def look():
    return tuple(getattr(jax.config, name) for name in names)

  class Lowered:
    def lower(self, *_):
      seen.append(look()[0])
      return self

    def compile(self):
      seen.append(look()[1])
      return "a program"

  before = look()
  monkeypatch.setattr(ahead.assembly, "train_step_of", lambda *_: Lowered())
  assert ahead.train_step(setup.parts, setup.stage, level="O0") == "a program"
  assert seen == [0, "O0"]
  assert look() == before and before[0] > 0 and before[1] == "UNKNOWN"


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "fsdp", "tensor"),
    [("v6e:8x8", 16, 4), ("v6e:8x8", 64, 1), ("v5p:4x4x4", 8, 8)],
)
def test_a_mesh_may_take_parts_of_a_side(topology, fsdp, tensor):
  cfg = make_config(
      mesh__data=1, mesh__fsdp=fsdp, mesh__tensor=tensor,
      model__d_model=64, prompts_per_step=fsdp, num_steps=1,
      evaluation__samples=1, evaluation__batch_size=fsdp,
      warm_start__num_steps=0,
  )  # fmt: skip
  mesh = assembly.make_mesh(cfg, ahead.devices(topology))
  assert dict(mesh.shape) == {"data": 1, "fsdp": fsdp, "tensor": tensor}
  assert len({device.id for device in mesh.devices.flat}) == 64


@pytest.mark.parametrize(
    ("topology", "rule"),
    [
        ("h100:8", r"must begin with one of .*v5e"),
        ("v5e", r"cannot be described \("),
    ],
)
def test_unknown_topologies_are_refused(topology, rule):
  with pytest.raises(ConfigError, match=f"topology = '{topology}': {rule}"):
    ahead.devices(topology)

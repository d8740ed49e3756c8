"""The Python API, and the notebook that shows it."""

import functools
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import runs

import iapo_jax
from iapo_jax.cli import command, score
from iapo_jax.config.schema import ProbeConfig
from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import weights
from iapo_jax.run import assembly, sources, workdir
from iapo_jax.tools import export

ROOT = pathlib.Path(__file__).parent.parent
TEXT = {"prompt": "5 b + 1 c =", "completion": "b 5 + 1 = 6 </think>"}


def config():
  """Asks for the answer in other words than runs do by default."""
  chosen = runs.small_sums()
  chosen.probe.elicitation = "so total"
  return chosen


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("api") / "run"
  return iapo_jax.train(config(), workdir=folder)


def test_a_finished_run_has_its_numbers(run):
  assert run.metrics == json.loads((run.workdir / "summary.json").read_text())
  assert run.config == workdir.load_config(run.workdir)
  steps = [line["step"] for line in run.history()]
  assert steps == list(range(1, run.config.num_steps + 1))
  assert run.history("warm_start")
  page = run.report()
  assert page == run.workdir / "report" / "index.html" and page.exists()


def test_training_again_finds_the_run(run, capsys):
  again = iapo_jax.train(config(), workdir=str(run.workdir))
  assert again == run
  assert "nothing to do" in capsys.readouterr().out


def test_a_loaded_run_has_the_policy_of_its_last_checkpoint(run):
  policy = iapo_jax.load(run.workdir)
  parts = assembly.assemble(run.config, home=run.workdir)
  expected = sources.load(parts, sources.last(run.workdir))
  jax.tree.map(np.testing.assert_array_equal, policy.params, expected)


def test_scores_of_a_run_and_of_its_export_are_the_same(run, tmp_path):
  policy = run.policy()
  policy.export(tmp_path / "exported")
  load = functools.partial(iapo_jax.load, elicitation="so total")
  exported = load(tmp_path / "exported")
  exported.export(tmp_path / "again")
  scores = [
      x.score([TEXT, TEXT | {"id": 7}])
      for x in (policy, exported, load(tmp_path / "again"))
  ]
  assert scores[0] == scores[1] == scores[2]
  first, second = scores[0]
  assert second == first | {"id": 7}
  # b 5 + 1 = 6 are reasoning; D_t = H_(t-1) - H_t telescopes.
  assert first["reasoning_tokens"] == 6
  entropies = first["answer_entropies"][:7]
  np.testing.assert_allclose(
      sum(first["mi"]), entropies[0] - entropies[6], atol=1e-5
  )


def test_the_command_scores_with_the_elicitation_of_the_run(run, tmp_path):
  assert run.config.probe.elicitation != ProbeConfig().elicitation
  (tmp_path / "in.jsonl").write_text(json.dumps(TEXT) + "\n")
  parser = command.Parser()
  score.add_arguments(parser)
  score.run(
      parser.parse_args([
          f"--model={run.workdir}",
          f"--input={tmp_path / 'in.jsonl'}",
          f"--output={tmp_path / 'out.jsonl'}",
      ])
  )
  (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
  assert [json.loads(line)] == run.policy().score([TEXT])


def test_an_export_in_another_dtype(run, tmp_path):
  run.policy().export(tmp_path / "half", dtype="bfloat16")
  reader = weights.Reader(tmp_path / "half")
  assert {dtype for _, dtype in reader.header().values()} == {"BF16"}


def test_what_cannot_be_is_said(run, tmp_path):
  with pytest.raises(ConfigError, match="text 0: has no completion"):
    run.policy().score([{"prompt": "5 b ="}])
  with pytest.raises(ConfigError, match="batch_size = 0: must be at least 1"):
    run.policy().score([TEXT], batch_size=0)
  packed = runs.unfinished_copy(run.workdir, tmp_path / "packed")
  shutil.rmtree(packed / "tokenizer")
  for use in (
      iapo_jax.load,
      lambda folder: export.export(sources.last(folder), tmp_path / "out"),
  ):
    with pytest.raises(ConfigError, match="has neither pretrained/ nor token"):
      use(packed)
  with pytest.raises(ConfigError, match="exists already; name a new folder"):
    run.policy().export(tmp_path)
  with pytest.raises(ConfigError, match="must be a file or one of arithmetic"):
    iapo_jax.train("arithmetics", workdir=tmp_path / "run")
  with pytest.raises(AttributeError, match="no attribute 'lode'"):
    iapo_jax.lode  # noqa: B018


def test_importing_the_package_imports_no_jax():
  program = "import sys, iapo_jax; print('jax' in sys.modules)"
  done = subprocess.run(
      [sys.executable, "-c", program], capture_output=True, text=True
  )
  assert done.stdout == "False\n", done.stderr


@pytest.mark.full
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
  nbclient = pytest.importorskip("nbclient")
  import nbformat

  path = ROOT / "docs" / "quickstart.ipynb"
  text = path.read_text(encoding="utf-8")
  assert text.count("num_steps = 100") == 1
  notebook = nbformat.reads(
      text.replace("num_steps = 100", "num_steps = 5"), as_version=4
  )
  nbformat.validate(notebook)
  nbclient.NotebookClient(
      notebook,
      timeout=600,
      kernel_name="python3",
      resources={"metadata": {"path": str(tmp_path)}},
  ).execute(env=runs.environment())
  assert (tmp_path / "runs" / "quickstart" / "summary.json").exists()

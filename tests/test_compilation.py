"""Programs that are kept between starts, and the account of their cost."""

import collections
import functools
import re
import shutil
import warnings

import jax
import jax.monitoring
import optax
import pytest
import runs
from flax import linen as nn
from jax.experimental.compilation_cache import compilation_cache
from recorded import make_config, setup_on

from iapo_jax.config import parsing as config_lib
from iapo_jax.core import compilation
from iapo_jax.run import checkpoint, logs, plan, trainer

STAGES = ("warm_start", "rl")
# Of the steps and of the evaluation's sampler.
LARGE = ("jit_step-", "jit_run-")


def small(**overrides):
  config = config_lib.default()
  config.num_steps = config.warm_start.num_steps = 2
  config.prompts_per_step, config.group_size = 8, 4
  config.evaluation.update({"every": 1, "problems": 16, "batch_size": 16})
  config.data.arithmetic.update({"train_problems": 64, "test_problems": 16})
  config.update_from_flattened_dict(runs.LEAN)
  config.model.update({"d_model": 32, "mlp_dim": 64})
  config.warm_start.batch_size = 16
  config.checkpoint.every = 1
  for name, value in overrides.items():
    config.update_from_flattened_dict({name.replace("__", "."): value})
  return config_lib.parse(config)


def use_cache(folder):
  jax.config.update("jax_compilation_cache_dir", folder)
  compilation_cache.reset_cache()


@pytest.fixture(scope="module", autouse=True)
def users_jax():
  """JAX as a user has it: without the cache that the suite shares."""
  shared = jax.config.jax_compilation_cache_dir
  use_cache(None)
  yield
  use_cache(shared)


def start(cfg, folder):
  """Trains as a new process would; counts what JAX tells of its cache."""
  jax.clear_caches()
  events = collections.Counter()

  def count(event, **_):
    events[event.rpartition("/")[2]] += 1

  jax.monitoring.register_event_listener(count)
  try:
    trainer.train(cfg, folder, programs=folder / "compiled")
  finally:
    jax.monitoring.unregister_event_listener(count)
  assert jax.config.jax_compilation_cache_dir is None  # as it was
  return events


def unfinish(folder, step=1):
  """As if the run had been killed after a step of reinforcement learning."""
  (folder / "summary.json").unlink()
  kept = checkpoint.stage_folder(folder, "rl")
  for later in checkpoint.steps(kept):
    if later > step:
      shutil.rmtree(kept / str(later))


def large(folder):
  """The files of the programs that take long to compile."""
  return sorted(
      path
      for path in (folder / "compiled").iterdir()
      if path.name.startswith(LARGE)
  )


def first_steps(folder, name):
  """A metric of the first steps that the logs tell of, by stage."""
  return [
      [line[name] for line in logs.stage_metrics(folder, stage) if name in line]
      for stage in STAGES
  ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A finished run's folder, and its log."""
  folder = tmp_path_factory.mktemp("kept") / "run"
  events = start(small(), folder)
  assert events["cache_hits"] == 0
  assert events["cache_misses"] == len(list((folder / "compiled").iterdir()))
  return folder, runs.lines(folder)


@pytest.mark.full
def test_a_run_that_goes_on_compiles_no_program_again(run, capsys):
  folder, lines = run
  assert first_steps(folder, "time/first_step_cached") == [[0.0], [0.0]]
  programs = large(folder)
  assert len(programs) == 3  # two stages, and the evaluation
  unfinish(folder)
  events = start(small(), folder)
  assert events["cache_hits"] >= 2
  assert large(folder) == programs
  assert first_steps(folder, "time/first_step_cached") == [[0.0], [0.0, 1.0]]
  assert runs.lines(folder) == lines
  out = capsys.readouterr().out
  assert f"programs   kept in {folder / 'compiled'} for the next start\n" in out
  assert "tracing (read from the cache)\n" in out
  # And again: by now all of it is there, the smallest ones too.
  unfinish(folder)
  events = start(small(), folder)
  assert events["cache_hits"] == events["compile_requests_use_cache"] > 2
  assert runs.lines(folder) == lines


@pytest.mark.full
def test_damaged_programs_stop_nothing_and_are_mended(run, capsys):
  folder, lines = run
  files = sorted((folder / "compiled").iterdir())
  for i, path in enumerate(files):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 if i % 2 else 0])
  unfinish(folder)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    events = start(small(), folder)
  assert events["cache_hits"] == 0
  assert runs.lines(folder) == lines
  out = capsys.readouterr().out
  told = (
      f"warning: {str(folder / 'compiled')!r}: the cached program jit_step"
      " cannot be read"
  )
  assert out.count(told) == 1
  assert "tracing (kept for the next start)\n" in out
  unfinish(folder)
  events = start(small(), folder)
  assert events["cache_hits"] == events["compile_requests_use_cache"] > 2
  assert runs.lines(folder) == lines


@pytest.mark.full
def test_the_time_to_the_first_step_adds_up(run):
  folder, _ = run
  names = [f"time/first_step_{x}" for x in ("seconds", "tracing", "compiling")]
  for stage in STAGES:
    lines = logs.stage_metrics(folder, stage)
    told = [line for line in lines if names[0] in line]
    assert told and told[0]["step"] == lines[0]["step"]
    for line in told:
      total, tracing, compiling = (line[name] for name in names)
      assert tracing > 0 and compiling > 0
      assert tracing + compiling + line["time/step_seconds"] < total


@pytest.mark.full
def test_programs_that_call_the_host(tmp_path, capsys):
  """JAX keeps them or not; the run says which, and comes to the same."""
  cfg = small(reward__grader="host", warm_start__num_steps=0)
  folder = tmp_path / "run"
  events = start(cfg, folder)
  assert events["cache_misses"] > 0  # the small ones, whatever JAX does
  lines = runs.lines(folder)
  out = capsys.readouterr().out
  keeps = compilation.keeps_host_calls()
  assert len(large(folder)) == (2 if keeps else 0)
  assert f"programs   kept in {folder / 'compiled'} for the next start" in out
  told = "; rl step and evaluation cannot be kept (before JAX 0.11): grading"
  assert (told in out) != keeps
  assert ("tracing (cannot be kept: it calls the host)\n" in out) != keeps
  unfinish(folder)
  start(cfg, folder)
  told = first_steps(folder, "time/first_step_cached")[1]
  assert told == [0.0, float(keeps)]
  assert runs.lines(folder) == lines


@pytest.mark.parametrize(
    ("grader", "own", "steps", "named"),
    [
        ("host", False, 2, "rl step and evaluation"),
        ("host", True, 0, "evaluation"),
        ("token_match", True, 2, "rl step"),
        ("token_match", True, 0, ""),
        ("token_match", False, 2, ""),
    ],
)
def test_the_plan_names_programs_that_are_not_kept(
    monkeypatch, grader, own, steps, named
):
  monkeypatch.setattr(compilation, "keeps_host_calls", lambda: False)
  cfg = small(reward__grader=grader, num_steps=steps)
  said = plan.describe_programs(cfg, "place", own_texts=own)
  found = re.search("; (.*) cannot be kept", said)
  assert (found[1] if found else "") == named


def test_a_users_own_cache_is_left_alone(tmp_path):
  seconds = "jax_persistent_cache_min_compile_time_secs"
  before = getattr(jax.config, seconds)
  ours, theirs = tmp_path / "ours", str(tmp_path / "theirs")
  assert compilation.place(None) is None
  assert compilation.place(ours) == str(ours)
  try:
    use_cache(theirs)
    with compilation.kept(ours):
      assert jax.config.jax_compilation_cache_dir == theirs
      assert getattr(jax.config, seconds) == before
    assert compilation.place(ours) == theirs
  finally:
    use_cache(None)
  with compilation.kept(ours):
    assert jax.config.jax_compilation_cache_dir == str(ours)
    assert getattr(jax.config, seconds) == 0
    jax.config.update("jax_enable_compilation_cache", False)
    try:
      assert compilation.place(ours) is None
    finally:
      jax.config.update("jax_enable_compilation_cache", True)
  assert jax.config.jax_compilation_cache_dir is None
  assert getattr(jax.config, seconds) == before


def test_other_warnings_pass(tmp_path):
  with (
      pytest.warns(UserWarning, match="something else"),
      compilation.kept(tmp_path),
  ):
    warnings.warn("something else", stacklevel=1)


def lowered(layers):
  """The whole step of a decoder, as it goes to the compiler."""
  cfg = make_config(model__num_layers=layers, rollout__max_tokens=12)
  # Not shared with other tests: the code of layers differs between these.
  setup = setup_on(jax.local_devices()[:1], optax.sgd(1.0), cfg)
  shapes = setup.stage.spec.shapes
  return setup.step().lower(shapes, shapes.params, setup.prompts())


def lines(program):
  return program.as_text().count("\n")


@pytest.mark.full
def test_the_program_does_not_grow_with_depth():
  """Neither what is traced nor what is compiled: layers are a loop."""
  shallow, deep = lowered(2), lowered(6)
  assert lines(deep) == pytest.approx(lines(shallow), rel=0.01)
  shallow, deep = shallow.compile(), deep.compile()
  assert lines(deep) == pytest.approx(lines(shallow), rel=0.05)


def test_it_would_grow_if_layers_were_written_out(monkeypatch):
  """What the test above would see: the same decoder without the loop."""
  scan = functools.partial(nn.scan, unroll=True)
  monkeypatch.setattr(nn, "scan", scan)
  # Three times what the test above lets pass: layers are part of a step only.
  assert lines(lowered(6)) > 1.15 * lines(lowered(2))

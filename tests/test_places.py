"""Every command, given every wrong kind of folder, says what it is."""

import pathlib
import re
import shutil

import pytest
import runs
import texts

from iapo_jax.config import parsing
from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import folder
from iapo_jax.run import places, sources
from iapo_jax.run.places import Kind
from iapo_jax.tools import export

GOLDEN = pathlib.Path(__file__).parent / "golden"
TINY = [
    "--config=arithmetic:grpo", "--dry_run", "--config.warm_start.num_steps=0",
    "--config.data.arithmetic.train_problems=8",
    "--config.data.arithmetic.validation_problems=8",
    "--config.data.arithmetic.test_problems=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory):
  """One folder of each kind; names are those of `KINDS`."""
  found = tmp_path_factory.mktemp("places")
  run = found / "runs" / "run"
  (run / "checkpoints" / "rl" / "2" / "params").mkdir(parents=True)
  (run / "checkpoints" / "rl" / "2" / "params" / "_METADATA").write_text("")
  (run / "checkpoints" / "warm_start" / "9" / "params").mkdir(parents=True)
  for name in ("tokenizer", "pretrained"):
    (run / name).mkdir()
    (run / name / "tokenizer.json").write_text("{}")
  flat = parsing.flatten(parsing.parse(parsing.default()))
  files.write_json(run / "config.json", flat)
  (run / "replay" / "rl-3").mkdir(parents=True)
  shutil.copytree(GOLDEN / "qwen2", found / "models" / "model")
  version = found / "prepared" / "own" / "local_1" / "1.0.0"
  version.mkdir(parents=True)
  (version / "dataset_info.json").write_text("{}")
  texts.write_jsonl(found / "data" / "train.jsonl", [])
  (found / "empty").mkdir()
  (found / "other").mkdir()
  (found / "other" / "notes.txt").write_text("")
  (found / "file").write_text("")
  (found / "quantised").mkdir()
  (found / "quantised" / "model.gguf").write_text("")
  return found


KINDS = {
    "runs/run": Kind.RUN,
    "runs/run/checkpoints/rl/2": Kind.CHECKPOINT,
    "runs/run/checkpoints/warm_start/9": Kind.CHECKPOINT,
    "runs/run/checkpoints/rl/2/params": Kind.PART,
    "runs/run/checkpoints": Kind.PART,
    "runs/run/tokenizer": Kind.PART,
    "runs": Kind.RUNS,
    "models": Kind.MODELS,
    "models/model": Kind.MODEL,
    "prepared": Kind.PREPARED,
    "prepared/own/local_1/1.0.0": Kind.PREPARED,
    "data": Kind.DATA,
    "empty": Kind.EMPTY,
    "other": Kind.OTHER,
    "file": Kind.FILE,
    "nowhere": Kind.MISSING,
    "quantised": Kind.GGUFS,
    "quantised/model.gguf": Kind.GGUF,
}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_what_a_folder_is(here, name, kind, monkeypatch):
  assert places.look(here / name).kind is kind
  monkeypatch.chdir(here)  # paths may be relative
  assert places.look(pathlib.Path(name)).kind is kind
  if (here / name).is_dir():
    monkeypatch.chdir(here / name)
    assert places.look(pathlib.Path()).kind is kind


# What the words of the messages below stand for.
PATHS = {
    "RUN": "runs/run", "RUNS": "runs", "MODEL": "models/model", "DATA": "data",
    "FILE": "quantised/model.gguf",
}  # fmt: skip
OF_MODEL = (
    "it is a Hugging Face folder; score it with `iapo score --model=MODEL`,"
    " train from it with --config.model.pretrained=MODEL, or evaluate it as a"
    " run without steps: `iapo train --config=NAME"
    " --config.model.pretrained=MODEL --config.num_steps=0"
    " --config.warm_start.num_steps=0`"
)
OF_FILE = OF_MODEL.replace("Hugging Face folder", "GGUF file").replace(
    "MODEL", "FILE"
)
OF_OTHERS = {
    "runs": "it is a parent of runs; name one of them, such as 'RUN'",
    "models":
        "it is a parent of Hugging Face folders; name one of them, such as"
        " 'MODEL'",
    "prepared": "it holds prepared data",
    "data": "it holds data files; name them with --config.data.source_dir=DATA",
    "empty": "it is an empty folder",
    "quantised": "it holds GGUF files; name one of them, such as 'FILE'",
}  # fmt: skip
NOT_A_RUN = OF_OTHERS | {
    "models": OF_MODEL.replace("is a", "is a parent of", 1).replace(
        "folder;", "folders;", 1
    ),
    "models/model": OF_MODEL,
    "quantised": OF_FILE.replace("is a GGUF file", "holds GGUF files"),
    "quantised/model.gguf": OF_FILE,
    "runs/run/checkpoints/rl/2":
        "it is a checkpoint of the run 'RUN'; name 'RUN'; `iapo evaluate` and"
        " `iapo export` take --checkpoint=2",
    "runs/run/checkpoints/warm_start/9":
        "it is a checkpoint of the run 'RUN'; name 'RUN'",
    "runs/run/tokenizer": "it is a part of the run 'RUN'; name 'RUN'",
    "other": "it has no config.json",
    "file": "it is a file",
    "nowhere": "it does not exist",
}  # fmt: skip
NOT_A_POLICY = OF_OTHERS | {
    "runs/run/checkpoints/rl/2":
        "it is a checkpoint of the run 'RUN'; name 'RUN', or make a Hugging"
        " Face folder with `iapo export RUN --checkpoint=2 --output=FOLDER`",
    "runs/run/checkpoints": "it is a part of the run 'RUN'; name 'RUN'",
}  # fmt: skip
NOT_A_MODEL = OF_OTHERS | {
    "runs":
        "it is a parent of runs; begin from its policy with"
        " --config.init_from=RUN, or make a Hugging Face folder of it with"
        " `iapo export RUN --output=FOLDER`",
    "runs/run":
        "it is a run; begin from its policy with --config.init_from=RUN, or"
        " make a Hugging Face folder of it with `iapo export RUN"
        " --output=FOLDER`",
    "runs/run/checkpoints/rl/2":
        "it is a checkpoint of the run 'RUN'; begin from its policy with"
        " --config.init_from=RUN/checkpoints/rl/2, or make a Hugging Face"
        " folder of it with `iapo export RUN --checkpoint=2 --output=FOLDER`",
}  # fmt: skip
NOT_A_TOKENIZER = OF_OTHERS | {
    "runs": "it is a parent of runs; name its tokenizer, 'RUN/tokenizer'",
    "runs/run": "it is a run; name its tokenizer, 'RUN/tokenizer'",
    "runs/run/checkpoints/rl/2":
        "it is a checkpoint of the run 'RUN'; name its tokenizer,"
        " 'RUN/tokenizer'",
}  # fmt: skip
NOT_A_WORKDIR = {
    "runs": "it is a parent of runs; use --workdir=RUNS/NAME",
    "models/model": "it is a Hugging Face folder; use another folder",
    "runs/run/checkpoints/rl/2":
        "it is a checkpoint of the run 'RUN'; use another folder",
    "runs/run/tokenizer": "it is a part of the run 'RUN'; use another folder",
}  # fmt: skip
NO_STEP = NOT_A_RUN | dict.fromkeys(
    [name for name in KINDS if name.startswith("runs/run")],
    "the run 'RUN' keeps RUN/replay/rl-3",
)
# Command, arguments with PLACE for the folder, beginning, and end by folder.
REFUSALS = [
    ("evaluate", ["PLACE"], "workdir 'PLACE': holds no run; ", NOT_A_RUN),
    ("report", ["x=PLACE"], "workdir 'PLACE': holds no run; ", NOT_A_RUN),
    ("export", ["PLACE", "--output=x"],
     "workdir 'PLACE': holds no checkpoint; ", NOT_A_RUN),
    ("replay", ["PLACE"],
     "'PLACE': must be a step that a stopped run kept, RUN/replay/STAGE-STEP; ",
     NO_STEP),
    ("score", ["--model=PLACE", "--input=x", "--output=y"],
     "--model = 'PLACE': must be a run, a Hugging Face folder, a GGUF file or a"
     " hub name; ",
     NOT_A_POLICY),
    ("train", [*TINY, "--config.model.pretrained=PLACE"],
     "config.model.pretrained = 'PLACE': must be a Hugging Face folder, a GGUF"
     " file or a hub name; ", NOT_A_MODEL),
    ("train", [*TINY, "--config.data.tokenizer=PLACE"],
     "config.data.tokenizer = 'PLACE': must be a folder with a tokenizer.json,"
     " a GGUF file or a hub name; ", NOT_A_TOKENIZER),
    ("train", [*TINY, "--workdir=PLACE"],
     "workdir 'PLACE': must be new, empty or the folder of this run; ",
     NOT_A_WORKDIR),
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "arguments", "begins", "ends"), REFUSALS,
    ids=lambda x: "-".join(x)[-30:] if isinstance(x, list) else "",
)  # fmt: skip
def test_a_command_says_what_it_was_given(
    here, tmp_path, command, arguments, begins, ends
):
  for name, end in ends.items():
    place = str(here / name)
    given = [x.replace("PLACE", place) for x in arguments]
    done = runs.command(command, *given, cwd=tmp_path)
    for word, path in PATHS.items():
      end = re.sub(rf"\b{word}\b", f"{here}/{path}", end)
    expected = f"error: {begins.replace('PLACE', place)}{end}"
    assert (done.returncode, done.stderr.strip()) == (2, expected), name
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", [*NOT_A_RUN])
def test_what_no_run_can_begin_from(here, name):
  if "checkpoints" in name:
    assert str(sources.named(str(here / name))) == str(here / name)
    return
  with pytest.raises(ConfigError) as error:
    sources.named(str(here / name))
  assert str(error.value) == (
      f"config.init_from = {str(here / name)!r}: must be the folder of a run,"
      " or of one of its checkpoints, RUN/checkpoints/STAGE/STEP;"
      f" {places.explain(here / name, 'run')}"
  )


def test_a_run_without_a_checkpoint(here, tmp_path):
  run = tmp_path / "young"
  run.mkdir()
  shutil.copy(here / "runs" / "run" / "config.json", run)
  with pytest.raises(ConfigError) as error:
    sources.last(run)
  assert str(error.value) == (
      f"workdir {str(run)!r}: holds no checkpoint; the run has saved none yet"
  )


def test_an_export_says_which_file_is_missing(here, tmp_path):
  """Of the source, not of the output."""
  gone, output = tmp_path / "gone", tmp_path / "out"
  cfg = folder.read_model(GOLDEN / "qwen2")
  with pytest.raises(ConfigError) as error:
    export.convert(gone, output, {}, cfg, "float32")
  assert str(error.value) == (
      f"{str(gone)!r}: is needed, but cannot be read (No such file or"
      " directory)"
  )
  with pytest.raises(ConfigError, match=r"--output = .*cannot be written"):
    export.convert(GOLDEN / "qwen2", here / "file" / "x", {}, cfg, "float32")
  with pytest.raises(ConfigError, match=r"nor tokenizer/tokenizer\.json, whi"):
    folder.kept(here / "models")

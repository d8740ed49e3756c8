"""The page: what it says, that it is whole, and that text stays text."""

import base64
import html.parser
import json
import re
import shutil

import pytest

from iapo_jax import comparison, logs, trainer
from iapo_jax import config as config_lib
from iapo_jax.errors import ConfigError
from iapo_jax.report import page, runs

EVIL = "<script>alert('x')</script>"


def config(**overrides):
  built = config_lib.default()
  built.mesh.data = 8
  built.num_steps = 2
  built.evaluation.update({"every": 1, "problems": 16, "batch_size": 16})
  built.data.update({"train_problems": 64, "test_problems": 16})
  built.log.samples_every = 1
  for name, value in overrides.items():
    built.update_from_flattened_dict({name.replace("__", "."): value})
  return config_lib.parse(built)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Two runs; the second starts from the first."""
  folder = tmp_path_factory.mktemp("runs")
  first = config(
      warm_start__num_steps=30,
      warm_start__optimizer__learning_rate=0.02,
      credit__mode="grpo",
  )
  trainer.train(first, folder / "grpo")
  second = config(init_from=str(folder / "grpo"), credit__mode="to_go")
  trainer.train(second, folder / "to_go")
  return folder


class Reader(html.parser.HTMLParser):
  """Text by element, and the attributes of every element."""

  def __init__(self):
    super().__init__()
    self.open, self.text, self.elements = [], [], []

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in ("meta", "img", "source", "br", "link"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] not in ("style", "script"):
      self.text.append(data)

  def of(self, tag):
    return [attrs for name, attrs in self.elements if name == tag]


def alts(reader):
  return [image["alt"] for image in reader.of("img")]


def tokens_of(reader):
  spans = reader.of("span")
  return [a for a in spans if a.get("class", "").startswith("token")]


def read(path):
  reader = Reader()
  text = path.read_text(encoding="utf-8")
  reader.feed(text)
  assert reader.open == []
  return reader, text


def write(trained, output, **more):
  folders = {"GRPO": [trained / "grpo"], "to_go": [trained / "to_go"]}
  return page.write(folders, output, title="Two runs", **more)


def test_the_page_is_whole_by_itself(trained, tmp_path):
  path = write(trained, tmp_path / "page")
  reader, text = read(path)
  assert "Two runs" in reader.text
  # Nothing is fetched: every picture is in the page.
  assert not re.search(r"""(?:src|href|srcset)=["'](?!data:)""", text)
  assert "url(" not in text and "@import" not in text
  images = reader.of("img")
  assert len(images) == len(reader.of("source")) == 8
  for image in images:
    assert image["alt"]
    svg = base64.b64decode(image["src"].partition("base64,")[2])
    assert svg.lstrip().startswith(b"<?xml")
  for png in path.parent.glob("*.png"):
    assert png.read_bytes().startswith(b"\x89PNG")
  assert len(list(path.parent.glob("*.png"))) == len(images)


def test_the_numbers_are_those_of_the_runs(trained, tmp_path):
  path = write(trained, tmp_path)
  reader, _ = read(path)
  said = " ".join(" ".join(reader.text).split())
  summary = json.loads((trained / "to_go" / "summary.json").read_text())
  base = json.loads((trained / "grpo" / "summary.json").read_text())
  expected = (
      f"to_go: {summary['mean_tokens']:.1f} tokens at accuracy"
      f" {summary['accuracy']:.3f}; GRPO: {base['mean_tokens']:.1f} at"
      f" {base['accuracy']:.3f}"
  )
  assert expected in said
  assert f"{summary['accuracy']:.3f} ± {summary['accuracy_se']:.3f}" in said
  # The figures' descriptions too: the validation curve from step 0 to 2.
  lines = logs.read(trained / "to_go", logs.METRICS)
  curve = [x["mean_tokens"] for x in lines if x["stage"] == "validation"]
  told = next(x for x in alts(reader) if x.startswith("Length (validation)"))
  assert f"to_go: from {curve[0]:.3g} to {curve[-1]:.3g}" in told


def test_every_token_has_its_numbers(trained, tmp_path):
  reader, _ = read(write(trained, tmp_path))
  tokens = tokens_of(reader)
  groups = runs.read_groups({"a": [trained / "grpo"], "b": [trained / "to_go"]})
  shown = [r for g in groups for r in runs.examples(g.runs[0])]
  assert len(tokens) == sum(len(r["tokens"]) for r in shown)
  first = shown[0]
  assert tokens[0]["data-information"] == f"{first['information'][0]:+.3f}"
  assert tokens[0]["data-before"] == f"{first['answer_entropies'][0]:.3f}"
  assert tokens[0]["data-after"] == f"{first['answer_entropies'][1]:.3f}"
  assert tokens[0]["data-entropy"] == f"{first['entropies'][0]:.3f}"
  assert tokens[0]["data-credit"] == f"{first['advantages'][0]:+.3f}"
  gain = first["information"][0] > 0
  assert tokens[0]["class"] == f"token {'gain' if gain else 'loss'}"
  # After the reasoning there is no information to colour.
  rest = tokens[first["reasoning_tokens"]]
  assert rest["class"] == "token after" and "data-information" not in rest


@pytest.fixture
def hostile(trained, tmp_path):
  """A run whose model and data wrote markup, quotes and broken text."""
  folder = tmp_path / "hostile"
  shutil.copytree(trained / "to_go", folder)
  records = logs.read(folder, logs.SAMPLES)
  for record in records:
    record["prompt"] = EVIL + ' " onmouseover="x'
    record["gold"] = "{{ 7 * 7 }}<b>"
    evil = [EVIL, '"><img src=x onerror=y>', "\ud800", "\x00\x1b[31m"]
    rest = len(record["entropies"]) - len(evil)
    record["tokens"] = evil + ["\n"] * rest
  with (folder / logs.SAMPLES).open("w") as file:
    file.writelines(json.dumps(record) + "\n" for record in records)
  warning = {"stage": "rl", "step": 1, "warning": EVIL}
  (folder / logs.WARNINGS).write_text(json.dumps(warning) + "\n")
  return folder


def test_untrusted_text_is_shown_as_text(hostile, trained, tmp_path):
  path = page.write(
      {EVIL: [hostile], "GRPO": [trained / "grpo"]},
      tmp_path / "page",
      title=EVIL,
      timing=[{"run": EVIL, "checkpoint": EVIL, "batch_size": 1,
               "mean": {"seconds_per_completion": 1.0, "mean_tokens": 1.0,
                        "samples": 1}}],
  )  # fmt: skip
  reader, text = read(path)
  assert text.count("<script>") == 1  # the page's own
  assert len(reader.of("script")) == 1
  assert EVIL in reader.text
  for _, attributes in reader.elements:
    assert not {"onerror", "onmouseover"} & attributes.keys()
  assert all(i["src"].startswith("data:") for i in reader.of("img"))
  said = "".join(reader.text)
  assert "{{ 7 * 7 }}<b>" in said
  assert '"><img src=x onerror=y>' in said


def test_a_run_that_is_still_going_on(trained, tmp_path):
  folder = tmp_path / "young"
  shutil.copytree(trained / "to_go", folder)
  (folder / "summary.json").unlink()
  for name in (logs.SAMPLES, logs.EVALUATIONS):
    (folder / name).unlink()
  reader, _ = read(page.write({"young": [folder]}, tmp_path / "p", title="x"))
  assert any("1 not finished" in text for text in reader.text)
  # Nothing but its configuration: there is a page all the same.
  (folder / logs.METRICS).unlink()
  reader, _ = read(page.write({"young": [folder]}, tmp_path / "q", title="x"))
  assert reader.of("img") == []


def test_seeds_are_averaged(trained, tmp_path):
  second = tmp_path / "second"
  shutil.copytree(trained / "grpo", second)
  edit(second / "config.json", seed=1)
  edit(second / "summary.json", accuracy=0.875)
  both = [trained / "grpo", second]
  group = runs.read_groups({"both": both})[0]
  values = [run.summary["accuracy"] for run in group.runs]
  mean, error = runs.mean_and_error(group, "accuracy")
  assert mean == pytest.approx(sum(values) / 2)
  # Two values: stdev |a - b| / sqrt(2), over sqrt(2).
  assert error == pytest.approx(abs(values[0] - values[1]) / 2)
  assert values[0] != values[1] == 0.875
  reader, _ = read(page.write({"both": both}, tmp_path, title="x"))
  assert f"{mean:.3f} ± {error:.3f}" in " ".join("".join(reader.text).split())


def edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_only_seeds_are_averaged(trained, tmp_path):
  with pytest.raises(ConfigError, match=r"'x': have the seeds \[0, 0\]"):
    runs.read_groups({"x": [trained / "grpo", trained / "grpo"]})
  other = tmp_path / "other"
  shutil.copytree(trained / "to_go", other)
  edit(other / "config.json", seed=1)
  with pytest.raises(ConfigError, match=r"differ in config\.num_steps|credit"):
    runs.read_groups({"x": [trained / "grpo", other]})


@pytest.mark.parametrize("label", [r"$\frac$", "_hidden", "a$b$c", "50 %"])
def test_labels_are_only_text(trained, tmp_path, label):
  path = page.write({label: [trained / "grpo"]}, tmp_path, title="x")
  assert label in "".join(read(path)[0].text)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", "{", "is not JSON"),
        ("metrics.jsonl", "no\n", "line 1 is no JSON object"),
        ("config.json", "[]", "is not a JSON object"),
        ("config.json", '{"seed": "x"}', "config.seed = 'x': must be of type"),
    ],
)
def test_files_that_are_broken(trained, tmp_path, name, content, message):
  folder = tmp_path / "run"
  shutil.copytree(trained / "grpo", folder)
  (folder / name).write_text(content)
  with pytest.raises(ConfigError, match=message):
    page.write({"x": [folder]}, tmp_path / "page", title="x")

def test_no_run(tmp_path):
  with pytest.raises(ConfigError, match="holds no run"):
    page.write({"x": [tmp_path]}, tmp_path / "page", title="x")


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(-0.04, 1, "0.0"), (1.26, 1, "+1.3"), (-49.6, 0, "−50"), (0.4, 0, "0")],
)
def test_signed_numbers(value, digits, text):
  assert page._signed(value, digits) == text


@pytest.fixture(scope="module")
def judged(trained):
  contestants = comparison.load(
      [trained / "grpo", trained / "to_go"], "last", samples=2, batch_size=32
  )
  results = comparison.judge(
      contestants, split="test", problems=16, seeds=(0, 1)
  )
  return contestants, results


class TestComparison:
  """The same runs, judged side by side."""

  def test_runs_that_sample_alike_share_a_program(self, judged):
    (a, b), _ = judged
    assert a.sampler is b.sampler
    assert a.params is not b.params
    assert (a.checkpoint, b.checkpoint) == ("rl/2", "rl/2")

  def test_every_seed_has_its_metrics(self, judged):
    _, results = judged
    assert [[r["seed"] for r in runs_] for runs_ in results] == [[0, 1]] * 2
    for result in results[0] + results[1]:
      assert result["problems"] == 16
      assert result["samples"] == 2
      assert result["seconds_per_completion"] > 0
      assert {"pass@1", "pass@2", "length@2", "efficiency@2"} <= result.keys()
    # Seeds differ in what was sampled.
    assert results[0][0]["mean_tokens"] != results[0][1]["mean_tokens"]

  def test_the_same_policy_gives_the_same_numbers(self, trained):
    contestants = comparison.load([trained / "grpo"] * 2, "2")
    (a,), (b,) = comparison.judge(
        contestants, split="validation", problems=8, seeds=(5,)
    )
    name = comparison.SECONDS
    assert {k: v for k, v in a.items() if k != name} == {
        k: v for k, v in b.items() if k != name
    }

  def test_files(self, judged, tmp_path):
    records = comparison.report(*judged, "test")
    comparison.write(records, tmp_path / "v1.2")
    assert comparison.read(tmp_path / "v1.2.json") == records
    rows = (tmp_path / "v1.2.csv").read_text().splitlines()
    assert len(rows) == 1 + 4
    assert rows[0].startswith("run,checkpoint,split,batch_size,temperature,acc")
    values = [s["accuracy"] for s in records[0]["seeds"]]
    assert records[0]["mean"]["accuracy"] == pytest.approx(sum(values) / 2)
    # Two values: |a - b| / sqrt(2).
    assert records[0]["std"]["accuracy"] == pytest.approx(
        abs(values[0] - values[1]) / 2**0.5
    )
    head, _, first, second = comparison.table(records).splitlines()
    assert "| pass@2 | length@2 | efficiency@2 |" in head
    spread = f"{records[0]['std']['accuracy']:.3f}"
    assert f"| {records[0]['mean']['accuracy']:.3f} ± {spread} |" in first
    assert f"{records[1]['mean']['length@2']:.1f}" in second

  @pytest.mark.parametrize(
      "content", ["{}", '{"runs": [{}]}', '{"runs": 3}', "[]", "x"]
  )
  def test_a_file_of_something_else(self, tmp_path, content):
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"evaluation\.json': "):
      comparison.read(path)
    with pytest.raises(ConfigError, match="No such file"):
      comparison.read(tmp_path / "none.json")

  @pytest.mark.parametrize(
      ("changes", "message"),
      [
          ({"data.operands": 3}, "the runs differ in their train problems"),
          (
              {"evaluation.batch_size": 64},
              r"evaluation\.batch_size: the runs have 16 and 64; give one with",
          ),
          (
              {"evaluation.samples": 2},
              r"evaluation\.samples: the runs have 1 and 2; give one with",
          ),
      ],
  )
  def test_runs_that_do_not_compare(self, trained, tmp_path, changes, message):
    other = tmp_path / "other"
    shutil.copytree(trained / "to_go", other)
    edit(other / "config.json", **changes)
    with pytest.raises(ConfigError, match=message):
      comparison.load([trained / "grpo", other], "last")

  @pytest.mark.parametrize(
      ("which", "message"),
      [
          ("7", r"--checkpoint = '7': must be last, best or a kept step"),
          ("x", r"which are \[0, 1, 2\]"),
      ],
  )
  def test_a_checkpoint_that_is_not_there(self, trained, which, message):
    with pytest.raises(ConfigError, match=message):
      comparison.load([trained / "grpo"], which)

  def test_the_best_checkpoint(self, trained):
    (contestant,) = comparison.load([trained / "grpo"], "best")
    best = trainer.best_checkpoint(trained / "grpo")
    assert contestant.checkpoint == f"rl/{best}"

  def test_a_broken_rule(self, trained):
    with pytest.raises(ConfigError, match=r"multiple of evaluation\.samples"):
      comparison.load([trained / "grpo"], "last", samples=3)

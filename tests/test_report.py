"""The page: what it says, that it is whole, and that text stays text."""

import base64
import html.parser
import itertools
import json
import pathlib
import re
import shutil

import chex
import jax
import pytest
from runs import ODD_LABELS, SHORT, command, edit, synthetic

from iapo_jax.config import parsing as config_lib
from iapo_jax.core.errors import ConfigError
from iapo_jax.run import evaluation, logs, sources, trainer
from iapo_jax.tools import comparison
from iapo_jax.tools.report import page, runs

pytestmark = pytest.mark.full

EVIL = "<script>alert('x')</script>"


def config(**overrides):
  built = config_lib.default()
  built.num_steps = 2
  built.prompts_per_step, built.group_size = 8, 4
  built.evaluation.update({"every": 1, "problems": 16, "batch_size": 16})
  built.data.arithmetic.update({"train_problems": 64, "test_problems": 16})
  built.update_from_flattened_dict(SHORT)
  built.model.update({"d_model": 32, "mlp_dim": 64})
  built.warm_start.batch_size = 16
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


def folders_of(trained):
  return {"GRPO": [trained / "grpo"], "to_go": [trained / "to_go"]}


@pytest.fixture(name="drawn", scope="module")
def draw_page(trained, tmp_path_factory):
  """The path of a whole page."""
  folder = tmp_path_factory.mktemp("report") / "page"
  return page.write(folders_of(trained), folder, title="Two runs")


def read_text(folders, **more):
  """A page without its figures, which take seconds."""
  reader = Reader()
  groups = runs.read_groups(folders)
  reader.feed(page.render(groups, (), title="Two runs", **more))
  assert reader.open == []
  return reader


def test_the_page_is_whole_by_itself(drawn):
  reader, text = read(drawn)
  assert "Two runs" in reader.text
  # Nothing is fetched: every picture is in the page.
  assert not re.search(r"""(?:src|href|srcset)=["'](?!data:)""", text)
  assert "url(" not in text and "@import" not in text
  images = reader.of("img")
  assert len(images) == len(reader.of("source")) == 10
  for image in images:
    assert image["alt"]
    svg = base64.b64decode(image["src"].partition("base64,")[2])
    assert svg.lstrip().startswith(b"<?xml")
  for png in drawn.parent.glob("*.png"):
    assert png.read_bytes().startswith(b"\x89PNG")
  assert len(list(drawn.parent.glob("*.png"))) == len(images)


def test_the_numbers_are_those_of_the_runs(trained, drawn):
  reader, _ = read(drawn)
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


def test_every_token_has_its_numbers(trained):
  reader = read_text(folders_of(trained))
  tokens = tokens_of(reader)
  groups = runs.read_groups({"a": [trained / "grpo"], "b": [trained / "to_go"]})
  shown = [r for g in groups for r in runs.examples(g.runs[0])]
  assert len(tokens) == sum(len(r["tokens"]) for r in shown)
  first = shown[0]
  assert tokens[0]["data-information"] == f"{first['information'][0]:+.3f}"
  assert tokens[0]["data-before"] == f"{first['answer_entropies'][0]:.3f}"
  assert tokens[0]["data-after"] == f"{first['answer_entropies'][1]:.3f}"
  assert tokens[0]["data-entropy"] == f"{first['entropies'][0]:.3f}"
  assert tokens[0]["data-advantage"] == f"{first['advantages'][0]:+.3f}"
  # GRPO has no credit of single tokens; to_go has.
  assert {t["data-credit"] for t in tokens_of_run(tokens, shown, 0)} == {
      "+0.000"
  }
  record = shown[-1]
  credit = record["advantages"][0] - record["group_advantage"]
  seen = tokens_of_run(tokens, shown, -1)[0]["data-credit"]
  assert seen == f"{credit:+.3f}" != "+0.000"
  gain = first["information"][0] > 0
  assert tokens[0]["class"] == f"token {'gain' if gain else 'loss'}"
  # After the reasoning there is no information to colour.
  rest = tokens[first["reasoning_tokens"]]
  assert rest["class"] == "token after" and "data-information" not in rest
  assert rest["data-place"] == "after the reasoning"


def tokens_of_run(tokens, shown, index):
  """Those of one of the shown records."""
  index %= len(shown)
  start = sum(len(record["tokens"]) for record in shown[:index])
  return tokens[start : start + len(shown[index]["tokens"])]


def test_noise_is_not_painted_in_full_colour():
  record = {
      "step": 1, "prompt": "p", "gold": "g", "correct": True, "reward": 1.0,
      "reasoning_tokens": 2, "tokens": ["a", "b"], "entropies": [0.1, 0.2],
      "answer_entropies": [0.5, 0.49, 0.5], "information": [0.01, -0.01],
      "group_advantage": 0.5, "advantages": [0.75, 0.25],
  }  # fmt: skip
  example = page._example(record)
  # 0.01 of 0.05 nats.
  assert [t["share"] for t in example["tokens"]] == ["0.20", "0.20"]
  credits_shown = [t["data"]["credit"] for t in example["tokens"]]
  assert credits_shown == ["+0.250", "-0.250"]
  assert example["scale"] == "0.05"
  # Without probes nothing is coloured, and nothing said of information.
  blind = page._example(record | {"information": [], "answer_entropies": []})
  assert blind["scale"] == ""
  assert [t["colour"] for t in blind["tokens"]] == ["", ""]
  assert {t["data"]["place"] for t in blind["tokens"]} == {"not probed"}
  record["information"] = [0.01, -0.2]
  assert [t["share"] for t in page._example(record)["tokens"]] == [
      "0.05", "1.00",
  ]  # fmt: skip


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
      timing=[{"run": EVIL, "checkpoint": EVIL, "batch_size": 1, "split": EVIL,
               "task": EVIL, "note": EVIL, "seeds": [{}],
               "mean": dict.fromkeys((
                   "problems", "samples", "accuracy", "pass@1", "length@1",
                   "efficiency@1", "mean_reasoning_tokens", "format_rate",
                   "seconds_per_completion"), 1.0)}],
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
  assert any("0 of 1 finished" in text for text in reader.text)
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
  reader = read_text({"both": both})
  assert f"{mean:.3f} ± {error:.3f}" in " ".join("".join(reader.text).split())


def test_only_seeds_are_averaged(trained, tmp_path):
  with pytest.raises(ConfigError, match=r"'x': have the seeds \[0, 0\]"):
    runs.read_groups({"x": [trained / "grpo", trained / "grpo"]})
  other = tmp_path / "other"
  shutil.copytree(trained / "to_go", other)
  edit(other / "config.json", seed=1)
  with pytest.raises(ConfigError, match=r"differ in config\.num_steps|credit"):
    runs.read_groups({"x": [trained / "grpo", other]})


@pytest.mark.full
def test_labels_are_only_text(trained, tmp_path):
  runs_ = {label: [trained / "grpo"] for label in ODD_LABELS}
  text = "".join(read(page.write(runs_, tmp_path, title="x"))[0].text)
  for label in ODD_LABELS:
    assert label.encode("utf-8", "backslashreplace").decode("utf-8") in text


def test_headlines_compare_only_what_is_there():
  def said(*modes):
    groups = []
    for i, mode in enumerate(modes):
      group = synthetic(mode, i)
      group.runs[0].config["credit.mode"] = mode
      groups.append(group)
    return page.headlines(groups)

  assert said("grpo") == ["grpo: 20.0 tokens at accuracy 0.500."]
  assert said("grpo", "to_go") == [
      "to_go: 20.0 tokens at accuracy 0.510; grpo: 20.0 at 0.500 (0 % tokens,"
      " +1.0 points)."
  ]


def test_the_seeds_are_among_the_settings():
  rows = page._settings([synthetic("a", 0, seeds=2), synthetic("b", 1)])
  assert rows == [{"name": "seed", "values": ["0, 1", "0"]}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", "{", "is not JSON"),
        ("metrics.jsonl", "no\n", "line 1 is not a JSON object"),
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


def test_a_page_that_cannot_be_written(trained, tmp_path):
  (tmp_path / "file").touch()
  (tmp_path / "page" / "index.html").mkdir(parents=True)
  for output in ("file", "page"):
    with pytest.raises(ConfigError, match="must be a folder that can be writ"):
      page.write({"x": [trained / "grpo"]}, tmp_path / output, title="x")


def test_records_of_an_older_version(trained, tmp_path):
  folder = tmp_path / "old"
  shutil.copytree(trained / "grpo", folder)
  records = logs.read(folder, logs.SAMPLES)
  for record in records:
    del record["group_advantage"]
  lines = [json.dumps(record) + "\n" for record in records]
  (folder / logs.SAMPLES).write_text("".join(lines))
  with pytest.raises(ConfigError, match="has records of an older version"):
    page.write({"x": [folder]}, tmp_path / "page", title="x")


def test_a_run_from_before_answers_were_counted(trained, tmp_path):
  """What it did not record is unknown, not zero."""
  folder = tmp_path / "old"
  shutil.copytree(trained / "to_go", folder)
  gone = re.compile("answer_tokens|ended|cut_rate|malformed_end|answer$|late_")
  for name in (logs.METRICS, logs.SAMPLES, logs.EVALUATIONS):
    lines = [
        json.dumps({k: v for k, v in x.items() if not gone.search(k)}) + "\n"
        for x in logs.read(folder, name)
    ]
    (folder / name).write_text("".join(lines))
  summary = json.loads((folder / "summary.json").read_text())
  kept = {k: v for k, v in summary.items() if not gone.search(k)}
  assert len(kept) == len(summary) - 4
  (folder / "summary.json").write_text(json.dumps(kept))
  reader, _ = read(page.write({"x": [folder]}, tmp_path / "p", title="x"))
  cells = [x.get("data-head") for x in reader.of("td")]
  assert {"answer tokens", "cut off"} <= set(cells)
  said = " ".join("".join(reader.text).split())
  assert "reasoning tokens · – answer tokens ·" in said
  assert not any(x.startswith("Answer (") for x in alts(reader))
  assert any(x.startswith("Reasoning (") for x in alts(reader))
  new, _ = read(page.write({"x": [trained / "to_go"]}, tmp_path, title="x"))
  assert re.search(r"\d+ answer tokens", " ".join("".join(new.text).split()))
  assert any(x.startswith("Answer (") for x in alts(new))


def test_no_run(tmp_path):
  with pytest.raises(ConfigError, match="holds no run"):
    page.write({"x": [tmp_path]}, tmp_path / "page", title="x")


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(-0.04, 1, "0.0"), (1.26, 1, "+1.3"), (-49.6, 0, "−50"), (0.4, 0, "0")],
)
def test_signed_numbers(value, digits, text):
  assert page._signed(value, digits) == text


def test_runs_that_were_evaluated_differently(trained, tmp_path):
  """The page says so, and does not compare them in its headlines."""
  other = tmp_path / "other"
  shutil.copytree(trained / "to_go", other)
  edit(other / "config.json", **{"evaluation.top_p": 0.95})
  groups = runs.read_groups({"GRPO": [trained / "grpo"], "to_go": [other]})
  assert page._notes(groups, ()) == [
      "config.evaluation.top_p is 1.0 or 0.95: the runs were evaluated"
      " differently, and their test results do not compare"
  ]
  (headline,) = page.headlines(groups)
  assert headline.startswith("to_go: ") and "GRPO" not in headline
  assert page._notes(groups[1:], ()) == [
      "sampling of evaluations: top-p 0.95"
  ]


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
    # Two runs, each with two seeds, their mean and their spread.
    assert len(rows) == 1 + 2 * 4
    assert rows[0].startswith(
        "run,checkpoint,task,split,skipped,batch_size,temperature,top_p,top_k,"
        "seed,accuracy,"
    )
    assert [row.split(",")[9] for row in rows[1:5]] == ["0", "1", "mean", "std"]
    assert float(rows[3].split(",")[10]) == records[0]["mean"]["accuracy"]
    assert float(rows[4].split(",")[10]) == records[0]["std"]["accuracy"]
    values = [s["accuracy"] for s in records[0]["seeds"]]
    assert records[0]["mean"]["accuracy"] == pytest.approx(sum(values) / 2)
    # Two values: |a - b| / sqrt(2).
    assert records[0]["std"]["accuracy"] == pytest.approx(
        abs(values[0] - values[1]) / 2**0.5
    )
    head, _, first, second = comparison.table(records).splitlines()
    assert "| pass@2 | length@2 (tokens) | pass@2 / length@2 |" in head
    spread = f"{records[0]['std']['accuracy']:.3f}"
    assert f"| {records[0]['mean']['accuracy']:.3f} ± {spread} |" in first
    assert f"{records[1]['mean']['length@2']:.1f}" in second

  @pytest.mark.parametrize(
      "content",
      [
          "{}", '{"runs": [{}]}', '{"runs": 3}', "[]", "x",
          '{"runs": [{"run": "", "checkpoint": "", "split": "", "seeds": [],'
          ' "batch_size": 1, "mean": {"seconds_per_completion": 1}}]}',
      ],
  )
  def test_a_file_of_something_else(self, tmp_path, content):
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    message = r"evaluation\.json': (is not|was not written by `iapo evaluate`)"
    with pytest.raises(ConfigError, match=message):
      comparison.read(path)
    with pytest.raises(ConfigError, match="No such file"):
      comparison.read(tmp_path / "none.json")

  @pytest.mark.parametrize(
      ("changes", "message"),
      [
          (
              {
                  "data.arithmetic.operands": 2,
                  "data.arithmetic.train_problems": 8,
                  "data.arithmetic.validation_problems": 8,
              },
              r"run '.*/other': has other test problems than '.*grpo'",
          ),
          (
              {"evaluation.batch_size": 64},
              r"evaluation\.batch_size: the runs have 16 and 64; set one for",
          ),
          (
              {"evaluation.temperature": 0.5},
              r"temperature: the runs have 1.0 and 0.5; set one for all with",
          ),
          (
              {"evaluation.top_p": 0.95},
              r"top_p: the runs have 1.0 and 0.95; set one for all with --to",
          ),
          (
              {"evaluation.top_k": 20},
              r"top_k: the runs have 0 and 20; set one for all with --top_k",
          ),
          (
              {"rollout.max_tokens": 70},
              r"max_tokens: the runs have 56 and 70; set one for all with --m",
          ),
          (
              {"evaluation.samples": 2},
              r"evaluation\.samples: the runs have 1 and 2; set one for all",
          ),
      ],
  )
  def test_runs_that_do_not_compare(self, trained, tmp_path, changes, message):
    other = tmp_path / "other"
    shutil.copytree(trained / "to_go", other)
    edit(other / "config.json", **changes)
    with pytest.raises(ConfigError, match=message):
      comparison.judge(
          comparison.load([trained / "grpo", other], "last"),
          split="test", problems=8, seeds=(0,),
      )  # fmt: skip

  def test_greedy_needs_one_seed_and_one_sample(self, trained):
    flags = [trained / "grpo", "--temperature=0"]
    done = command("evaluate", *flags, "--seeds=0,1", "--problems=8")
    assert done.stderr.strip().endswith(
        "--seeds = 0,1: must be one seed at temperature 0: greedy completions"
        " are the same with every seed"
    )
    done = command("evaluate", *flags, "--samples=2")
    assert "temperature = 0.0: must be above 0 with evaluation" in done.stderr

  def test_the_sampling_is_said(self, trained, tmp_path):
    """In the file, the table and the page; of one token samples are alike."""
    done = command(
        "evaluate", trained / "grpo", "--top_k=1", "--top_p=0.9",
        "--temperature=0.7", "--samples=2", "--batch_size=16", "--problems=8",
        f"--output={tmp_path / 'result'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    how = "temperature 0.7, top-p 0.9, top-k 1"
    assert f"\nSampling: {how}.\n" in done.stdout
    records = comparison.read(tmp_path / "result.json")
    (record,) = records
    assert {name: record[name] for name in evaluation.SAMPLING} == {
        "temperature": 0.7, "top_p": 0.9, "top_k": 1,
    }  # fmt: skip
    assert record["mean"]["length@1"] == record["mean"]["length@2"]
    assert record["mean"]["pass@1"] == record["mean"]["pass@2"]
    assert page._judged(records)["sampling"] == how

  @pytest.mark.parametrize(
      "changes",
      [
          {"data.max_prompt_tokens": 20},  # padded further
          # What only training looks at.
          {
              "loss.early_weight": 0.1, "probe.estimator": "own",
              "probe.answer_tokens": 1, "select.first_tokens": 40,
              "select.short_tokens": 50, "select.later_share": 0.5,
              "reward.overlong_tokens": 50,
          },
      ],
  )  # fmt: skip
  def test_runs_that_compare(self, trained, tmp_path, changes):
    other = tmp_path / "other"
    shutil.copytree(trained / "to_go", other)
    edit(other / "config.json", **changes)
    contestants = comparison.load(
        [trained / "grpo", other], "last", max_tokens=32
    )
    comparison._check_problems(contestants, "test")
    with pytest.raises(ConfigError, match="'tset': arithmetic has only"):
      comparison.judge(contestants, split="tset", problems=8, seeds=(0,))

  @pytest.mark.parametrize(
      ("which", "message"),
      [
          ("7", r"--checkpoint = '7': must be last, best or a step that"),
          ("x", r"keeps: \[0, 1, 2\]"),
      ],
  )
  def test_a_checkpoint_that_is_not_there(self, trained, which, message):
    with pytest.raises(ConfigError, match=message):
      comparison.load([trained / "grpo"], which)

  def test_the_best_checkpoint(self, trained):
    (contestant,) = comparison.load([trained / "grpo"], "best")
    assert contestant.checkpoint == sources.best(trained / "grpo").name

  def test_the_page_has_what_was_judged(self, judged, trained):
    folders = folders_of(trained)
    records = comparison.report(*judged, "test")
    reader = read_text(folders, timing=records)
    said = " ".join(" ".join(reader.text).split())
    _, rows = comparison.rows(records)
    for cell in itertools.chain(*rows):
      assert cell in said
    assert (
        "16 test problems of arithmetic in one process, 2 completions of each"
        " per"
    ) in said
    assert "Note:" not in said
    assert "Sampling:" not in said
    noted = [
        record | {"note": "other problems", "top_k": 20} for record in records
    ]
    reader = read_text(folders, timing=noted)
    said = " ".join(" ".join(reader.text).split())
    assert "Note: other problems." in said
    assert "Sampling: top-k 20." in said
    assert "deviation over 2 sampling seeds. Time per completion is" in said
    # Of one seed there is no spread to explain.
    single = [r | {"seeds": r["seeds"][:1]} for r in records]
    reader = read_text(folders, timing=single)
    assert "sampling seeds." not in " ".join(reader.text)

  @pytest.mark.mesh
  @pytest.mark.parametrize(
      ("mesh", "expected"),
      [
          ({"mesh.data": 4, "mesh.fsdp": 4}, (8, 1, 1)),  # it had 16 devices
          ({"mesh.data": 2, "mesh.fsdp": 4}, (2, 4, 1)),
          ({"mesh.data": -1, "mesh.fsdp": 2}, (4, 2, 1)),
      ],
  )
  def test_other_devices(self, trained, tmp_path, capsys, mesh, expected):
    """Nor need the prompts of a training step split over them."""
    other = tmp_path / "other"
    shutil.copytree(trained / "to_go", other)
    edit(other / "config.json", prompts_per_step=3, **mesh)
    (contestant,) = comparison.load([other], "last")
    assert tuple(contestant.parts.mesh.shape.values()) == expected
    fits = "does not fit" not in capsys.readouterr().out
    assert fits == (expected != (8, 1, 1))
    (policy,) = comparison.load([trained / "to_go"], "last")
    chex.assert_trees_all_equal(
        *jax.device_get((contestant.params, policy.params))
    )

  def test_longer_completions_can_be_asked_for(self, trained):
    (contestant,) = comparison.load([trained / "grpo"], "last", max_tokens=90)
    assert contestant.parts.cfg.rollout.max_tokens == 90

  def test_a_folder_that_cannot_be_written(self, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "x.json").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be written \(File exists"):
      comparison.outputs(tmp_path / "file" / "x")
    with pytest.raises(ConfigError, match=r"/x': x\.json is a folder"):
      comparison.outputs(tmp_path / "x")
    with pytest.raises(ConfigError, match="must end in a file name"):
      comparison.outputs(pathlib.Path())

  def test_a_broken_rule(self, trained):
    with pytest.raises(ConfigError, match=r"multiple of evaluation\.samples"):
      comparison.load([trained / "grpo"], "last", samples=3)


def test_the_page_without_eyes_or_mouse(drawn):
  reader, text = read(drawn)
  assert reader.of("html") == [{"lang": "en"}]
  assert len(reader.of("h1")) == 1
  assert "user-scalable" not in text and "maximum-scale" not in text
  headings = [int(tag[1]) for tag, _ in reader.elements if tag in
              ("h1", "h2", "h3", "h4")]  # fmt: skip
  assert all(b <= a + 1 for a, b in itertools.pairwise(headings))
  assert all(image["alt"].strip() for image in reader.of("img"))
  assert all(cell.get("scope") in ("col", "row") for cell in reader.of("th"))
  # One stop a completion; arrows move within it.
  stops = [a["tabindex"] for a in tokens_of(reader)]
  assert set(stops) == {"0", "-1"}
  assert stops.count("0") == sum(
      a.get("class") == "example" for a in reader.of("div")
  )
  assert '"keydown"' in text and "ArrowRight" in text
  # What a colour says is also said in words.
  assert {"more certain", "less certain"} <= set(reader.text)
  assert "Settings" in [a.get("aria-label") for a in reader.of("div")]

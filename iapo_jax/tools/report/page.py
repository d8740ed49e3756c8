"""The report page: figures, tables, and completions token by token.

Texts from models and data sets are untrusted. Jinja escapes all of them, and
the page's script reads only attributes of the page's own elements.
"""

import contextlib
import errno
import os
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import folder
from iapo_jax.run import evaluation
from iapo_jax.tools import comparison
from iapo_jax.tools.report import figures, heat, runs
from iapo_jax.tools.report.runs import Group


def write(
    folders: Mapping[str, Sequence[pathlib.Path]],
    output: pathlib.Path,
    *,
    title: str,
    timing: Sequence[Mapping[str, Any]] = (),
) -> pathlib.Path:
  """Writes index.html and a PNG of every figure; returns the page's path.

  Args:
    folders: runs by label; several runs of one label are seeds of one setting.
    output: folder of the page, created if missing.
    title: of the page.
    timing: records of `comparison.report` from one judgement.

  Raises:
    ConfigError: if a folder holds no run, or `output` cannot be written.
  """
  groups = runs.read_groups(folders)
  page = output / "index.html"
  with _writing(output):  # finds out before the work whether it can
    output.mkdir(parents=True, exist_ok=True)
    if page.is_dir():
      raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
  pictures = figures.all_of(groups)
  html = render(groups, pictures, title=title, timing=timing)
  with _writing(output):
    for picture in pictures:
      (output / f"{picture.name}.png").write_bytes(picture.png)
    # A lone surrogate in a log has no UTF-8 form: it is shown as its escape.
    files.write_text(page, html, errors="backslashreplace")
  return page


@contextlib.contextmanager
def _writing(output: pathlib.Path) -> Iterator[None]:
  """Raises ConfigError if the page's folder cannot be written."""
  try:
    yield
  except OSError as error:
    raise ConfigError(
        f"--output = {str(output)!r}: must be a folder that can be written"
        f" ({error.strerror})"
    ) from error


def render(
    groups: Sequence[Group],
    pictures: Sequence[figures.Picture],
    *,
    title: str,
    timing: Sequence[Mapping[str, Any]] = (),
) -> str:
  """Returns the page as HTML; the arguments are those of `write`."""
  return heat.environment().get_template("page.html.j2").render(
      title=title,
      headlines=headlines(groups),
      rows=[_row(index, group) for index, group in enumerate(groups)],
      problems=sorted({n for g in groups for n in g.finished("problems")}),
      pictures=pictures,
      notes=_notes(groups, timing),
      warnings=[
          f"{group.label} ({run.folder.name}), {w['stage']} step {w['step']}:"
          f" {w['warning']}"
          for group in groups
          for run in group.runs
          for w in run.warnings
      ],
      chapters=[
          {
              "label": group.label,
              "examples": list(map(_example, runs.examples(group.runs[0]))),
          }
          for group in groups
      ],
      judged=_judged(timing),
      settings=_settings(groups),
  )

def headlines(groups: Sequence[Group]) -> list[str]:
  """Returns a sentence per result, compared with plain GRPO if it is there.

  A run that was evaluated otherwise than the GRPO run is not compared.
  """
  trained = [
      group
      for group in groups
      if group.runs[0].config["num_steps"] and group.finished("accuracy")
  ]
  control = next(
      (g for g in trained if g.runs[0].config["credit.mode"] == "grpo"), None
  )
  if len(trained) == 1:
    control = None  # there is nothing to compare

  def result(group: Group) -> list[float]:
    metrics = ("mean_tokens", "accuracy")
    return [statistics.mean(group.finished(metric)) for metric in metrics]

  said = []
  for group in trained:
    if group is control:
      continue
    tokens, accuracy = result(group)
    text = f"{group.label}: {tokens:.1f} tokens at accuracy {accuracy:.3f}"
    if control and not _sampled_apart([group, control]):
      base_tokens, base_accuracy = result(control)
      text += (
          f"; {control.label}: {base_tokens:.1f} at {base_accuracy:.3f}"
          f" ({_signed(100 * (tokens / base_tokens - 1), 0)} % tokens,"
          f" {_signed(100 * (accuracy - base_accuracy), 1)} points)"
      )
    said.append(text + ".")
  return said


def _signed(value: float, digits: int) -> str:
  """Formats with a sign, except for zero after rounding."""
  text = f"{value:+.{digits}f}"
  if float(text) == 0:
    text = text[1:]
  return text.replace("-", "−")


def _row(index: int, group: Group) -> dict[str, Any]:
  """Returns a group's row of test results, with its colour in the figures."""
  cells = {
      "accuracy": ".3f", "mean_tokens": ".1f", "mean_reasoning_tokens": ".1f",
      "mean_answer_tokens": ".1f", "format_rate": ".3f", "cut_rate": ".3f",
  }  # fmt: skip
  texts = []
  for metric, style in cells.items():
    found = runs.mean_and_error(group, metric)
    text = "–" if found is None else format(found[0], style)
    if found and found[1] is not None and metric.startswith(("acc", "mean_t")):
      text += f" ±\N{NO-BREAK SPACE}{format(found[1], style)}"
    texts.append(text)
  seeds, finished = len(group.runs), len(group.finished("accuracy"))
  count = f"{finished} of {seeds} finished" if finished < seeds else str(seeds)
  return {
      "label": group.label,
      "light": figures.colour(index, figures.LIGHT),
      "dark": figures.colour(index, figures.DARK),
      "cells": [*texts, count],
  }


def _notes(
    groups: Sequence[Group], records: Sequence[Mapping[str, Any]]
) -> list[str]:
  """Returns the notes that the numbers need, once each."""
  summaries = [run.summary for group in groups for run in group.runs]
  notes = [entry.get("note") for entry in [*summaries, *records] if entry]
  apart = _sampled_apart(groups)
  notes += [
      f"config.{field} is {' or '.join(map(str, values))}: the runs were"
      " evaluated differently, and their test results do not compare"
      for field, values in apart.items()
  ]
  notes += [
      f"{group.label}: the weights that it began with"
      f" {folder.describe_quantised(run.quantised)}"
      for group in groups
      for run in group.runs
      if run.quantised
  ]
  config = groups[0].runs[0].config
  text = evaluation.sampled({
      name: config[f"evaluation.{name}"] for name in evaluation.SAMPLING
  })
  notes += [f"sampling of evaluations: {text}"] if text and not apart else []
  return list(dict.fromkeys(note for note in notes if note))


def _sampled_apart(groups: Sequence[Group]) -> dict[str, list[Any]]:
  """Returns the fields that make evaluations differ, and their values."""
  configs = [group.runs[0].config for group in groups]
  values = {
      field: list(dict.fromkeys(config.get(field) for config in configs))
      for field in comparison.SAMPLED_BY
  }
  return {field: found for field, found in values.items() if len(found) > 1}


def _judged(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the table of an evaluation and a description of its samples."""
  if not records:
    return {}
  first = records[0]
  heads, rows = comparison.rows(records)
  samples = int(first["mean"]["samples"])
  return {
      "columns": heads,
      "rows": [{"label": label, "cells": cells} for label, *cells in rows],
      "problems": (
          f"{first['mean']['problems']:.0f} {first['split']} problems of"
          f" {first['task']}"
      ),
      "samples": f"{samples} completion{'s' if samples > 1 else ''}",
      "seeds": len(first["seeds"]),
      "batch": first["batch_size"],
      "sampling": evaluation.sampled(first),
  }


def _settings(groups: Sequence[Group]) -> list[dict[str, Any]]:
  """Returns the seeds and the fields that differ; all fields of one group."""
  configs = [group.runs[0].config for group in groups]
  seeds = [
      ", ".join(str(run.config["seed"]) for run in group.runs)
      for group in groups
  ]
  rows = [{"name": "seed", "values": seeds}]
  for name in dict.fromkeys(name for config in configs for name in config):
    values = [config.get(name) for config in configs]
    apart = any(value != values[0] for value in values)
    if name != "seed" and (apart or len(groups) == 1):
      rows.append({"name": name, "values": [str(v) for v in values]})
  return rows


def _example(record: Mapping[str, Any]) -> dict[str, Any]:
  information, group = record["information"], record["group_advantage"]
  details = [
      {
          "entropy": f"{entropy:.3f}",
          "advantage": f"{advantage:+.3f}",
          "credit": f"{advantage - group:+.3f}",
      }
      for entropy, advantage in zip(
          record["entropies"], record["advantages"], strict=True
      )
  ]
  return {
      "step": record["step"],
      "prompt": record["prompt"],
      "gold": record["gold"],
      "correct": record["correct"],
      "reward": f"{record['reward']:+.1f}",
      "group": f"{group:+.3f}",
      "reasoning": record["reasoning_tokens"],
      # Records of an older version lack both.
      "answer": record.get("answer_tokens", "–"),
      "cut": not record.get("ended", True),
      "scale": f"{heat.scale_of(information):.2f}" if information else "",
      "tokens": heat.tokens(
          record["tokens"], information, record["answer_entropies"], details,
          reasoning=record["reasoning_tokens"],
      ),
  }

"""Markdown tables."""

from collections.abc import Iterable


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  """Returns a Markdown table, one line per row; cells may hold any text."""
  head = list(head)
  lines = [_row(head), "|---" * len(head) + "|", *map(_row, rows)]
  return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
  return "|" + "".join(f" {_cell(cell)} |" if cell else " |" for cell in cells)


def _cell(text: str) -> str:
  return " ".join(text.replace("|", "\\|").split())

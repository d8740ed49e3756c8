"""Tables that can be pasted into a page."""

from collections.abc import Iterable


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  """A table of Markdown, each row on one line.

  Args:
    head: names of the columns.
    rows: their cells; any text.

  Returns:
    The lines.
  """
  head = list(head)
  lines = [_row(head), "|---" * len(head) + "|", *map(_row, rows)]
  return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
  return "|" + "".join(f" {_cell(cell)} |" if cell else " |" for cell in cells)


def _cell(text: str) -> str:
  return " ".join(text.replace("|", "\\|").split())

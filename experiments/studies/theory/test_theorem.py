"""The committed results of theorem.py, computed again in part."""

import json
import pathlib

import jax
import theorem_instances
import theorem_study

ROOT = pathlib.Path(__file__).parents[3]


def test_evidence_is_what_the_study_finds():
  """One cell of the committed results again, and the tables of the page."""
  kept = json.loads((ROOT / "docs/evidence/theorem.json").read_text())
  settings = kept["settings"]
  families = {
      family.name: family
      for family in theorem_instances.all_families(
          settings["instances"], settings["seed"]
      )
  }
  assert {name: f.text for name, f in families.items()} == kept["families"]
  name = "to_go, γ .9 (default)"
  with jax.enable_x64(True):
    family = families["filler first"]
    again = theorem_study.study(family, name, 1, settings["rate"])
  for key, value in again.items():
    if key.startswith(("update", "natural", "credit")):
      assert value == kept["results"]["filler first"][name][key]
  page = (ROOT / "docs/theory.md").read_text()
  assert theorem_study.table(kept["results"]) in page
  assert theorem_study.family_table(kept["results"], "update_both") in page

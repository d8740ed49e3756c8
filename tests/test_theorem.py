"""The committed results of experiments/studies/theory/theorem.py, computed again in part."""

import json
import pathlib

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent


def test_evidence_is_what_the_study_finds():
  """One cell of the committed results again, and the tables of the page."""
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / "experiments")
    import theorem_instances
    import theorem_study
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

from iapo_jax.core import markdown


def test_a_table_by_hand():
  assert markdown.table(("", "a b"), [("x|y", "1\n 2"), ("z", "")]) == (
      "| | a b |\n"
      "|---|---|\n"
      "| x\\|y | 1 2 |\n"
      "| z | |"
  )  # fmt: skip


def test_a_table_of_nothing():
  assert markdown.table(("a",), ()) == "| a |\n|---|"

"""The problem families of reasoning-gym, as far as runs must know them.

Every scorer of version 0.1.25 was read and tried for this table. A scorer that
evaluates answers as Python gets only answers that are spelled in a few
harmless characters (`spelled`): these name nothing that can be called but
functions of mathematics.
"""

import dataclasses
import re

VERSION = "0.1.25"
_ONE = (
    "ab", "advanced_geometry", "aiw", "arc_1d", "arc_agi", "base_conversion",
    "basic_arithmetic", "bf", "binary_alternation", "bitwise_arithmetic",
    "caesar_cipher", "calendar_arithmetic", "chain_sum", "circuit_logic",
    "color_cube_rotation", "count_bits", "count_primes", "course_schedule",
    "decimal_arithmetic", "decimal_chain_sum", "dice", "emoji_mystery",
    "family_relationships", "figlet_font", "fraction_simplification",
    "futoshiki", "game_of_life", "gcd", "gsm_symbolic", "knights_knaves",
    "largest_island", "lcm", "leg_counting", "letter_counting",
    "letter_jumble", "list_functions", "mahjong_puzzle", "manipulate_matrix",
    "maze", "mini_sudoku", "modulo_grid", "needle_haystack",
    "number_filtering", "number_format", "number_sequence", "number_sorting",
    "path_star", "pool_matrix", "power_function", "products", "rearc",
    "rectangle_count", "rotate_matrix", "rotten_oranges", "self_reference",
    "sentence_reordering", "simple_equations", "simple_geometry",
    "spell_backward", "string_manipulation", "string_splitting",
    "string_synthesis", "sudoku", "survo", "syllogism", "time_intervals",
    "tsumego", "word_sequence_reversal", "word_sorting", "zebra_puzzles",
)  # fmt: skip
_SEVERAL = (
    "boxnet", "cryptarithm", "graph_color", "group_anagrams", "jugs",
    "kakurasu", "palindrome_generation", "palindrome_partitioning",
    "polynomial_equations", "prime_factorization", "propositional_logic",
    "quantum_lock", "rubiks_cube", "rush_hour", "shortest_path", "sokoban",
    "tower_of_hanoi",
)  # fmt: skip
_LISTS = r"[\[\]\s,0-9-]*"  # of numbers
# Without Integral, with which every question would answer itself.
_MATHEMATICS = (
    r"(?:\b(?:sin|cos|tan|cot|sec|csc|asin|acos|atan|sinh|cosh|tanh|exp|log|ln"
    r"|sqrt|pi|[A-Za-z])\b|(?<=[0-9])\.|\.(?=[0-9])|[0-9\s+*/()-])*"
)
_HASHED = (
    "its problems change with Python's hash seed, from process to process"
)
REFUSED = {
    "acre": "its problems change with their number, so that no split is a range"
    " of indices",
    "codeio": "it executes programs that come with it to make problems, and"
    f" {_HASHED}",
    "coin_flip": "its scorer takes every answer within 0.0001, so that 0 is"
    " right in most problems",
    "composite": "name its families themselves, such as"
    " leg_counting:2,chain_sum",
    "game_of_life_halting": "its scorer takes any text as the right answer",
    "isomorphic_strings": _HASHED,
    "knight_swap": _HASHED,
    "polynomial_multiplication": _HASHED,
    "puzzle24": "its scorer takes any four numbers, so that one answer is right"
    " in every problem",
    "ransom_note": _HASHED,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
  """What a run must know of a family.

  Attributes:
    one_answer: whether a problem has one right answer, which the family gives.
    spelled: a pattern of the answers that its scorer may see, as a whole; all
      others are wrong.
    indices: number of problems of a seed.
  """

  one_answer: bool
  spelled: str = r"(?s:.*)"
  indices: int = 1_000_000

  def may_score(self, answer: str) -> bool:
    """Returns whether the scorer may see an answer; takes linear time."""
    return re.fullmatch(self.spelled, answer) is not None


def known() -> dict[str, Family]:
  """Returns the families that runs may use, by name."""
  families = dict.fromkeys(_ONE, Family(True))
  families |= dict.fromkeys(_SEVERAL, Family(False))
  families |= {
      "binary_matrix": Family(True, _LISTS),
      "complex_arithmetic": Family(True, "[^nN]*"),  # it takes nan for right
      # Without powers, whose numbers have no bound.
      "countdown": Family(False, r"(?:(?!\*\*|//)[0-9\s+*/()-])*"),
      "intermediate_integration": Family(False, _MATHEMATICS),
      "n_queens": Family(False, r"[\[\]\s,'\"Q_]*"),
      "simple_integration": Family(False, _MATHEMATICS),
      "spiral_matrix": Family(True, _LISTS),
      "string_insertion": Family(True, r"[\[\]\s,'\"A-E]*"),
      "word_ladder": Family(False, indices=20_000),
  }
  return families

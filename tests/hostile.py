"""Completions of somebody who means harm, or of a policy gone mad."""

TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<answer", "</think")
LATEX = (
    r"\boxed{", r"\fbox {", "}", "{", r"\frac{1}{", r"\sqrt[", "]", r"\left(",
    r"\text{", "$", "$$", r"\begin{matrix}", r"\infty", "^{", "_", "\\",
)  # fmt: skip
SUMS = (
    "2", "4", "=", "+", "-", "−", "1/0", "10^10^10", "9" * 400, "0x1F", "1e999",
    "nan", "½", "٣", "x!", "1,000", "3.14", "answer is", "(", ")", "[", "|",
)  # fmt: skip
MARKUP = (
    "<script>alert(1)</script>", '"><img src=x onerror=y>', "{{ 7 * 7 }}",
    "{% raw %}", "</style>", "<!--", "]]>", "&lt;", "' onmouseover='x",
)  # fmt: skip
TERMINAL = (
    "\x1b[2J", "\x1b]0;title\x07", "\x1b[31m", "\x00", "\x7f", "\x9b", "\b",
    "\r", "\n", "\t", "\f", "\v", "\x85", "\u2028", "\u2029", "\u202e",
    "\ufeff", "\u200b",
)  # fmt: skip
FORMULAS = ("=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", '",,"', ";")
BROKEN = ("\ud800", "\udfff", "\ufffd", "\U0010ffff", "e\u0301" * 30)
PIECES = (*TAGS * 3, *LATEX, *SUMS, *MARKUP, *TERMINAL, *FORMULAS, *BROKEN)


def whole(text):
  """With one character for a pair of surrogates, as JSON has it."""
  return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def pieces(rng):
  """The texts of a completion's tokens, of which few make up one of 1 MB."""
  if rng.random() < 1 / 2000:
    piece = rng.choice((*PIECES, "a"))
    return [piece * (2**20 // len(piece))]
  found = [rng.choice(PIECES) for _ in range(rng.randrange(40))]
  shape = rng.random()
  if shape < 0.5:  # an answer is found in it, and compared
    middle = whole("".join(found[: rng.randrange(12)]))
    found += ["</think>", "<answer>", middle, "</answer>"]
  if shape < 0.05:
    found = [rng.choice(PIECES)] * rng.randrange(3000)
  return found


def golds():
  """Answers that completions are compared with."""
  return ("4", r"\frac{1}{2}", "-3.5", "(1, 2)", "x^2+1", "A", "1,000")

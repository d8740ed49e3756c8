r"""One spelling of an answer: LaTeX without wrappers, cosmetics and synonyms.

Every pattern reads at most `LONGEST` characters, and backtracks over each match
at most a constant number of times.
"""

import re
import unicodedata

# Longer answers count as wrong without being read. The longest gold answer of
# GSM8K, MATH-500, DAPO-Math-17k and AIME has fewer than 80 characters.
LONGEST = 1000

_INVISIBLE = re.compile(r"[\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff]")
_SYMBOLS = {
    **dict.fromkeys("−–—‒﹣－", "-"),
    **dict.fromkeys("×⋅·∙", r"\times "),
    **dict.fromkeys("÷∕⁄／", "/"),
    **dict.fromkeys("\u00a0\u2009\u202f\u3000", " "),
    **dict.fromkeys("′’‘", "'"),
    **dict.fromkeys("”“", '"'),
    "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "±": r"\pm ",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ",
    "∅": r"\emptyset ", "∈": r"\in ", "％": "%", "＝": "=", "，": ",",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ",
}  # fmt: skip
_TRANSLATION = str.maketrans(_SYMBOLS)
_VULGAR = re.compile(r"[¼-¾⅐-⅞]")
_SUPERSCRIPT = re.compile(r"[⁻⁺]?[⁰¹²³⁴-⁹]+")
_SUBSCRIPT = re.compile(r"[₀-₉]+")
_ROOT = re.compile(r"√\s*(\d+(?:\.\d+)?|[A-Za-z]|(?=\())")
_CALLED_ROOT = re.compile(r"(?<![\\A-Za-z])sqrt\s*(?=[({])")
_PARENTHESISED_ROOT = re.compile(r"\\sqrt\s*\(([^()]*)\)")

_DOUBLED = re.compile(r"\\\\(?=[A-Za-z]{2}|[{}%$])")
_THOUSANDS = re.compile(r"\{,\}|,\s*\\[!,]\s*(?=\d{3})")
_RELATIONS = (
    (re.compile(r"\\not\s*=|!=|=/=|=\\=|<>"), r"\\ne "),
    (re.compile(r">\s*=|=>"), r"\\ge "),
    (re.compile(r"<\s*="), r"\\le "),
    (re.compile(r"~\s*="), r"\\approx "),
    (re.compile(r"[:=]="), "="),
)
_BOLD = re.compile(r"(?<![\w)\]}*])\*\*(?=\S)([^*]+)\*\*(?![\w({*])")
_INLINE = re.compile(r"(?<!\\)\$([^$\\\s](?:[^$]*[^$\\\s])?)\$(?!\d)")
_PARENTHESISED = re.compile(r"\\\((.*?)\\\)")
_FUNCTIONS = re.compile(
    r"(?<![\\A-Za-z{])(pi|sin|cos|tan|cot|sec|csc|ln|log)(?=[\s(\d]|$)"
)
_TEXT_NUMBER = re.compile(r"\\text\s*\{\s*([^{}\\]*\d[^{}\\]*)\}")
_LETTER_TEXT = re.compile(r"\\text\s*\{\s*([ie])\s*\}")
_SPACES = re.compile(
    r"(?<!\\)\\[,;:! ]|\\q?quad(?![A-Za-z])|\\(?:h|v)space\{[^{}]*\}|~"
)
_COSMETIC = re.compile(
    r"\\(?:displaystyle|textstyle|limits|nolimits|left|right"
    r"|[bB]igg?[lrm]?)(?![A-Za-z])\s*"
)
_TEXT = re.compile(
    r"\\(?:textbf|textit|textrm|textsf|texttt|textnormal|mbox|hbox|mathrm"
    r"|mathbf|mathit|mathsf|mathtt|operatorname)(?=\s*\{)"
)
_FRACTION = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_BARE_FRACTION = re.compile(
    r"\\frac\s*(?:(\d)\s*(\d)|(\d)\s*(?=\{)|(\{[^{}]*\})\s*(\d))"
)
_BARE_ROOT = re.compile(r"\\sqrt\s*(\d)")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degrees?\b")
_SYNONYMS = re.compile(
    r"\\(cdot|ast|leq|geq|neq|lbrace|rbrace|lbrack|rbrack|colon|varnothing"
    r"|dollar|percent|infin|lparen|rparen|setminus)(?![A-Za-z])"
)
_SYNONYM_OF = {
    "cdot": r"\times ", "ast": r"\times ", "leq": r"\le ", "geq": r"\ge ",
    "neq": r"\ne ", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[",
    "rbrack": "]", "colon": ":", "varnothing": r"\emptyset ",
    "dollar": r"\$", "percent": "%", "infin": r"\infty ", "lparen": "(",
    "rparen": ")", "setminus": r"\backslash ",
}  # fmt: skip

_LEAD_IN = re.compile(
    r"^(?:\\text\s*\{\s*)?"
    r"(?:(?:so|thus|hence|therefore|then|and|finally)\b[,:]?\s*)?"
    r"(?:the\s+)?(?:(?:final|correct|right|exact)\s+)?"
    r"(?:answer|result|solution|value|total)\s*(?:is\b|:|=)\s*:?\s*\}?\s*"
    r"|^#{1,6}\s+",
    re.IGNORECASE,
)
_WRAPPERS = (
    ("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"),
    ("__", "__"), ("```", "```"), ("`", "`"), ('"', '"'), ("'", "'"),
)  # fmt: skip


def normalise(text: str) -> str:
  r"""Normalises an answer of at most `LONGEST` characters.

  The result is LaTeX with single blanks: fractions as `\frac{a}{b}`, roots as
  `\sqrt{a}`, products as `\times`, words of any text command as `\text{...}`,
  degrees as `^\circ`; commands of spacing and size are gone.
  """
  text = _INVISIBLE.sub("", text)
  text = _VULGAR.sub(_spell_vulgar, text)
  text = _SUPERSCRIPT.sub(lambda m: "^{" + _plain(m.group()) + "}", text)
  text = _SUBSCRIPT.sub(lambda m: "_{" + _plain(m.group()) + "}", text)
  text = text.translate(_TRANSLATION)
  text = unicodedata.normalize("NFKC", text)
  text = _unwrap(_BOLD.sub(r"\1", text))
  text = _PARENTHESISED.sub(r"\1", _INLINE.sub(r"\1", text))
  if "\\begin" not in text:  # in a matrix, `\\` ends a row
    text = _DOUBLED.sub(r"\\", text)
  for pattern, relation in _RELATIONS:
    text = pattern.sub(relation, text)
  text = _THOUSANDS.sub(",", text).replace("\\!", "")
  text = _SPACES.sub(" ", text)
  text = _COSMETIC.sub("", text)
  text = _LETTER_TEXT.sub(r"\1", _TEXT.sub(r"\\text", text))
  text = _FUNCTIONS.sub(r"\\\1 ", text)
  text = _FRACTION.sub(r"\\frac", text)
  text = _SYNONYMS.sub(lambda m: _SYNONYM_OF[m.group(1)], text)
  text = _ROOT.sub(lambda m: rf"\sqrt{{{m.group(1)}}}" if m.group(1) else
                   r"\sqrt", text)  # fmt: skip
  text = _CALLED_ROOT.sub(r"\\sqrt", text)
  text = _PARENTHESISED_ROOT.sub(r"\\sqrt{\1}", text)
  text = _BARE_FRACTION.sub(_brace_fraction, text)
  text = _BARE_ROOT.sub(r"\\sqrt{\1}", text)
  text = _DEGREES.sub(r"^\\circ ", text)
  text = text.replace(r"\%", "%").replace("**", "^")
  text = _unwrap(" ".join(text.split()))
  number = _TEXT_NUMBER.fullmatch(text)
  return number.group(1).strip() if number else text


def _plain(text: str) -> str:
  return unicodedata.normalize("NFKC", text).translate(_TRANSLATION)


def _spell_vulgar(match: re.Match[str]) -> str:
  """Writes ½ as a fraction; after digits it is part of a mixed number."""
  above, _, below = unicodedata.normalize("NFKC", match.group()).partition("⁄")
  return rf" \frac{{{above}}}{{{below}}}"


def _brace_fraction(match: re.Match[str]) -> str:
  r"""Adds the braces that \frac12, \frac1{23} and \frac{12}3 leave out."""
  if match.group(1):
    return rf"\frac{{{match.group(1)}}}{{{match.group(2)}}}"
  if match.group(3):
    return rf"\frac{{{match.group(3)}}}"
  return rf"\frac{match.group(4)}{{{match.group(5)}}}"


def _unwrap(text: str) -> str:
  """Removes markup, quotes, stops and lead-ins around an answer."""
  while True:
    before = text
    text = _LEAD_IN.sub("", text.strip()).strip().removeprefix("=")
    text = _strip_stops(text)
    for opening, closing in _WRAPPERS:
      inner = text[len(opening) : -len(closing)]
      wrapped = text.startswith(opening) and text.endswith(closing)
      if wrapped and inner.strip() and closing not in inner:
        text = inner.strip()
        break
    if text == before:
      return text


def _strip_stops(text: str) -> str:
  """Removes the punctuation that ends a sentence."""
  stripped = text.rstrip(" .,;:")
  if re.search(r"[A-Za-z]!$", stripped):  # after a digit, ! is a factorial
    stripped = stripped[:-1]
  # A removed `,` or `;` after a backslash was a space command.
  return stripped[:-1] if stripped.endswith("\\") else stripped

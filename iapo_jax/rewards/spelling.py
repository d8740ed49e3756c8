r"""Normalises answers to LaTeX without wrappers, cosmetics and synonyms.

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
    "∛": "cbrt", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "±": r"\pm ",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ",
    "∅": r"\emptyset ", "∈": r"\in ", "％": "%", "＝": "=", "，": ",",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ",
}  # fmt: skip
_TRANSLATION = str.maketrans(_SYMBOLS)
_VULGAR = re.compile(r"[¼-¾⅐-⅞]")
_SUPERSCRIPT = re.compile(r"[⁻⁺]?[⁰¹²³⁴-⁹]+")
_SUBSCRIPT = re.compile(r"[₀-₉]+")
_BOLD = re.compile(r"(?<![\w)\]}*])\*\*(?=\S)([^*]+)\*\*(?![\w({*])")
_INLINE = re.compile(r"(?<!\\)\$([^$\\\s](?:[^$]*[^$\\\s])?)\$(?!\d)")
_PARENTHESISED = re.compile(r"\\\((.*?)\\\)")
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z]{2}|[{}%$])")
_TEXT_NUMBER = re.compile(r"\\text\s*\{\s*([^{}\\]*\d[^{}\\]*)\}")
_TEXT_WORDS = re.compile(r"\\text\s*\{([^{}]*)\}")
_SYNONYMS = {
    "cdot": r"\times ", "ast": r"\times ", "leq": r"\le ", "geq": r"\ge ",
    "neq": r"\ne ", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[",
    "rbrack": "]", "colon": ":", "varnothing": r"\emptyset ",
    "dollar": r"\$", "percent": "%", "infin": r"\infty ", "lparen": "(",
    "rparen": ")", "setminus": r"\backslash ", "lvert": "|", "rvert": "|",
    "vert": "|", "lVert": r"\|", "rVert": r"\|", "Vert": r"\|",
}  # fmt: skip


_TEXT = r"\\text\s*\{[^{}]*\}"
_CONSTANTS = (
    "[Pp]i|PI|[Ii]nfinity|infty|inf|alpha|beta|gamma|delta|theta|lambda|mu|phi|rho"
    "|sigma|omega"
)
_FUNCTIONS = r"(?:arc|a)?(?:sin|cos|tan)|cot|csc|sinh|cosh|tanh|ln|log|exp"
# Names that are words or units unless an argument follows.
_CALLED = r"(?:max|min|gcd|lcm)(?=\s*\()|sec(?=\s*[(^xyz])"
# Calls whose parentheses LaTeX spells in another way.
_CALLS = {
    "cbrt": (r"\sqrt[3]{", "}"), "abs": ("|", "|"),
    "floor": (r"\lfloor ", r"\rfloor "), "ceil": (r"\lceil ", r"\rceil "),
}  # fmt: skip
_PARENTHESIS = re.compile(
    r"(?P<root>\\sqrt\s*(?:\[[^\[\]]*\])?)\s*\("
    rf"|(?<![\\A-Za-z])(?P<call>{'|'.join(_CALLS)})\s*\(|[()]"
)


def _command(match: re.Match[str]) -> str:
  """Writes the plain name of a function or constant as a command."""
  name = match.group(1)
  if not name:
    return match.group()  # words of a text
  if name.lower().startswith("inf"):
    name = "infty"
  elif name in ("Pi", "PI"):
    name = "pi"
  elif name in ("asin", "acos", "atan"):
    name = f"arc{name[1:]}"
  return rf"\{name} "


def _brace_root(match: re.Match[str]) -> str:
  """Writes √2 with braces; `_spell_calls` replaces the parentheses of √(."""
  return rf"\sqrt{{{match.group(1)}}}" if match.group(1) else r"\sqrt"


def _brace_fraction(match: re.Match[str]) -> str:
  r"""Adds the braces that \frac12, \frac1{23} and \frac{12}3 leave out."""
  if match.group(1):
    return rf"\frac{{{match.group(1)}}}{{{match.group(2)}}}"
  if match.group(3):
    return rf"\frac{{{match.group(3)}}}"
  return rf"\frac{match.group(4)}{{{match.group(5)}}}"


# Patterns and replacements, in the order in which they apply.
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\not\s*=|!=|=/=|=\\=|<>", r"\\ne "),
        (r">\s*=|=>", r"\\ge "),
        (r"<\s*=", r"\\le "),
        (r"~\s*=", r"\\approx "),
        (r":=", "="),
        # Thousands separators, blanks, and commands of spacing and size.
        (r"\{,\}|,\s*\\[!,]\s*(?=\d{3})", ","),
        (r"\\!|\\[hv]?phantom\s*\{[^{}]*\}", ""),
        (r"(?<!\\)\\[,;:! ]|\\q?quad(?![A-Za-z])|\\(?:h|v)space\{[^{}]*\}|~",
         " "),
        (r"\\(?:displaystyle|textstyle|limits|nolimits|left|right"
         r"|[bB]igg?[lrm]?)(?![A-Za-z])\s*", ""),
        # Words, numbers and functions in text.
        (r"\\(?:bm|boldsymbol)(?=\s*\{)", r"\\text"),
        (r"\\(?:textbf|textit|textrm|textsf|texttt|textnormal|mbox|hbox|mathrm"
         r"|mathbf|mathit|mathsf|mathtt|operatorname)(?=\s*\{)", r"\\text"),
        (r"\\text\s*\{\s*([ie])\s*\}", r"\1"),
        (rf"\\text\s*\{{\s*({_FUNCTIONS})\s*\}}", r"\\\1 "),
        (rf"{_TEXT}|(?<![\\A-Za-z])({_CONSTANTS}|{_FUNCTIONS}|{_CALLED})"
         r"(?![A-Za-z]|(?<=log)\d+\s*\()", _command),
        (rf"(?<![\\A-Za-z])({_FUNCTIONS})([xyz])(?![A-Za-z])", r"\\\1 \2"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (rf"\\({'|'.join(_SYNONYMS)})(?![A-Za-z])",
         lambda match: _SYNONYMS[match.group(1)]),
        # Roots, fractions and degrees.
        (r"(?:√|(?<![\\A-Za-z])sqrt)\s*(\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z])"
         r"|\\pi|(?=[({\[]))", _brace_root),
        (r"(?<![\\A-Za-z])cbrt\s*(\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z]))",
         r"\\sqrt[3]{\1}"),
        (r"\\frac\s*(?:(\d)\s*(\d)|(\d)\s*(?=\{)|(\{[^{}]*\})\s*(\d))",
         _brace_fraction),
        (r"\\sqrt\s*(\[[^\[\]]*\])?\s*(\d)", r"\\sqrt\1{\2}"),
        (r"\\([dt]?binom)\s*(\d)\s*(\d)", r"\\\1{\2}{\3}"),
        (r"\\log\s*_\s*\{?e\}?(?![A-Za-z])", r"\\ln "),
        (r"(?<![\\A-Za-z])log(2|10)\s*(?=\()", r"\\log_{\1}"),
        (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\times "),
        (r"(?<![\\A-Za-z])([xyztn])(sin|cos|tan|ln|log|exp)(?=\()",
         r"\1\\\2 "),
        # Matrices in round and in square brackets are the same.
        (r"\\(begin|end)\s*\{bmatrix\}", r"\\\1{pmatrix}"),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degrees?\b", r"^\\circ "),
        (r"\\%", "%"),
        (r"(?<![\d/])(\d+)\s?/\s?(\d+) (?=[A-Za-z\\(])", r"\\frac{\1}{\2} "),
        (r"\*\*", "^"),
        (r"\^\s*(\\sqrt(?:\[\w+\])?\{[^{}]*\}|\\frac\{[^{}]*\}\{[^{}]*\})",
         r"^{\1}"),
        (r"\^\s*-\s*(\d+|[A-Za-z])", r"^{-\1}"),
    )
)  # fmt: skip
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
  degrees as `^\circ`. It has no commands of spacing and size.
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
  for pattern, replacement in _REWRITES:
    text = pattern.sub(replacement, text)
  text = _spell_calls(text)
  text = _unwrap(" ".join(text.split()))
  number = _TEXT_NUMBER.fullmatch(text)
  return number.group(1).strip() if number else text


def untexted(text: str) -> str:
  r"""Replaces every `\text{words}` by its words."""
  return _TEXT_WORDS.sub(r"\1", text)


def _spell_calls(text: str) -> str:
  """Writes roots and the calls of `_CALLS` as LaTeX, if parentheses pair up."""
  pieces, closings, start = [], [], 0
  for match in _PARENTHESIS.finditer(text):
    opening, closing = match.group(), ")"
    if match["root"]:
      opening, closing = match["root"].rstrip() + "{", "}"
    elif match["call"]:
      opening, closing = _CALLS[match["call"]]
    if match.group() == ")":
      if not closings:
        return text
      opening = closings.pop()
    else:
      closings.append(closing)
    pieces += [text[start : match.start()], opening]
    start = match.end()
  return text if closings else "".join([*pieces, text[start:]])


def _plain(text: str) -> str:
  return unicodedata.normalize("NFKC", text).translate(_TRANSLATION)


def _spell_vulgar(match: re.Match[str]) -> str:
  """Writes ½ as a fraction; after digits it belongs to a mixed number."""
  above, _, below = unicodedata.normalize("NFKC", match.group()).partition("⁄")
  return rf" \frac{{{above}}}{{{below}}}"


def _unwrap(text: str) -> str:
  """Removes markup, quotes, stops and lead-ins around an answer."""
  while True:
    before = text
    text = _LEAD_IN.sub("", text.strip()).strip().removeprefix("=")
    text = _strip_stops(text)
    for opening, closing in _WRAPPERS:
      inner = text[len(opening) : -len(closing)]
      wrapped = text.startswith(opening) and text.endswith(closing)
      again = closing in inner.replace(r"\$", "")
      if wrapped and inner.strip() and not again:
        text = inner.strip()
        break
    if text == before:
      return text


def _strip_stops(text: str) -> str:
  """Removes the punctuation that ends a sentence."""
  stripped = text.rstrip(" .,;:")
  # After a digit or a variable, ! is a factorial.
  if re.search(r"(?:[A-Za-z]{2}|(?:^|\s)[A-Z])!$", stripped):
    stripped = stripped[:-1]
  # A removed `,` or `;` after a backslash was a space command.
  return stripped[:-1] if stripped.endswith("\\") else stripped

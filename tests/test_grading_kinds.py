r"""Kinds of answers that graders got wrong: right ones beside wrong ones.

Each table maps a gold answer to answers that are right and answers that are
wrong. In doubt an answer is wrong: a wrong "right" pays a policy to cheat.
"""

import pytest

from iapo_jax.rewards import grade

PARTS = {
    "x = 2, y = 3": (
        ["2, 3", "x = 2, y = 3", "y = 3, x = 2", "x=2 and y=3", "(2, 3)",
         "(x, y) = (2, 3)", "(y, x) = (3, 2)", r"x = 2 \text{ and } y = 3",
         "x = 1 + 1 = 2, y = 3", r"\begin{cases} x = 2 \\ y = 3 \end{cases}"],
        ["3", "2", "x = 2", "y = 3", "3, 2", "(3, 2)", "x = 3, y = 2",
         r"\{2, 3\}", "x = 2, 3", "x = 2, z = 3", "2, 3, 3", "2 + 3", "23",
         "(y, x) = (2, 3)"],
    ),
    r"x=1 \text{ or } x=-2": (
        ["1, -2", "-2, 1", "x = -2 or 1", "x = -2, x = 1", r"\{1, -2\}",
         "x = 1 or x = -2", r"x \in \{-2, 1\}", r"x_1 = -2, x_2 = 1"],
        ["1", "-2", "x = 1", "1, 2", "x = 1, x = 2", "y = 1, y = -2",
         "1, -2, 0", "-1, 2"],
    ),
    "1331 and 1728": (
        ["1331, 1728", "1728 and 1331", r"1331 \text{ and } 1728"],
        ["1728", "1331", "1331 and 1729", "13311728"],
    ),
    "a = 1, b = 2, c = 4": (
        ["1, 2, 4", "c = 4, a = 1, b = 2", "(1, 2, 4)"],
        ["4", "a = 1, b = 2", "1, 4, 2", "a = 1, b = 4, c = 2", "1, 2"],
    ),
    "x = 1, 2": (["1, 2", "2, 1", "x = 2, 1"], ["2", "x = 1"]),
    "2, 3": (
        ["3, 2", "x = 2, x = 3", "x = 2, y = 3", "x_1 = 3, x_2 = 2"],
        ["x = 3, y = 2", "2", "3"],
    ),
    "(x, y) = (2, 3)": (
        ["(2, 3)", "x = 2, y = 3"], ["(3, 2)", "3", "x = 3, y = 2"]
    ),
    "f(x) = x^2, g(x) = 2x": (
        ["g(x) = 2x, f(x) = x^2"], ["2x", "f(x) = 2x, g(x) = x^2"]
    ),
    "x + y = 3, x - y = 1": (
        ["x - y = 1, y + x = 3"], ["1", "3, 1", "x + y = 1, x - y = 3"]
    ),
    "2 + 3 = 5": (["5"], ["2", "3", "2 + 3 = 6"]),
}  # fmt: skip
SMALL = {
    r"\frac{1}{2^{99}}": (
        ["2^{-99}", r"\frac{2}{2^{100}}", r"0.5^{99}", r"(1/2)^{99}",
         r"\left(\frac12\right)^{99}"],
        [r"\frac{1}{2^{98}}", r"-\frac{1}{2^{99}}", "0", "2^{-100}",
         r"\frac{1}{2^{99}+1}", r"0.5^{98}"],
    ),
    r"\frac{1}{2^{54}}": (["2^{-54}"], [r"\frac{1}{2^{53}}", "0"]),
    r"\frac{1}{20!}": (
        [r"\frac{21}{21!}"], [r"\frac{1}{19!}", r"-\frac{1}{20!}", "0"]
    ),
    r"\left(\frac{1}{4}\right)^{30}": (
        ["2^{-60}", "0.25^{30}"], [r"\left(\frac{1}{4}\right)^{29}", "2^{-61}"]
    ),
    r"\frac{\sqrt{2}}{10^{30}}": (
        [r"\sqrt{2} \times 10^{-30}", r"\frac{2}{\sqrt{2} \times 10^{30}}"],
        [r"\frac{\sqrt{2}}{10^{29}}", r"\frac{\sqrt{3}}{10^{30}}", "0",
         r"-\frac{\sqrt{2}}{10^{30}}"],
    ),
    "e^{-100}": (
        [r"\frac{1}{e^{100}}", "exp(-100)"], ["e^{-101}", "-e^{-100}", "0"]
    ),
    r"\frac{x}{2^{99}}": (
        [r"2^{-99} x"], [r"\frac{x}{2^{98}}", "0", "-2^{-99} x"]
    ),
    r"10^{-500}": ([r"\frac{1}{10^{500}}"], ["10^{-501}", "0"]),
    "2^{100} + 1": (
        ["1267650600228229401496703205377"],
        ["2^{100}", "2^{100} + 2", "1267650600228229401496703205376"],
    ),
    r"\sqrt{10^{40} + 1}": ([r"\sqrt{1 + 10^{40}}"], ["10^{20}"]),
    r"x = \frac{1}{2^{80}}": (
        ["2^{-80}", "x = 2^{-80}"], ["x = 2^{-81}", "2^{-81}", "x = 0"]
    ),
    r"(\frac{1}{2^{80}}, 1)": (["(2^{-80}, 1)"], ["(2^{-81}, 1)", "(0, 1)"]),
    r"\sqrt{2}": (
        ["1.414214", "1.4142135", "1.41421356237"],
        ["1.4142", "1.414215", "1.414213562372"],
    ),
    r"\frac{\pi}{10^{8}}": (
        ["0.0000000314159265"], ["0", "0.00000003", "0.000000031", "0.0000001"]
    ),
    r"\frac{1}{3 \times 10^{9}}": ([], ["0", "0.000000000", "0.0000000003"]),
}  # fmt: skip
LETTERS = {
    "A": (
        ["A", "(A)", "A.", "a", "(a)", "Option A", r"\text{A}", "A is correct",
         "I think it is A", "The answer is (A).", "A. a desk", "A, I think",
         "I choose A", "A because the sum is 5"],
        ["A safe choice is B", "A desk", "A bus is red", "A or B", "A and B",
         "Not A", "A is wrong", "A = 5", "A + 1", "A^2", "AB", "An apple",
         "A = B", "f(A)", "I doubt A", "not option A"],
    ),
    "B": (
        ["A safe choice is B", "I am sure that it is B", "b", "option b",
         "B) not enough information", "B, because A is wrong",
         "The correct option is B", "I'd go with B", "it's B"],
        ["B or C", "B is not correct", "It is not B", "B/2", "2B", "B_1",
         "B. No, it is C", "A. No wait, B", "neither A nor B", "B = C",
         "(A) 5 (B) 6", "I think", "be"],
    ),
    "C": (
        ["I think it is C", "C", "Choice C", "The letter is C", "C. vitamin C"],
        ["I think it is D", "C + x", "C(5, 2)", "C, D", "C - D",
         "I think it is not C", "I think it is C or D", "cc"],
    ),
    "I": (
        ["I", "(I)", "Option I", "I.", "I is correct", r"\text{I}"],
        ["I don't know", "I think it is C", "I think", "I am", "II", "i", "1",
         "I'm not sure", "I choose A"],
    ),
    "K": (
        ["Option K", "K", "(K)", "I think it is K", "choice k", "(k)"],
        ["Options K and L", "Option L", "K or L", "OK", "Kate", "K = 5"],
    ),
    r"\text{(C)}": (["C", "(C)", "Option C"], ["D", "(D)", "c + 1"]),
    "A, C": (["C, A", "A and C"], ["A", "C", "A, B, C", "A, D"]),
}  # fmt: skip
PLAIN = {
    r"\frac{\pi}{2}": (
        ["pi/2", "π/2", "0.5pi", "pi / 2", "(pi)/2", "1/2 * pi",
         r"\frac{pi}{2}", "arcsin(1)", "asin(1)", "2pi/4"],
        ["pi/3", "2/pi", "pi", "2pi", "pi^2", "-pi/2", "p i / 2", "pie/2",
         "3.14/2", "pi/2 + 1"],
    ),
    r"\frac{9\pi}{16}": (
        ["9pi/16", "9*pi/16", "(9/16)pi", "9 pi / 16"],
        ["16pi/9", "9pi/15", "9/(16pi)", "9/16"],
    ),
    r"\pi^2": (["pi^2", "pi**2", "pi*pi", "π²"], ["2pi", "pi", "pi^3"]),
    r"(3, \frac{\pi}{2})": (["(3, pi/2)"], ["(pi/2, 3)", "(3, pi/3)"]),
    "e^{16} - 1": (
        ["-1 + exp(16)", "exp(16) - 1", "e^16-1", "e^(16) - 1", "exp 16 - 1",
         "e^{8} e^{8} - 1"],
        ["exp(16)", "exp(15)", "exp(16 - 1)", "16e - 1", "exp(16) + 1",
         "1 - exp(16)"],
    ),
    r"\arctan 2": (
        ["arctan(2)", "atan(2)", r"\tan^{-1}(2)", "arctan 2", "arctan2",
         r"\operatorname{arctan}(2)"],
        ["tan(2)", "arctan(3)", "arcsin(2)", "2", "arctan(-2)", "1/tan(2)"],
    ),
    r"\sqrt{2}": (
        ["sqrt2", "sqrt(2)", "sqrt 2", "√2", "√(2)", "2^(1/2)", "2^0.5",
         "sqrt{2}"],
        ["sqrt3", "sqrt", "2", "sqrt(2", "sqrt22", "-sqrt2"],
    ),
    r"\sqrt{23}": (["sqrt23", "sqrt(23)"], ["3sqrt2", r"\sqrt{2} 3"]),
    r"\frac{3\sqrt{5}}{2}": (
        ["3sqrt5/2", "3sqrt(5)/2", "(3/2)sqrt(5)", "sqrt(5)*3/2"],
        ["3sqrt(5/2)", "sqrt(5)/2", "3sqrt2/5"],
    ),
    r"3\ln 2": (
        ["3ln2", "3ln(2)", "ln(8)", "3 ln 2", "ln 8", r"\ln 2^3"],
        ["ln(6)", "ln2", "3log(3)", "2ln3"],
    ),
    r"2\sin x": (
        ["2sin(x)", "2 sin x", "2sinx", "sin(x) + sin(x)"],
        ["sin(2x)", "2cos(x)", "sin(x)", "2sin(y)", "2x sin"],
    ),
    r"\sqrt[3]{4}": (["cbrt(4)", "4^(1/3)", "∛4"], ["sqrt(4)", "4/3"]),
    r"\frac{1}{2\pi}": (["1/(2pi)"], ["pi/2", "2pi"]),
    r"\pi r^2": (["pi r^2", "pi*r^2", "r^2 pi"], ["pi r", "2pi r", "pi^2 r"]),
    r"(-\infty, 3)": (["(-infinity, 3)", "x < 3"], ["(infinity, 3)"]),
    "|x - 1|": (["abs(x-1)", r"\lvert x - 1\rvert"], ["x - 1", "|x + 1|"]),
    r"\sec x": (["sec(x)", "1/cos(x)"], ["cos(x)", "csc(x)"]),
    "x^{-1}": (["x^-1", "1/x", "x^(-1)"], ["-x", "x - 1", "x"]),
    "12": (["12 min", "12 sec", "max(3, 12)", "sqrt(144)"], ["12pi", "exp(12)"]),
}  # fmt: skip
MATRICES = {
    r"\begin{pmatrix}1\\2\end{pmatrix}": (
        [r"\left(\begin{array}{c}1\\2\end{array}\right)",
         r"\left[\begin{array}{c}1\\2\end{array}\right]",
         r"\begin{bmatrix} 1 \\ 2 \\ \end{bmatrix}",
         r"\left(\begin{pmatrix}1\\2\end{pmatrix}\right)",
         r"\left( \begin{matrix} 1 \\ 2 \end{matrix} \right)",
         r"\bigl(\begin{smallmatrix}1\\2\end{smallmatrix}\bigr)",
         r"\begin{pmatrix*}[r]1\\2\end{pmatrix*}",
         r"\pmatrix{1\cr 2}", r"\pmatrix{1 \cr 2 \cr}",
         r"\begin{bmatrix}1\\[4pt]2\end{bmatrix}",
         r"\begin{pmatrix}{1}\\{2}\end{pmatrix}",
         r"\mathbf{v} = \begin{pmatrix}1\\2\end{pmatrix}",
         r"\begin{psmallmatrix}1\\2\end{psmallmatrix}",
         r"$\begin{pmatrix}\frac{2}{2}\\2\end{pmatrix}$"],
        [r"\begin{pmatrix}2\\1\end{pmatrix}",
         r"\begin{pmatrix}1&2\end{pmatrix}",
         r"\left|\begin{array}{c}1\\2\end{array}\right|",
         r"\begin{vmatrix}1\\2\end{vmatrix}",
         r"\begin{Vmatrix}1\\2\end{Vmatrix}",
         r"\begin{pmatrix}1\\2\\0\end{pmatrix}",
         r"\begin{pmatrix}1\\-2\end{pmatrix}", "1, 2", r"\frac{1}{2}",
         r"\left(\begin{array}{c}1\\3\end{array}\right)",
         r"\begin{pmatrix}1\\2\end{pmatrix}, \begin{pmatrix}1\\2\end{pmatrix}",
         r"\begin{pmatrix}1\\2"],
    ),
    r"(\begin{pmatrix}1\\2\end{pmatrix})": (
        [r"\begin{pmatrix}1\\2\end{pmatrix}"],
        [r"\begin{pmatrix}2\\2\end{pmatrix}"],
    ),
    r"\left[\begin{array}{cc|c}1&2&3\\4&5&6\end{array}\right]": (
        [r"\begin{bmatrix}1&2&3\\4&5&6\end{bmatrix}",
         r"\begin{bmatrix}1&2&3\\\hline 4&5&6\end{bmatrix}"],
        [r"\begin{bmatrix}1&2\\3&4\\5&6\end{bmatrix}",
         r"\begin{bmatrix}1&2&3&4&5&6\end{bmatrix}",
         r"\begin{bmatrix}1&2&3&4\\5&6\end{bmatrix}"],
    ),
    r"\begin{vmatrix}1&2\\3&4\end{vmatrix}": (
        [r"\left|\begin{array}{cc}1&2\\3&4\end{array}\right|"],
        [r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"],
    ),
    r"\begin{pmatrix}1\\0\end{pmatrix}, \begin{pmatrix}0\\1\end{pmatrix}": (
        [r"\begin{bmatrix}0\\1\end{bmatrix}, \begin{bmatrix}1\\0\end{bmatrix}"],
        [r"\begin{pmatrix}1\\0\end{pmatrix}",
         r"\begin{pmatrix}1\\0\end{pmatrix}, \begin{pmatrix}1\\0\end{pmatrix}"],
    ),
    r"\begin{pmatrix}1/2^{80}\\2\end{pmatrix}": (
        [r"\begin{pmatrix}2^{-80}\\2\end{pmatrix}"],
        [r"\begin{pmatrix}2^{-81}\\2\end{pmatrix}"],
    ),
}  # fmt: skip
UNITS = {
    "9 chickens and 10 rabbits": (
        ["10 rabbits and 9 chickens", "9 chickens, 10 rabbits", "9, 10",
         r"9 \text{ chickens and } 10 \text{ rabbits}", "9 and 10",
         r"9\text{ chickens}, 10\text{ rabbits}"],
        ["10 chickens and 9 rabbits", "10, 9", "9 chickens", "10 rabbits",
         "9 rabbits and 10 chickens", "19", "9 chickens and 9 rabbits",
         "9 chickens, 10", r"\{9, 10\}"],
    ),
    r"3\text{ m}, 4\text{ cm}": (
        ["3 m, 4 cm", "4 cm, 3 m", "3, 4"], ["4 m, 3 cm", "4, 3", "3 m"]
    ),
    "2 hours 30 minutes": (
        ["2 hours and 30 minutes", "2 hours, 30 minutes",
         "30 minutes and 2 hours"],
        ["30 hours 2 minutes", "30 hours and 2 minutes", "2 hours", "32",
         "30 minutes"],
    ),
    r"\sqrt{2} \text{ cm and } 3 \text{ m}": (
        [r"3 \text{ m and } \sqrt{2} \text{ cm}", r"\sqrt{2}, 3"],
        [r"3 \text{ cm and } \sqrt{2} \text{ m}", r"3, \sqrt{2}"],
    ),
    "9 cm, 10 cm": (["10 cm, 9 cm", "10, 9", "9 and 10 cm"], ["9, 11", "9 cm"]),
    "3 and 5 apples": (["5 and 3 apples", "3, 5"], ["3", "8"]),
    "9, 10": (
        ["10, 9", "9 chickens and 10 rabbits"], ["10 chickens and 9 rabbits"]
    ),
    "Alice: 5, Bob: 3": (
        ["Bob: 3, Alice: 5"], ["Alice: 3, Bob: 5", "5", "3, 5"]
    ),
    r"\$5 and 3 apples": (
        ["3 apples and $5", "$5, 3 apples", "5, 3"], ["$3 and 5 apples"]
    ),
}  # fmt: skip
CLOCK = {
    r"\text{10:15 a.m.}": (
        [r"10:15 \text{ a.m.}", "10:15 a.m.", "10:15 AM", "10:15am",
         r"10{:}15 \text{ a.m.}", "at 10:15 a.m.", "10:15 A.M.",
         r"\text{10:15 am}", "10:15 in the morning"],
        [r"10:15 \text{ p.m.}", "10:15 p.m.", "10:16 a.m.", "10:15 PM",
         "11:15 a.m.", "10:51 a.m.", "10 a.m.", "10:15", "22:15", "10.15",
         "15:10 a.m.", r"\frac{2}{3}", "2:3"],
    ),
    "10 a.m.": (
        ["10:00 a.m.", "10 am", r"10 \text{ AM}", "10:00 AM"],
        ["10 p.m.", "10", "11 a.m.", "10:01 a.m.", "10 pm", "10 cm"],
    ),
    "3 PM": (["3:00 p.m.", "15:00", "3 p.m."], ["3 AM", "3:00", "13:00"]),
    "12:30 p.m.": (["12:30 PM"], ["12:30 a.m.", "0:30", "12:30"]),
    "12 noon": (["noon", "12:00 p.m.", "12 p.m."], ["midnight", "12 a.m."]),
    "9:05": (["09:05", "9:05"], ["9:50", "9:05 p.m.", "9:5", "9"]),
    "9 a.m. and 5 p.m.": (
        ["5 p.m. and 9 a.m.", "9:00 am, 5:00 pm"],
        ["5 a.m. and 9 p.m.", "9, 5", "9 a.m."],
    ),
    "2:3": (["4:6"], ["3:2", "2:5"]),
}  # fmt: skip
CODE = {
    "5": (
        ["5", "(5)", "2 + 3", "5 eggs", "sqrt(25)", "10/2", "|-5|"],
        ["[5]*10**8", "[5]", "[5]*1", "[5][0]", "5[1]", "print(5)", "int(5)",
         "int('5')", "lambda: 5", "5 # five", "5; import os", "5 // 1", "5 & 7",
         "len([1,2,3,4,5])", "eval('5')", "return 5", "5 if True else 6",
         "5 or 6", "'5'*1", "0x5", "0b101", "sum([2, 3])", "5 import sys",
         "range(5)", "5\n6", "4 1", "10%5", "5 print 5", "x - x + 5",
         "0*k + 5", "[2+3]", "(5,)", "5 != 6", "not 5", "5 @ 1", "5?",
         "<b>5</b>", "np.int64(5)", "Fraction(5)", "5 | 0", "~~5 ^ 0",
         "a[5]", "{'a': 5}", "f(5)", "SELECT 5", "${5}", "5 // five",
         "def f(): return 5", "5.real", r"\def\a{5}\a", "5 == 6", "--5--"],
    ),
    "0": (
        ["0", "1 - 1"],
        ["[0]*10**11", "0b101", "0x5", "0*x", "[0]", "[]", "''", "0 print",
         "None", "False", "null", "x - x", "0*print(5)", "()", "5 - five"],
    ),
    "15": (["15", "5*3"], ["[5]*3", "5[10]", "[5]3", "[15]"]),
    "11": (["5 + 6"], ["5 6", "5[6]", "5\n6"]),
    "6": (["3!", "5 + 1"], ["5[1]", "[5][1]", "5 1"]),
    "2x + 3": (
        ["3 + 2x", "2x+3", "x + x + 3"],
        ["lambda x: 2x + 3", "2*x + 3 # f", "f = lambda x: 2*x + 3",
         "[2x + 3]*1", "2x + 3; x", "return 2x + 3"],
    ),
}  # fmt: skip
PRODUCTS = {
    "xyz": (
        ["zyx", "yxz", "x y z", "x*y*z", r"x \cdot z \cdot y", "xzy"],
        ["xy", "xyzz", "x + y + z", "xyw", "2xyz", "x^2 y z", "XYZ", "xy + z"],
    ),
    "2ab": (["2ba", "ab2", "a2b", "b * 2a", "ab + ba"], ["2a + b", "ab", "2a"]),
    "abc": (["cab", "bca", "c b a"], ["ab", "abd", "a + b + c"]),
    "mn": (["nm", "m n"], ["m + n", "mm", "m", "n"]),
    r"\frac{xy}{z}": (["yx/z", "x/z * y"], ["xz/y", "zy/x"]),
    "x^2 y": (["yx^2", "x y x", "x^2*y"], ["xy^2", "x^2 + y"]),
    r"\pi r^2 h": (["h r^2 pi", r"r^2 h \pi"], ["pi r h^2", "pi r^2"]),
    "(x+1)(y-2)": (["(y-2)(x+1)", "xy - 2x + y - 2"], ["(x-1)(y+2)"]),
    # Words, and letters in an order that matters, are no products.
    "no": (["no", "No"], ["on", "n o"]),
    "was": (["was"], ["saw"]),
    "ABC": (["ABC"], ["CAB", "BCA"]),
    "east": (["East"], ["seat", "eats"]),
}  # fmt: skip
KINDS = {
    "parts": PARTS, "small": SMALL, "letters": LETTERS, "plain": PLAIN,
    "matrices": MATRICES, "units": UNITS, "clock": CLOCK, "code": CODE,
    "products": PRODUCTS,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_right_and_wrong_neighbours(kind):
  cases = [
      (gold, answer, expected)
      for gold, neighbours in KINDS[kind].items()
      for expected, answers in zip((True, False), neighbours, strict=True)
      for answer in answers
  ]
  graded = grade(
      [f"so</think>\n<answer>{answer}</answer>" for _, answer, _ in cases],
      [gold for gold, _, _ in cases],
      need_tags=True,
  )
  differ = [
      (*case, result.timed_out)
      for case, result in zip(cases, graded, strict=True)
      if result.correct != case[2]
  ]
  assert not differ

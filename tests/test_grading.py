"""Answers: found, spelled, compared; and the processes that compare them."""

import contextlib
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from multiprocessing import connection

import pytest
import tiny

from iapo_jax.config import formats
from iapo_jax.config.formats import FormatConfig
from iapo_jax.rewards import equivalence, grade, numbers, spelling, text
from iapo_jax.rewards import pool as pool_lib
from iapo_jax.rewards.pool import Pool

TAGS = FormatConfig()

CASES = pathlib.Path(__file__).parent / "grading"
GSM8K, MATH500 = tiny.SHARED / "gsm8k", tiny.SHARED / "math500"


def answered(answer):
  return f"so it is</think>\n<answer>{answer}</answer>"


def is_right(answer, gold):
  (result,) = grade([answered(answer)], [gold])
  return result.correct


@pytest.mark.parametrize(
    ("content", "boxed"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} or \boxed{2}", "2"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{x = \boxed{5}}", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),  # escaped braces do not nest
        (r"\boxed{5", None),
        (r"\boxed{1} \boxed{{2}", "1"),
        ("} } {5}", None),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_complete_box(content, boxed):
  assert text.last_boxed(content) == boxed


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("x</think><answer> 5 </answer>", "5"),
        (r"x</think><answer>it is \boxed{5}.</answer>", "5"),
        ("<answer>5</answer> or <answer>6</answer>", "6"),
        ("<answer>5</answer><answer> </answer>", None),
        ("<answer>5", None),
        (r"\boxed{5}</answer>", None),
        # Without any answer tag.
        (r"4 and 6</think> hence \boxed{5}", "5"),
        (r"\boxed{4}</think> 5", "5"),
        ("The answer is 5.", "5"),
        ("The answer is 5.\nNo answer issues.", "5"),
        ("The answer isn't 5.", "The answer isn't 5."),
        ("The answer is 4. No: the answer is $5$.", "$5$"),
        ("x = 5", "x = 5"),
        ("There are 3 of them, and with the other 2 that makes 5 of 9", "9"),
        ("", None),
        ("5</think> ", None),
    ],
)
def test_where_the_answer_is(completion, answer):
  found = text.find_answer(completion, TAGS, lenient=True)
  assert (found and found.text) == answer
  tagged = text.find_answer(completion, TAGS, lenient=False)
  # With tags the same; without, there is none in training.
  assert (tagged and tagged.text) == (answer if "<answer>" in completion else
                                      None)  # fmt: skip


@pytest.mark.parametrize(
    ("spelled", "normal"),
    [
        (r"$\dfrac{1}{2}$", r"\frac{1}{2}"),
        (r"\( \tfrac12 \)", r"\frac{1}{2}"),
        (r"\frac1{23}", r"\frac{1}{23}"),
        (r"\frac{12}3", r"\frac{12}{3}"),
        (r"\left( 1, 2 \right)", "( 1, 2 )"),
        ("**42**.", "42"),
        ("The final answer is: 42", "42"),
        ("\u221242", "-42"),
        ("2√3", r"2\sqrt{3}"),
        ("x²", "x^{2}"),
        ("3½", r"3 \frac{1}{2}"),
        (r"90^{\circ}", r"90^\circ"),
        (r"11,\! 111,\!100", "11,111,100"),
        (r"1{,}400", "1,400"),
        (r"\mathrm{cm}", r"\text{cm}"),
        (r"50\%", "50%"),
        (r"\$18", r"\$18"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
         r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"2 \cdot 3", r"2 \times 3"),
        ("5!", "5!"),  # a factorial, no exclamation
    ],
)  # fmt: skip
def test_one_spelling(spelled, normal):
  assert spelling.normalise(spelled) == normal
  assert spelling.normalise(normal) == normal


@pytest.mark.parametrize(
    ("spelled", "values"),
    [
        ("1400", [1400]),
        ("1,400", [1400]),
        ("1 400", [1400]),
        ("1,40", []),  # a list, or a slip
        ("-3", [-3]),
        ("+3.50", [Fraction(7, 2)]),
        (".5", [Fraction(1, 2)]),
        ("5.", [5]),
        ("3/4", [Fraction(3, 4)]),
        (r"\frac{3}{4}", [Fraction(3, 4)]),
        # 1 + 1/2 and -(1 + 1/2).
        (r"1 \frac{1}{2}", [Fraction(3, 2)]),
        (r"-1\frac{1}{2}", [Fraction(-3, 2)]),
        ("1 1/2", [Fraction(3, 2)]),
        ("1/0", []),
        # Half of one, or fifty of a hundred.
        ("50%", [50, Fraction(1, 2)]),
        ("50 percent", [50, Fraction(1, 2)]),
        ("18 dollars", [18]),
        (r"\$18", [18]),
        ("-$18", [-18]),
        (r"15\text{ cm}^2", [15]),
        ("5 square units", [5]),
        (r"90^\circ", [90]),
        ("3 million", [3_000_000]),
        ("2 dozen eggs", [24]),
        ("1.2e3", [1200]),
        (r"1.2 \times 10^{3}", [1200]),
        ("10^{-2}", [Fraction(1, 100)]),
        ("10^{1000}", []),
        # 0.1666...: 1/10 + 6/90.
        (r"0.1\overline{6}", [Fraction(1, 6)]),
        # Factors and other words are no units.
        ("5x", []),
        ("3xy", []),
        ("2k", []),
        ("6s^2", []),
        ("5 boxes of pencils", [5]),
        ("540 m", [540]),
        ("25 km/h", [25]),
        ("18 (dollars)", [18]),
        ("5 tenths", []),
        ("5 hundreds", []),
        ("5 point five", []),
        ("5 squared", []),
        (r"8 \pi", []),
        ("5 or 6", []),
        ("5 and a half", []),
        ("2 hours 30 minutes", []),
        ("5!", []),
        ("x", []),
        ("", []),
    ],
)
def test_exact_numbers(spelled, values):
  assert numbers.candidates(spelled) == frozenset(map(Fraction, values))


@pytest.mark.parametrize("gold", ["4s", "6s^2", "2k", "3 m", "5xy"])
def test_letters_of_gold_answers_are_no_units(gold):
  assert numbers.candidates(gold, gold=True) == frozenset()
  assert numbers.candidates(r"15\text{ cm}^2", gold=True) == {15}


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        # 1/3 = 0.333333...; six digits, cut or rounded.
        ("0.333333", "1/3", True),
        ("0.333334", "1/3", False),
        ("0.666667", "2/3", True),
        ("0.666666", "2/3", True),
        ("0.33", "1/3", False),
        # A decimal that ends must be met exactly.
        ("0.125001", "1/8", False),
        ("1000000.4", "1000000", False),
    ],
)
def test_decimals_without_end(answer, gold, same):
  values = [numbers.candidates(x) for x in (answer, gold)]
  assert numbers.equal(answer, *values) is same


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        # Decided in place ...
        ("1,400", "1400", True),
        ("1401", "1400", False),
        ("Evelyn", r"\text{Evelyn}", True),
        ("evelyn", r"\text{Evelyn}", True),
        ("Evelyn and Navin", r"\text{Evelyn}", False),
        ("B", "B", True),
        ("(b)", "B", True),
        ("B. a desk", "B", True),
        ("Both", "B", False),
        ("C", r"\text{(C)}", True),
        ("A", "C", False),
        ("9**9**9", "9", False),
        ("9^{9^{9}}", "2", False),
        ("((" * 40 + "1" + "))" * 40, "2", False),
        # ... or left open.
        ("2^{3^2}", "512", None),
        ("(2,1)", "(1,2)", None),
        ("x+1", "1+x", None),
    ],
)
def test_what_spelling_settles(answer, gold, expected):
  assert equivalence.settle(answer, gold) is expected


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("(1,2)", "(1, 2)", True),
        ("(2,1)", "(1,2)", False),
        ("[1,2)", "(1,2)", False),
        ("2, 1", "1,2", True),
        ("1, 1", "1, 2", False),
        ("2 and 1", "1,2", True),
        (r"\{2,1,1\}", r"\{1,2\}", True),
        (r"x \in [1,2]", "[1,2]", True),
        (r"1 \le x < 2", "[1,2)", True),
        ("x > 3", r"(3,\infty)", True),
        (r"(5,\infty) \cup (0,1)", r"(0,1)\cup(5,\infty)", True),
        (r"1 - \sqrt{2}, 1 + \sqrt{2}", r"1 \pm \sqrt{2}", True),
        (r"\begin{bmatrix}1/2\\3\end{bmatrix}",
         r"\begin{pmatrix} 0.5 \\ 3 \end{pmatrix}", True),
        (r"\begin{vmatrix}1/2\\3\end{vmatrix}",
         r"\begin{pmatrix} 0.5 \\ 3 \end{pmatrix}", False),
        (r"\begin{pmatrix}\frac12\\3\end{pmatrix}",
         r"\begin{pmatrix} 0.5 \\ 3 \end{pmatrix}", True),
        (r"\begin{pmatrix}1&2\end{pmatrix}",
         r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", False),
        ("x = 5", "5", True),
        ("2 + 3 = 5", "5", True),
        ("y = 2x + 3", "y = 3 + 2x", True),
        ("2x + 3", "y = 2x + 3", True),
        ("(x+1)^2", "x^2 + 2x + 1", True),
        (r"\sqrt{12}", r"2\sqrt{3}", True),
        ("3x", "3y", False),
        # What Math-Verify's parser by itself takes for units or small letters.
        ("2x+3", "2x+3t", False),
        ("9", "9ab", False),
        ("3r^2", "3R^2", False),
        (r"\pi r^2", r"\pi r^2 h", False),
        (r"37\text{5}", "37", False),
        ("5}6", "5", False),
        ("f", "f'", False),
        ("5_6", "5", False),
        ("1+274 i", "1+274i", True),
        (r"6 - 5\mathrm{i}", "6-5i", True),
        # Other relations assign nothing; chains must hold.
        ("x >= 5", "5", False),
        ("x != 5", "5", False),
        ("6 = 5", "5", False),
        ("x = 2 + 3 = 5", "5", True),
        ("m + n = 45", "45", True),
        ("$130,000 - $60,000 = $70,000", "70000", True),
        # As people write them.
        ("$5$ dollars", "5", True),
        ("**5** eggs", "5", True),
        ("#### 18", "18", True),
        ("Option A", "A", True),
        ("A. B. C. D.", "A", False),
        ("x < 2 or x > 3", r"(-\infty, 2) \cup (3, \infty)", True),
        (r"4 \ge x > 3", "(3,4]", True),
        (r"\{1,-2\}", "1,-2", True),
        (r"-2, 1\pm\sqrt5", r"\{1\pm\sqrt{5},-2\}", True),
        (r"\langle 1, 2\rangle", "(1,2)", True),
        (r"16\sqrt{3} square units", r"16\sqrt{3}", True),
        ("1010_3", "1010_2", False),
        ("1010", "1010_2", True),
    ],
)  # fmt: skip
def test_what_mathematics_settles(answer, gold, same):
  assert is_right(answer, gold) is same


def load(name):
  lines = (CASES / name).read_text(encoding="utf-8").splitlines()
  return [json.loads(line) for line in lines]


def test_adversarial_cases():
  cases = load("adversarial.jsonl")
  assert len(cases) > 700
  completions = [
      case["completion"] if "completion" in case
      else "".join(piece * count for piece, count in case["repeat"])
      for case in cases
  ]  # fmt: skip
  results = grade(completions, [case["gold"] for case in cases])
  wrong = [
      (case["kind"], case["note"], result)
      for case, result in zip(cases, results, strict=True)
      if result.correct != case["correct"]
  ]
  assert not wrong


def test_published_cases_of_math_verify():
  cases = load("math_verify.jsonl")
  results = grade([c["text"] for c in cases], [c["gold"] for c in cases])
  for case, result in zip(cases, results, strict=True):
    assert result.correct == case.get("here", case["correct"]), case
  assert sum("here" in case for case in cases) == 9


def golds():
  """(data set, gold answer) of GSM8K and MATH-500."""
  for path in sorted(GSM8K.glob("*.jsonl")):
    for line in path.read_text(encoding="utf-8").splitlines():
      yield "gsm8k", json.loads(line)["answer"].split("#### ")[1]
  for line in (MATH500 / "test.jsonl").read_text().splitlines():
    yield "math500", json.loads(line)["answer"]


def whole_number(gold):
  plain = re.fullmatch(r"-?\d+|-?\d{1,3}(,\d{3})+", gold)
  return int(gold.replace(",", "")) if plain else None


def equivalents(gold):
  n = whole_number(gold)
  if n is not None:
    return [
        gold, f"{n:,}", f"{n}.00", rf"\frac{{{2 * n}}}{{2}}", f"{3 * n}/3",
        f"{n} apples", rf"\boxed{{{n}}}", f"x = {n}", f"**{n}**", rf"\${n}.",
    ]  # fmt: skip
  return [
      gold, rf"\boxed{{{gold}}}", f"$ {gold} $", rf"\( {gold} \)",
      rf"\displaystyle {gold}", f"The answer is {gold}.",
      gold.replace(r"\frac", r"\tfrac"), gold.replace("-", "−"),
      gold.replace(r"\pi", "π"), gold.replace(",", " , ")
      if "!" not in gold and not re.search(r"\d,\d{3}", gold) else gold,
  ]  # fmt: skip


def perturbed(gold):
  n = whole_number(gold)
  if n is not None:
    return [str(n + 1), str(n - 1), *([str(-n)] if n else [])]
  wrong = []
  if not re.search(r"text\{[A-Za-z(]|[=,_]|\\in|begin|left|pm", gold):
    wrong += [f"{gold}+1", f"{gold}-1", f"-({gold})"]
  turned = re.sub(
      r"\\(d?frac)\{([^{}]+)\}\{([^{}]+)\}", r"\\\1{\3}{\2}", gold, count=1
  )
  return [*wrong, *([turned] if turned != gold else [])]


@pytest.mark.skipif(
    not (GSM8K.is_dir() and MATH500.is_dir()),
    reason="GSM8K and MATH-500 are not part of the repository",
)
def test_every_gold_answer():
  """In ten spellings, and slightly wrong."""
  everything = list(golds())
  assert len(everything) == 7473 + 1319 + 500
  cases, others = [], {}
  for kind, gold in everything:
    cases += [(spelled, gold, True) for spelled in equivalents(gold)]
    cases += [(wrong, gold, False) for wrong in perturbed(gold)]
    other = others.get(kind)
    if other and not is_same(other, gold):
      cases.append((other, gold, False))
    others[kind] = gold
  results = grade([answered(case[0]) for case in cases], [c[1] for c in cases])
  wrong = [
      case
      for case, result in zip(cases, results, strict=True)
      if result.correct != case[2]
  ]
  assert len(cases) > 100_000
  assert not wrong[:20]


def is_same(one, other):
  """Of golds that differ in their thousands' commas or `x =` alone."""
  one, other = (x.replace(",", "").removeprefix("x=") for x in (one, other))
  return one == other


def test_nothing_to_grade_and_numbers_that_differ():
  assert grade([], []) == []
  message = "golds: must be one per completion, got 2 for 1"
  with pytest.raises(ValueError, match=message):
    grade(["5"], ["5", "6"])


def test_long_answers_are_wrong_unread():
  answers = [answered("5" * 1001), answered("(" * 10**6)]
  result, other = grade(answers, ["5", "5"])
  assert (result.correct, result.timed_out) == (False, False)
  assert other.correct is False


@pytest.fixture
def pool():
  made = Pool(2, soft_seconds=0.5, hard_seconds=3.0)
  made.start()
  while not all(worker.was_ready for worker in made._workers):
    made.judge([("x+1", "1+x", "")])
  yield made
  made.close()


@contextlib.contextmanager
def guarded(seconds=60):
  """Ends a test that would go on for ever."""
  def expire(*_):
    raise AssertionError("did not come to an end")

  before = signal.signal(signal.SIGALRM, expire)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


HOSTILE = [
    "5" + "x" * 900 + "!",
    "5 " + "ha" * 480 + "?",
    "18 students participated altogether throughout everything (eighteen)",
    "5 " + "congratulations " * 60 + ":",
    "$" * 1000,
    "**" * 500,
    r"\text{" * 150,
    "{" * 1000,
    "1," * 500,
    "1 " * 500,
    "=" * 1000,
    r"\frac" * 200,
    "(" + "a," * 400,
    "x<" * 500,
    r"\( " * 300,
    "9" * 1000,
    "5 a" * 333,
    "the answer is " * 70,
]


@pytest.mark.parametrize("answer", HOSTILE)
def test_what_runs_in_place_comes_to_an_end(answer):
  """Patterns that go back could take longer than the universe is old."""
  with guarded():
    for gold in ("18", r"\frac{1}{2}", "A", r"\text{even}", "(1,2)"):
      equivalence.settle(answer, gold)
    spelling.normalise(answer)


def test_repeated_units_come_to_an_end():
  """Repeats every pair of units before text that is no unit."""
  pieces = (
      "cm", "in", "lbs", "min", "miles", "per", "of", "a", "m", "s", "ha",
      "dollars", r"\text{m}", "€",
  )  # fmt: skip
  with guarded():
    for one, other in itertools.product(pieces, repeat=2):
      for between in (" ", "/", ".", "-", ". ", " / "):
        answer = "5 " + f"{one}{between}{other}{between}" * 30
        equivalence.settle(answer + "2", "18")
        equivalence.settle(answer + "!", "18")


def test_long_texts_come_to_an_end():
  with guarded():
    for piece in (r"\boxed{", "<answer>", "answer is ", "1,", "</think>", "{}"):
      for form in map(formats.of, formats.PRESETS):
        text.find_answer(piece * 20_000, form, lenient=True)
        text.is_well_formed(piece * 20_000, form)


def test_the_pool_decides_in_order(pool):
  tasks = [("x+1", f"{i}+x", "") for i in range(5)]
  assert pool.judge(tasks) == [False, True, False, False, False]
  assert pool.judge([]) == []


def test_a_killed_process_is_replaced(pool):
  for worker in list(pool._workers):
    worker._process.send_signal(signal.SIGKILL)
  # Whose process was gone is judged by another one.
  assert pool.judge([("x+1", "1+x", "")] * 6) == [True] * 6


def test_who_ends_processes_is_not_tried_for_ever(pool, monkeypatch):
  sent = pool_lib._Worker.send

  def send(worker, index, task):
    sent(worker, index, task)
    if task[0] == "deadly":
      worker.signal()

  monkeypatch.setattr(pool_lib._Worker, "send", send)
  assert pool.judge([("deadly", "1+x", ""), ("x+1", "1+x", "")]) == [
      None, True,
  ]  # fmt: skip


def test_replies_of_a_batch_that_was_left_are_dropped(pool, monkeypatch):
  """Else they would be taken for those of the next one."""
  wait = connection.wait

  def interrupt(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(connection, "wait", interrupt)
  with pytest.raises(KeyboardInterrupt):
    pool.judge([("x+1", "1+x", "")] * 2)
  monkeypatch.setattr(connection, "wait", wait)
  assert pool.judge([("x+3", "2+x", "")] * 2) == [False, False]


def run_script(code, folder):
  """Runs a program of its own that can import the package."""
  script = folder / "script.py"
  script.write_text(code)
  root = str(pathlib.Path(__file__).parents[1])
  return subprocess.run(
      [sys.executable, str(script)],
      env=os.environ | {"PYTHONPATH": root},
      capture_output=True,
      text=True,
      timeout=120,
      check=True,
  )


def test_a_fork_has_processes_of_its_own(tmp_path):
  result = run_script(_FORK, tmp_path)
  assert sorted(result.stdout.split()) == ["40", "40"]


_FORK = """
import os, sys
from iapo_jax.rewards import grade
def right():
  answers = [f"<answer>{i}+x</answer>" for i in range(40)]
  return sum(r.correct for r in grade(answers, [f"x+{i}" for i in range(40)]))
grade(["<answer>x+1</answer>"], ["1+x"])
child = os.fork()
print(right(), flush=True)
if child:
  assert os.waitpid(child, 0)[1] == 0
"""


def test_a_process_that_does_not_answer_is_killed(pool):
  stopped = pool._workers[0]._process.pid
  os.kill(stopped, signal.SIGSTOP)
  results = pool.judge([("x+1", "1+x", "")] * 8)
  assert results.count(None) == 1
  assert results.count(True) == 7
  assert stopped not in [worker._process.pid for worker in pool._workers]


def test_endless_work_is_given_up_and_the_process_lives(pool):
  pids = [worker._process.pid for worker in pool._workers]
  assert pool.judge([("(x+1)^{9999}", "7", "")]) == [None]
  assert pool.judge([("x+1", "1+x", "")]) == [True]
  assert [worker._process.pid for worker in pool._workers] == pids


def test_a_pool_that_is_closed_at_work_says_so():
  pool = Pool(1, soft_seconds=60.0, hard_seconds=60.0)
  assert pool.judge([("x+1", "1+x", "")]) == [True]
  closing = threading.Timer(0.5, pool.close)
  closing.start()
  message = "the grading processes were closed while they judged"
  with pytest.raises(RuntimeError, match=message):
    pool.judge([("(x+1)^{9999}", "7", "")])
  closing.join()


def test_several_threads_share_the_pool(pool):
  results = {}

  def work(i):
    results[i] = pool.judge([("x+1", "1+x", ""), ("x", f"x+{i + 1}", "")])

  threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert results == {i: [True, False] for i in range(6)}


@pytest.mark.parametrize(
    ("python", "message"),
    [
        (
            "/bin/false",
            "end before they are ready; run this to see why: PYTHONPATH=",
        ),
        (
            "/no/such/python",
            "cannot start a grading process with '/no/such/python'",
        ),
    ],
)
def test_processes_that_cannot_start_are_told_of(monkeypatch, python, message):
  pool = Pool(2, soft_seconds=0.5, hard_seconds=3.0)
  monkeypatch.setattr(sys, "executable", python)
  with pytest.raises(RuntimeError, match=message):
    pool.judge([("x+1", "1+x", "")])


_SCRIPT = """
import os, signal, sys, threading
from iapo_jax.rewards import grade
print(grade(["<answer>x+1</answer>"], ["1+x"])[0].correct)
found = []
thread = threading.Thread(
    target=lambda: found.extend(grade(["<answer>2x</answer>"], ["x+x"])))
thread.start(); thread.join()
print(found[0].correct, "jax" in sys.modules)
"""


def test_a_plain_script_can_grade(tmp_path):
  """No guarded main module, a thread of its own, no JAX; nothing stays."""
  result = run_script(_SCRIPT, tmp_path)
  assert result.stdout.split() == ["True", "True", "False"]
  assert result.stderr == ""


def test_ctrl_c_does_not_reach_the_processes(pool):
  """They have a session of their own: the terminal's signals pass them by."""
  processes = [worker._process for worker in pool._workers]
  for process in processes:
    assert os.getsid(process.pid) != os.getsid(0)
  pool.close()
  assert all(process.poll() is not None for process in processes)

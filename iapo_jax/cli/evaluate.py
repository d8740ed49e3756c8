r"""Evaluates policies of finished or running runs on the same problems.

  iapo evaluate runs/demo/seed-0/grpo runs/demo/seed-0/to_go \
      --samples=32 --seeds=0,1,2 --checkpoint=best --output=runs/evaluation

Prints a table and writes OUTPUT.json and OUTPUT.csv: accuracy, unbiased pass@k,
length@k, pass@k / length@k, tokens of reasoning and answer, format rate, share
of completions that are cut off, seconds per completion; ± is the standard
deviation over sampling seeds. Warns where more than 10 % are cut off. Runs of
one command are timed side by side; do not compare times of different commands.
If a run's mesh does not fit the devices, the run is evaluated data parallel.
Several hosts can evaluate together: docs/launch.md.
"""

import argparse
import pathlib

from iapo_jax.cli import command
from iapo_jax.config import data as data_config
from iapo_jax.core import processes
from iapo_jax.core.errors import ConfigError
from iapo_jax.tools import comparison


def add_arguments(parser: command.Parser) -> None:
  """Adds the arguments of the command."""
  add = parser.add_argument
  add("runs", nargs="*", metavar="RUN", help="folder of a run")
  add("--checkpoint", default="last", help="last, best or an RL step")
  add("--split", default="test", choices=comparison.SPLITS, help="problems")
  add(
      "--problems",
      type=command.at_least(1),
      default=2**31,
      help="number of problems, from the first; all by default",
  )
  add("--samples", type=int, help="completions per problem")
  add("--seeds", default=["0"], type=command.words, help="sampling seeds")
  add("--batch_size", type=int, help="completions per call of the sampler")
  add(
      "--temperature",
      type=float,
      help="0 is greedy; then --samples=1 and one seed",
  )
  add(
      "--top_p",
      type=float,
      help="in (0, 1]: only the most probable tokens that reach it; 1 is all",
  )
  add(
      "--top_k",
      type=int,
      help="only this many most probable tokens, before --top_p; 0 is all",
  )
  add("--max_tokens", type=command.at_least(2), help="longest completion")
  add(
      "--task",
      choices=data_config.READ,
      help="evaluate on this data set, not on that of the runs",
  )
  add("--source_dir", help="folder with the data files; empty: downloads")
  add("--max_prompt_tokens", type=command.at_least(1), help="longest prompt")
  add(
      "--output",
      help="path of the files, without .json; by default"
      " FIRST_RUN/evaluation[-TASK]",
  )
  command.add_process_arguments(parser)


def run(given: argparse.Namespace) -> None:
  """Loads the runs, samples, and writes the results."""
  command.join_processes(given)
  folders = [pathlib.Path(name) for name in given.runs]
  if not folders:
    raise ConfigError("no run: give the folder of one run or of several")
  seeds = command.whole_numbers("seeds", given.seeds)
  name = f"evaluation-{given.task}" if given.task else "evaluation"
  stem = pathlib.Path(given.output or folders[0] / name)
  contestants = comparison.load(
      folders,
      given.checkpoint,
      max_tokens=given.max_tokens,
      data={
          "task": given.task,
          "source_dir": given.source_dir,
          "max_prompt_tokens": given.max_prompt_tokens,
      },
      samples=given.samples,
      batch_size=given.batch_size,
      temperature=given.temperature,
      top_p=given.top_p,
      top_k=given.top_k,
      own=given.own,
  )
  # Finds out before the work whether the files can be written.
  written = processes.on_first(
      lambda: [str(path) for path in comparison.outputs(stem)]
  )
  results = comparison.judge(
      contestants, split=given.split, problems=given.problems, seeds=seeds
  )
  records = comparison.report(contestants, results, given.split)
  print(f"\n{comparison.table(records)}\n")
  processes.on_first(lambda: comparison.write(records, stem))
  print("written  " + ", ".join(written))

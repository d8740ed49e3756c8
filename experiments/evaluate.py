"""Judges policies of finished or running runs on the same problems.

  python experiments/evaluate.py runs/demo/seed-0/grpo runs/demo/seed-0/to_go \
      --samples=32 --seeds=0,1,2 --checkpoint=best --output=runs/evaluation

Prints a table and writes OUTPUT.json and OUTPUT.csv: accuracy, unbiased pass@k,
length@k, pass@k / length@k, format rate, seconds per completion; ± is the
standard deviation over sampling seeds. Runs of one command are timed side by
side; times of different commands do not compare. `--task=aime24` judges on
another data set than the runs' own. A run whose mesh does not fit
the devices there are is judged data parallel. Several hosts judge together, as
they train: docs/launch.md.
"""

import pathlib

from absl import flags

from iapo_jax.cli import command
from iapo_jax.config import data as data_config
from iapo_jax.core import processes
from iapo_jax.core.errors import ConfigError
from iapo_jax.tools import comparison

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "last", "last, best, or a step of reinforcement learning."
)
_SPLIT = flags.DEFINE_enum("split", "test", comparison.SPLITS, "Of the data.")
_PROBLEMS = flags.DEFINE_integer(
    "problems", None, "The first so many; all by default.", lower_bound=1
)
_SAMPLES = flags.DEFINE_integer("samples", None, "Completions of each problem.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Sampling seeds.")
_BATCH = flags.DEFINE_integer(
    "batch_size", None, "Completions per call of the compiled sampler."
)
_TEMPERATURE = flags.DEFINE_float("temperature", None, "0 is greedy.")
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", None, "Longest completion.", lower_bound=2
)
_TASK = flags.DEFINE_enum(
    "task",
    None,
    data_config.READ,
    "Judge on this data set, not on the runs' own.",
)
_SOURCE_DIR = flags.DEFINE_string(
    "source_dir", None, "Folder with the data's files; empty to fetch them."
)
_PROMPT_TOKENS = flags.DEFINE_integer(
    "max_prompt_tokens", None, "Longest prompt.", lower_bound=1
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Stem of the files; FIRST_RUN/evaluation[-TASK] by default."
)
command.define_process_flags()


def main(arguments: list[str]) -> None:
  """Loads, samples, writes."""
  command.join_processes()
  folders = [pathlib.Path(name) for name in arguments[1:]]
  if not folders:
    raise ConfigError("no run: give the folder of one run or of several")
  seeds = command.whole_numbers("seeds", _SEEDS.value)
  name = f"evaluation-{_TASK.value}" if _TASK.value else "evaluation"
  stem = pathlib.Path(_OUTPUT.value or folders[0] / name)
  contestants = comparison.load(
      folders,
      _CHECKPOINT.value,
      max_tokens=_MAX_TOKENS.value,
      data={
          "task": _TASK.value,
          "source_dir": _SOURCE_DIR.value,
          "max_prompt_tokens": _PROMPT_TOKENS.value,
      },
      samples=_SAMPLES.value,
      batch_size=_BATCH.value,
      temperature=_TEMPERATURE.value,
  )
  # Before the work, not after it.
  written = processes.on_first(
      lambda: [str(path) for path in comparison.outputs(stem)]
  )
  results = comparison.judge(
      contestants,
      split=_SPLIT.value,
      problems=_PROBLEMS.value or 2**31,
      seeds=seeds,
  )
  records = comparison.report(contestants, results, _SPLIT.value)
  print(f"\n{comparison.table(records)}\n")
  processes.on_first(lambda: comparison.write(records, stem))
  print("written  " + ", ".join(written))


if __name__ == "__main__":
  command.run(main)

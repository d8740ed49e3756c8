"""Finds the checkpoint that a user names, and loads its policy."""

import dataclasses
import pathlib

from iapo_jax.config import model as model_config
from iapo_jax.config import parsing as config_lib
from iapo_jax.core.errors import ConfigError
from iapo_jax.core.types import Params
from iapo_jax.hf import folder, tokenizer, weights
from iapo_jax.run import assembly, checkpoint, evaluation, logs, places
from iapo_jax.run import workdir as workdir_lib
from iapo_jax.run.assembly import Assembly


@dataclasses.dataclass(frozen=True)
class Source:
  """A checkpoint of a run.

  Attributes:
    stage: `warm_start` or `rl`.
    named: whether the user named this step.
  """

  workdir: pathlib.Path
  stage: str
  step: int
  named: bool = True

  @property
  def name(self) -> str:
    """STAGE/STEP."""
    return f"{self.stage}/{self.step}"

  @property
  def folder(self) -> pathlib.Path:
    """Folder of the stage's checkpoints."""
    return checkpoint.stage_folder(self.workdir, self.stage)

  def fault(self) -> str | None:
    """Describes what is wrong with it; returns None if it is intact."""
    return checkpoint.fault(self.folder, self.step)

  def __str__(self) -> str:
    return str(self.folder / str(self.step))


def last(workdir: pathlib.Path) -> Source:
  """Returns a run's last checkpoint; raises `ConfigError` if there is none."""
  for stage in reversed(checkpoint.STAGES):
    found = checkpoint.steps(checkpoint.stage_folder(workdir, stage))
    if found:
      return Source(workdir, stage, found[-1], named=False)
  told = "the run has saved none yet"
  if not workdir_lib.is_claimed(workdir):
    told = places.explain(workdir, "run")
  raise ConfigError(f"workdir {str(workdir)!r}: holds no checkpoint; {told}")


def best(workdir: pathlib.Path) -> Source:
  """Returns the checkpoint that the paper's rule chooses (`best_step`).

  Chooses from the intact checkpoints of reinforcement learning. Raises
  `ConfigError` if none of them was validated.
  """
  points = logs.stage_metrics(workdir, "validation")
  kept = checkpoint.steps(checkpoint.stage_folder(workdir, "rl"))
  while points:
    chosen = Source(workdir, "rl", evaluation.best_step(points))
    problem = chosen.fault()
    if problem is None:
      return chosen
    print(
        f"warning: the best checkpoint, {chosen}, {problem}; the best of the"
        " others is used",
        flush=True,
    )
    kept = [step for step in kept if step != chosen.step]
    points = [point for point in points if point["step"] in kept]
  raise ConfigError(
      f"workdir {str(workdir)!r}: holds no intact checkpoint that was"
      " validated; evaluate, score or export it with --checkpoint=last"
  )


def chosen(workdir: pathlib.Path, which: str) -> Source:
  """Returns the checkpoint that `--checkpoint` names.

  `which` is `last`, `best` (the last for a run without reinforcement learning)
  or a step of reinforcement learning. Raises `ConfigError` if there is no such
  checkpoint.
  """
  newest = last(workdir)
  if which == "last" or (which == "best" and newest.stage != "rl"):
    return newest
  if which == "best":
    return best(workdir)
  kept = checkpoint.steps(checkpoint.stage_folder(workdir, "rl"))
  if not which.isdecimal() or int(which) not in kept:
    raise ConfigError(
        f"--checkpoint = {which!r}: must be last, best or a step that"
        f" {str(workdir)!r} keeps: {kept}"
    )
  return Source(workdir, "rl", int(which))


def named(text: str) -> Source:
  """Returns the checkpoint that `config.init_from` names.

  The text is the folder of a run, for its last checkpoint, or of a checkpoint:
  RUN/checkpoints/STAGE/STEP. Raises `ConfigError` if it is neither.
  """
  path = pathlib.Path(text)
  if workdir_lib.is_claimed(path):
    return last(path)
  *_, kind, stage, step = ("", "", "", *path.parts)
  run = path.parent.parent.parent
  named = kind == "checkpoints" and stage in checkpoint.STAGES
  if named and workdir_lib.is_claimed(run):
    if not step.isdecimal():
      raise ConfigError(
          f"config.init_from = {text!r}: must end in the number of a step"
      )
    return Source(run, stage, int(step))
  raise ConfigError(
      f"config.init_from = {text!r}: must be the folder of a run, or of one of"
      " its checkpoints, RUN/checkpoints/STAGE/STEP;"
      f" {places.explain(path, 'run')}"
  )


def start(parts: Assembly) -> Params | None:
  """Loads the policy that a run begins with.

  Returns another run's parameters, those of a pretrained model, or None if
  fresh ones are to be made. Raises `ConfigError` if they cannot be loaded.
  """
  cfg = parts.cfg
  if cfg.init_from:
    return load(parts, named(cfg.init_from))
  if not cfg.model.pretrained:
    return None
  spec = assembly.reinforcement_stage(parts).spec
  return weights.load(
      folder.find(cfg.model.pretrained),
      cfg.model,
      shardings=spec.shardings.params,
  )


def load(
    parts: Assembly, chosen: Source, *, verify: bool = True
) -> Params:
  """Loads a policy of this or another run for this run's mesh.

  `verify=False` skips the search for faults, for a caller that has just done
  it. Raises `ConfigError` if the checkpoint is missing, damaged or of another
  model.
  """
  _check_model(parts, chosen.workdir)
  spec = assembly.reinforcement_stage(parts).spec
  return checkpoint.load_params(
      chosen.folder,
      chosen.step,
      spec.shapes.params,
      spec.shardings.params,
      verify=verify,
  )


def check_start(
    parts: Assembly, scratch: pathlib.Path | None = None
) -> None:
  """Checks, before anything is loaded or made, that `start` will succeed.

  `scratch` is that of `assembly.assemble`; then weights that are not downloaded
  yet are not checked. Raises `ConfigError` if the run named by `init_from` has
  another model or vocabulary, has no such checkpoint, or is unfinished and only
  its last checkpoint is meant; or if a pretrained model's tensors do not fit
  its configuration.
  """
  cfg = parts.cfg
  if not cfg.init_from:
    if cfg.model.pretrained:
      place = folder.find(cfg.model.pretrained, scratch=scratch)
      if scratch and folder.commit(place) and not folder.has_weights(place):
        print("weights    are not downloaded yet, and not checked", flush=True)
        return
      weights.check(weights.reader(place), cfg.model)
    return
  chosen = named(cfg.init_from)
  _check_model(parts, chosen.workdir)
  _check_words(parts, chosen.workdir)
  if not chosen.named and not workdir_lib.is_finished(chosen.workdir):
    raise ConfigError(
        f"config.init_from = {str(chosen.workdir)!r}: is not finished (it has"
        f" no {workdir_lib.SUMMARY}); name a checkpoint of it, such as"
        f" {str(chosen)!r}"
    )
  if chosen.named and not (chosen.folder / str(chosen.step)).is_dir():
    raise ConfigError(
        f"config.init_from = {str(chosen)!r}: no such checkpoint; must be one"
        f" of the steps {checkpoint.steps(chosen.folder)}"
    )


def _check_model(parts: Assembly, workdir: pathlib.Path) -> None:
  theirs = workdir_lib.read_config(workdir)
  for field, value in config_lib.flatten(parts.cfg).items():
    group, _, name = field.partition(".")
    # Fields of the run (`OF_RUN`) do not change the weights, which are fp32.
    if group != "model" or name in model_config.OF_RUN:
      continue
    if theirs.get(field, value) != value:
      raise ConfigError(
          f"config.{field} = {value!r}: must be {theirs[field]!r}, as in the"
          f" run in {str(workdir)!r}"
      )


def _check_words(parts: Assembly, workdir: pathlib.Path) -> None:
  """Checks that every token id means the same to both runs.

  An id may be unused in one of them. Runs that `starts` packed have no
  tokenizer.
  """
  places = (workdir / folder.TOKENIZER, workdir / folder.KEPT)
  kept = next((place for place in places if place.is_dir()), None)
  if kept is None:
    return
  theirs = tokenizer.load(kept).get_vocab()
  ours = parts.task.tokenizer.get_vocab()
  words = {i: word for word, i in theirs.items()}
  for word, i in sorted(ours.items(), key=lambda item: item[1]):
    if theirs.get(word, i) != i or words.get(i, word) != word:
      raise ConfigError(
          f"config.init_from = {parts.cfg.init_from!r}: must have this run's"
          f" tokenizer; its token {i} is {words.get(i)!r}, here {word!r}"
      )

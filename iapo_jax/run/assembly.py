"""The parts of a run, built from its configuration."""

import dataclasses
import functools
import pathlib

import jax
import optax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from iapo_jax.config import model as model_config
from iapo_jax.config import rules as config_rules
from iapo_jax.config.model import LONGROPE, ModelConfig
from iapo_jax.config.schema import OF_OWN_ANSWER, Config, OptimizerConfig
from iapo_jax.core.errors import ConfigError, fail
from iapo_jax.core.types import Params, TrainState
from iapo_jax.data import task as task_lib
from iapo_jax.hf import folder
from iapo_jax.rewards import grading, gym, host, token_match, user_functions
from iapo_jax.rewards.reward import Grader, name_of
from iapo_jax.rl import state as state_lib
from iapo_jax.rl.optimizer import make_optimizer
from iapo_jax.rl.own import NOTHING, Own
from iapo_jax.rl.train_step import TrainStep, make_train_step
from iapo_jax.rl.warm_start import WarmStartStep, make_warm_start_step
from iapo_jax.run import places

_LONGEST = (
    "data.max_prompt_tokens + rollout.max_tokens + the elicitation's tokens +"
    " probe.answer_tokens - 1"
)


@dataclasses.dataclass(frozen=True)
class Assembly:
  """The parts that all stages of a run share.

  Attributes:
    cfg: the checked configuration with the vocabulary size filled in.
    grader: grades completions inside compiled programs.
    own: the user's functions.
    rewarder: calls the user's rewards of texts; None without them.
  """

  cfg: Config
  task: task_lib.Task
  mesh: Mesh
  grader: Grader
  own: Own = NOTHING
  rewarder: host.Rewarder | None = None

  @property
  def grades_on_host(self) -> bool:
    """Whether the grader calls the host."""
    return self.cfg.reward.grader == "host" or bool(self.own.text_grader)


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage's optimizer and the layout of its state."""

  optimizer: optax.GradientTransformation
  spec: state_lib.StateSpec


def assemble(
    cfg: Config,
    devices: list[jax.Device] | None = None,
    *,
    home: pathlib.Path | None = None,
    data: bool = True,
    scratch: pathlib.Path | None = None,
    own: Own = NOTHING,
) -> Assembly:
  """Builds the parts and makes every check of user input before compiling.

  Takes all devices of the runtime by default. `home` is the folder of a run
  that has begun: it keeps all files of a pretrained model but the weights.
  `data=False` reads no problems and downloads no weights, which compiling does
  not need. With `scratch` a folder, everything that would be prepared or
  downloaded goes there. Raises `ConfigError` if the data, the tokenizer, the
  devices or a function of `own` break a rule.
  """
  pretrained, chosen, problems = _find(cfg, home, data, scratch)
  if pretrained:
    cfg = _fill_model(cfg, folder.read_model(pretrained))
    config_rules.check_layers(cfg)
  task = task_lib.load(cfg, problems, pretrained, chosen)
  if not pretrained:
    cfg = _fill_vocabulary(cfg, len(task.tokenizer))
  _check_ids(cfg, task)
  cfg = _fill_factors(cfg, _longest(cfg, task))
  mesh = make_mesh(cfg, devices)
  grader = _grader(cfg, task, mesh, own)
  return Assembly(cfg, task, mesh, grader, own, _rewarder(task, mesh, own))


def _grader(cfg: Config, task: task_lib.Task, mesh: Mesh, own: Own) -> Grader:
  """Returns the configured grader, or that of the user."""
  of_answers = cfg.probe.estimator in OF_OWN_ANSWER or cfg.loss.early_weight
  answer_tokens = cfg.probe.answer_tokens if of_answers else 0
  judge = start = None
  package = functools.partial(grading.judge, form=cfg.format)
  if cfg.data.task == "reasoning_gym":
    start = gym.start
    judge = package = functools.partial(
        gym.judge, form=cfg.format, partial=cfg.reward.partial
    )
  if own.text_grader:
    judge = user_functions.judge_of(
        user_functions.bind(own.text_grader, "text_grader", task.asked),
        name_of(own.text_grader),
        cfg.format,
        package,
    )
  if judge or cfg.reward.grader == "host":
    return host.make_grader(
        task.tokenizer,
        mesh,
        cfg.format,
        answer_tokens,
        asked=task.asked,
        judge=judge,
        start=start,
    )
  tags = token_match.tags_of(task.tokenizer, cfg.format)
  return token_match.make_grader(tags, answer_tokens)


def _rewarder(
    task: task_lib.Task, mesh: Mesh, own: Own
) -> host.Rewarder | None:
  """Returns what calls the user's rewards of texts, if there are any."""
  if not own.text_rewards:
    return None
  calls = [
      (
          name_of(x.function),
          user_functions.bind(x.function, "text_reward", task.asked),
      )
      for x in own.text_rewards
  ]
  weights = [x.weight for x in own.text_rewards]
  return host.make_rewarder(
      calls, weights, task.tokenizer, mesh, task.asked
  )


def make_mesh(
    config: Config, devices: list[jax.Device] | None = None
) -> Mesh:
  """Returns the (data, fsdp, tensor) mesh of a configuration, with Auto axes.

  Takes all devices of the runtime by default. TPU slices, which a slower
  network connects, lie along the data axis only: almost nothing but sums of
  gradients moves between them. Raises `ConfigError` if the sizes do not fit.
  """
  devices = devices or jax.devices()
  config_rules.check_platform(config.model, devices[0].platform)
  shape = config_rules.mesh_shape(config, len(devices))
  names, types = ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3
  slices = _slices(devices)
  if shape[0] % slices:
    rule = f"must be a multiple of {slices}, the number of slices"
    fail("mesh.data", shape[0], rule)
  inside = (shape[0] // slices, *shape[1:])
  # Lets a mesh axis take part of one side of a slice, such as 4 of 8 chips.
  if slices == 1:
    placed = mesh_utils.create_device_mesh(
        inside, devices, allow_split_physical_axes=True
    )
  else:
    placed = mesh_utils.create_hybrid_device_mesh(
        inside, (slices, 1, 1), devices, allow_split_physical_axes=True
    )
  return Mesh(placed, names, axis_types=types)


def _slices(devices: list[jax.Device]) -> int:
  """Counts the TPU slices; other devices count as one."""
  if devices[0].platform != "tpu":
    return 1
  return len({getattr(device, "slice_index", 0) for device in devices})


def warm_start_stage(parts: Assembly) -> Stage:
  """Returns the supervised stage."""
  stage = parts.cfg.warm_start
  return _stage(parts, stage.optimizer, stage.num_steps)


def reinforcement_stage(parts: Assembly) -> Stage:
  """Returns the reinforcement-learning stage."""
  cfg = parts.cfg
  return _stage(parts, cfg.optimizer, cfg.num_steps * cfg.loss.num_updates)


def create_state(
    parts: Assembly, stage: Stage, params: Params | None = None
) -> TrainState:
  """Returns a stage's state at step 0, with a copy of `params` if given."""
  return state_lib.create(stage.spec, parts.cfg, stage.optimizer, params)


def reference_of(parts: Assembly, stage: Stage, params: Params) -> Params:
  """Casts fp32 weights to the policy that the KL penalty compares with."""
  return state_lib.reference(stage.spec, parts.cfg.model.dtype, params)


def train_step_of(parts: Assembly, stage: Stage) -> TrainStep:
  """Returns the jitted reinforcement-learning step, with the user's parts."""
  return make_train_step(
      parts.cfg,
      parts.mesh,
      vocabulary=parts.task.vocabulary,
      grader=parts.grader,
      optimizer=stage.optimizer,
      spec=stage.spec,
      planting=parts.task.planting,
      own=parts.own,
      rewarder=parts.rewarder,
  )


def warm_start_step_of(parts: Assembly, stage: Stage) -> WarmStartStep:
  """Returns the jitted supervised step."""
  return make_warm_start_step(
      parts.cfg, parts.mesh, optimizer=stage.optimizer, spec=stage.spec
  )


def _stage(
    parts: Assembly, config: OptimizerConfig, num_updates: int
) -> Stage:
  optimizer = make_optimizer(config, num_updates)
  spec = state_lib.state_spec(parts.mesh, parts.cfg, optimizer)
  return Stage(optimizer, spec)


def _find(
    cfg: Config,
    home: pathlib.Path | None,
    data: bool,
    scratch: pathlib.Path | None,
) -> tuple[pathlib.Path | None, pathlib.Path | None, task_lib.Problems]:
  """Returns model folder, tokenizer folder and problems.

  Names everything that is missing in one error, so that a user without a
  network sees all of it at once.
  """
  folders = (
      (cfg.model.pretrained, folder.KEPT, "model.pretrained"),
      (cfg.data.tokenizer, folder.TOKENIZER, "data.tokenizer"),
  )
  found: list[pathlib.Path | None] = []
  missing: list[str] = []
  for name, kept, field in folders:
    try:
      if name and home and (home / kept).is_dir():
        found.append(home / kept)
      elif name:
        whole = data and kept == folder.KEPT
        found.append(folder.find(name, weights=whole, scratch=scratch))
      else:
        found.append(None)
    except ConfigError as error:
      missing.append(f"{error}; name a folder with --config.{field}=FOLDER")
  try:
    problems = task_lib.read(cfg.data, scratch) if data else {}
  except ConfigError as error:
    missing.append(str(error))
  if missing:
    raise ConfigError(". ".join(missing))
  for (name, _, field), place in zip(folders, found, strict=True):
    if place == pathlib.Path(name).expanduser():  # else the hub's or a copy
      wanted = "tokenizer" if field == "data.tokenizer" else "model"
      places.check(place, f"config.{field}", wanted)
  return found[0], found[1], problems


def _fill_model(cfg: Config, theirs: ModelConfig) -> Config:
  """Returns the configuration with the pretrained model's architecture.

  Raises `ConfigError` if the run was made with another architecture.
  """
  ours = cfg.model
  own = {field: getattr(ours, field) for field in model_config.OF_RUN}
  model = dataclasses.replace(theirs, **own)
  field = model_config.difference(ours, model)
  if ours.is_complete and field:
    rule = f"must be {getattr(model, field)!r}, as in {ours.pretrained!r}"
    fail(f"model.{field}", getattr(ours, field), f"{rule}, or left out")
  return dataclasses.replace(cfg, model=model)


def _check_ids(cfg: Config, task: task_lib.Task) -> None:
  """Checks that the model has every token.

  The tokenizer may have more tokens than the model; the data must not use them.
  """
  size, vocabulary = cfg.model.vocab_size, task.vocabulary
  used = {"config.probe.elicitation": vocabulary.elicitation}
  for name, table in task.tables.items():
    used[f"the {name} prompts"] = table.prompts.tokens
    used[f"the {name} answers"] = table.prompts.gold
  for where, ids in used.items():
    task_lib.check_rows(task.tokenizer, ids, size, where)


def _longest(cfg: Config, task: task_lib.Task) -> int:
  """Returns the length of the longest sequence, with its probes.

  Raises `ConfigError` if it is longer than the model's positions.
  """
  most = cfg.model.max_positions
  length = cfg.data.max_prompt_tokens + cfg.rollout.max_tokens
  probe = len(task.vocabulary.elicitation) + cfg.probe.answer_tokens - 1
  needed = length + probe
  if most and needed > most:
    fail(
        "model.max_positions",
        most,
        f"must be at least {_LONGEST} = {needed}; lower rollout.max_tokens",
    )
  return needed


def _fill_factors(cfg: Config, longest: int) -> Config:
  """Chooses longrope's factors by the length of the longest sequence.

  Raises `ConfigError` if they are short and that sequence is too long for them,
  or if the model has no such factors.
  """
  m = cfg.model
  if m.rope.kind != LONGROPE and m.rope_factors != "auto":
    rule = f"must be auto with a model of model.rope.kind {m.rope.kind}"
    fail("model.rope_factors", m.rope_factors, rule)
  model = model_config.for_length(m, longest)
  most = model_config.longest(model)
  if most and longest > most:
    fail(
        "model.rope_factors",
        m.rope_factors,
        f"must be long or auto if {_LONGEST} = {longest} exceeds"
        f" model.rope.original_positions = {most}",
    )
  return dataclasses.replace(cfg, model=model)


def _fill_vocabulary(cfg: Config, size: int) -> Config:
  """Sets the vocabulary size to the tokenizer's if it is None."""
  if cfg.model.vocab_size is None:
    model = dataclasses.replace(cfg.model, vocab_size=size)
    return dataclasses.replace(cfg, model=model)
  if cfg.model.vocab_size < size:
    fail(
        "model.vocab_size",
        cfg.model.vocab_size,
        f"must be at least {size}, the tokenizer's size; leave it out for that",
    )
  return cfg

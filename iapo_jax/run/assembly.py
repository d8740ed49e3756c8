"""The parts of a run, put together from its configuration."""

import dataclasses
import pathlib

import jax
import optax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from iapo_jax.config import model as model_config
from iapo_jax.config import rules as config_rules
from iapo_jax.config.model import ModelConfig
from iapo_jax.config.schema import OF_OWN_ANSWER, Config, OptimizerConfig
from iapo_jax.core.errors import ConfigError, fail
from iapo_jax.core.types import Params, TrainState
from iapo_jax.data import task as task_lib
from iapo_jax.hf import folder
from iapo_jax.rewards import host, token_match
from iapo_jax.rewards.reward import Grader
from iapo_jax.rl import state as state_lib
from iapo_jax.rl.optimizer import make_optimizer
from iapo_jax.rl.own import NOTHING, Own
from iapo_jax.rl.train_step import TrainStep, make_train_step
from iapo_jax.rl.warm_start import WarmStartStep, make_warm_start_step
from iapo_jax.run import evaluation


@dataclasses.dataclass(frozen=True)
class Assembly:
  """What every stage of a run shares.

  Attributes:
    cfg: the checked configuration, the vocabulary size filled in.
    task: what is read.
    mesh: devices.
    grader: grades inside compiled programs.
  """

  cfg: Config
  task: task_lib.Task
  mesh: Mesh
  grader: Grader


@dataclasses.dataclass(frozen=True)
class Stage:
  """What is particular to a stage: its optimizer and the state with it.

  Attributes:
    optimizer: of the stage.
    spec: of its state.
  """

  optimizer: optax.GradientTransformation
  spec: state_lib.StateSpec


def assemble(
    cfg: Config,
    devices: list[jax.Device] | None = None,
    *,
    home: pathlib.Path | None = None,
    data: bool = True,
) -> Assembly:
  """Everything that can fail on user input, before any compilation.

  Args:
    cfg: the checked configuration.
    devices: all of the runtime's by default.
    home: folder of the run, if it has begun: it keeps all of a pretrained
      model but the weights.
    data: whether there shall be problems; to compile nobody needs them.

  Returns:
    The parts.

  Raises:
    ConfigError: for a rule that the data, tokenizer or devices break.
  """
  pretrained, chosen, problems = _find(cfg, home, data)
  if pretrained:
    cfg = _fill_model(cfg, folder.read_model(pretrained))
    config_rules.check_layers(cfg)
  task = task_lib.load(cfg, problems, pretrained, chosen)
  if not pretrained:
    cfg = _fill_vocabulary(cfg, len(task.tokenizer))
  _check_ids(cfg, task)
  mesh = make_mesh(cfg, devices)
  own = cfg.probe.estimator in OF_OWN_ANSWER or cfg.loss.early_weight
  answer_tokens = cfg.probe.answer_tokens if own else 0
  if cfg.reward.grader == "host":
    grader = host.make_grader(task.tokenizer, mesh, answer_tokens)
  else:
    tags = token_match.tags_of(task.tokenizer)
    grader = token_match.make_grader(tags, answer_tokens)
  return Assembly(cfg, task, mesh, grader)


def make_mesh(
    config: Config, devices: list[jax.Device] | None = None
) -> Mesh:
  """The (data, fsdp, tensor) mesh of a configuration.

  Slices of a TPU, which a slower network connects, lie along the data axis
  alone: between them nothing moves but sums, nearly all of them of gradients.

  Args:
    config: the run's configuration.
    devices: all of the runtime's by default.

  Returns:
    A mesh with Auto axes.

  Raises:
    ConfigError: where the sizes do not fit.
  """
  devices = devices or jax.devices()
  config_rules.check_platform(config.model, devices[0].platform)
  shape = config_rules.mesh_shape(config, len(devices))
  names, types = ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3
  slices = _slices(devices)
  if shape[0] % slices:
    fail("mesh.data", shape[0], f"must be a multiple of the {slices} slices")
  inside = (shape[0] // slices, *shape[1:])
  # An axis may take a part of one side of a slice: of 8 x 8 chips, 4.
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
  """Of how many TPU slices they are; other devices know of none."""
  if devices[0].platform != "tpu":
    return 1
  return len({getattr(device, "slice_index", 0) for device in devices})


def warm_start_stage(parts: Assembly) -> Stage:
  """The supervised stage."""
  stage = parts.cfg.warm_start
  return _stage(parts, stage.optimizer, stage.num_steps)


def reinforcement_stage(parts: Assembly) -> Stage:
  """The reinforcement-learning stage."""
  cfg = parts.cfg
  return _stage(parts, cfg.optimizer, cfg.num_steps * cfg.loss.num_updates)


def create_state(
    parts: Assembly, stage: Stage, params: Params | None = None
) -> TrainState:
  """A stage's state at step 0, from fresh weights or a copy of `params`."""
  return state_lib.create(
      stage.spec,
      parts.cfg.seed,
      model=parts.cfg.model,
      optimizer=stage.optimizer,
      credit=parts.cfg.credit,
      params=params,
  )


def reference_of(parts: Assembly, stage: Stage, params: Params) -> Params:
  """The policy that the loss compares with, from fp32 weights."""
  return state_lib.reference(stage.spec, parts.cfg.model.dtype, params)


def train_step_of(
    parts: Assembly, stage: Stage, own: Own = NOTHING
) -> TrainStep:
  """The compiled step of reinforcement learning, perhaps with a user's parts.

  Args:
    parts: of the run.
    stage: of reinforcement learning.
    own: what is a user's.

  Returns:
    The step.
  """
  if own.text_reward:
    reward = host.make_reward(
        own.text_reward, parts.task.tokenizer, parts.mesh
    )
    own = dataclasses.replace(own, reward=reward, text_reward=None)
  return make_train_step(
      parts.cfg,
      parts.mesh,
      vocabulary=parts.task.vocabulary,
      grader=parts.grader,
      optimizer=stage.optimizer,
      spec=stage.spec,
      planting=parts.task.planting,
      own=own,
  )


def warm_start_step_of(parts: Assembly, stage: Stage) -> WarmStartStep:
  """The compiled step of the supervised stage."""
  return make_warm_start_step(
      parts.cfg, parts.mesh, optimizer=stage.optimizer, spec=stage.spec
  )


def sampler_of(parts: Assembly, stage: Stage) -> evaluation.Sampler:
  """The compiled sampler of evaluation."""
  return evaluation.make_sampler(
      parts.cfg,
      parts.mesh,
      vocabulary=parts.task.vocabulary,
      grader=parts.grader,
      param_axes=stage.spec.param_axes,
      planting=parts.task.planting,
      steps=parts.task.steps,
  )


def _stage(
    parts: Assembly, config: OptimizerConfig, num_updates: int
) -> Stage:
  optimizer = make_optimizer(config, num_updates)
  spec = state_lib.state_spec(
      parts.mesh,
      model=parts.cfg.model,
      optimizer=optimizer,
      credit=parts.cfg.credit,
  )
  return Stage(optimizer, spec)


def _find(
    cfg: Config, home: pathlib.Path | None, data: bool
) -> tuple[pathlib.Path | None, pathlib.Path | None, task_lib.Problems]:
  """Model folder, tokenizer folder and problems, or all that is missing.

  A newcomer without a network shall not find that out one by one.
  """
  folders = (
      (cfg.model.pretrained, folder.KEPT, "model.pretrained"),
      (cfg.data.tokenizer, folder.TOKENIZER, "data.tokenizer"),
  )
  found: list[pathlib.Path | None] = []
  missing: list[str] = []
  for name, kept, field in folders:
    try:
      place = _kept(home, kept) if name else None
      if name and not place:
        place = folder.find(name, weights=kept == folder.KEPT)
      found.append(place)
    except ConfigError as error:
      missing.append(f"{error}; name a folder with --config.{field}=FOLDER")
  try:
    problems = task_lib.read(cfg.data) if data else {}
  except ConfigError as error:
    missing.append(str(error))
  if missing:
    raise ConfigError(". ".join(missing))
  return found[0], found[1], problems


def _kept(home: pathlib.Path | None, name: str) -> pathlib.Path | None:
  """What a run that has begun keeps under a name, if it does."""
  return home / name if home and (home / name).is_dir() else None


def _fill_model(cfg: Config, theirs: ModelConfig) -> Config:
  """The pretrained model's architecture, with what is left to the run.

  Raises:
    ConfigError: where a run was made with another architecture.
  """
  ours = cfg.model
  own = {field: getattr(ours, field) for field in model_config.OF_RUN}
  model = dataclasses.replace(theirs, **own)
  field = model_config.difference(ours, model)
  if ours.is_read and field:
    rule = f"must be {getattr(model, field)!r}, as in {ours.pretrained!r}"
    fail(f"model.{field}", getattr(ours, field), f"{rule}, or left out")
  return dataclasses.replace(cfg, model=model)


def _check_ids(cfg: Config, task: task_lib.Task) -> None:
  """Whether the embedding has every token, and the model every position.

  A tokenizer may know more tokens than the model has; none of them may occur.
  """
  size, vocabulary = cfg.model.vocab_size, task.vocabulary
  used = [*vocabulary.eos_ids, vocabulary.pad_id, *vocabulary.elicitation]
  for table in task.tables.values():
    used += [table.prompts.tokens.max(), table.prompts.gold.max()]
  if max(used) >= size:
    fail(
        "model.vocab_size",
        size,
        f"the tokenizer gives the data token {max(used)}, which the model"
        " does not have",
    )
  most = cfg.model.max_positions
  length = cfg.data.max_prompt_tokens + cfg.rollout.max_tokens
  needed = length + len(vocabulary.elicitation) + cfg.probe.answer_tokens - 1
  if most and needed > most:
    fail(
        "model.max_positions",
        most,
        "must be at least data.max_prompt_tokens + rollout.max_tokens + the"
        f" elicitation's tokens + probe.answer_tokens - 1 = {needed}",
    )


def _fill_vocabulary(cfg: Config, size: int) -> Config:
  """The vocabulary size of the tokenizer, where the config leaves it open."""
  if cfg.model.vocab_size is None:
    model = dataclasses.replace(cfg.model, vocab_size=size)
    return dataclasses.replace(cfg, model=model)
  if cfg.model.vocab_size < size:
    fail(
        "model.vocab_size",
        cfg.model.vocab_size,
        f"must be at least the tokenizer's {size}, or left out to take it",
    )
  return cfg

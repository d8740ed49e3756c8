"""Checks the rules between fields, and between fields and devices.

The rule of a single field stands at the field. The rules between a
configuration and its data stand where the data is read.
"""

import dataclasses
import itertools
import math

from iapo_jax.config import data as data_config
from iapo_jax.config import fields, formats, gym
from iapo_jax.config import model as model_config
from iapo_jax.config.credits import CREDITS
from iapo_jax.config.formats import FormatConfig
from iapo_jax.config.model import LONGROPE, ModelConfig, RopeConfig
from iapo_jax.config.schema import OF_GOLD, Config, CreditConfig
from iapo_jax.core.errors import fail


def check(c: Config) -> None:
  """Checks all rules that need neither devices nor data."""
  fields.check(c)
  check_model(c.model)
  if c.sequences_per_step % c.loss.micro_batches:
    fail(
        "loss.micro_batches",
        c.loss.micro_batches,
        "must divide prompts_per_step x group_size ="
        f" {c.sequences_per_step}; try one of"
        f" {_divisors(c.sequences_per_step)}",
    )
  _check_format(c)
  data_config.check(c.data)
  if c.data.task == "reasoning_gym":
    _check_gym(c)
  _check_evaluation(c)
  if [c.mesh.data, c.mesh.fsdp, c.mesh.tensor].count(-1) > 1:
    fail("mesh", dataclasses.asdict(c.mesh), "only one axis may be -1")
  _check_probe(c)
  _check_credit(c)
  _check_selection(c)


def _check_evaluation(c: Config) -> None:
  """Checks evaluation: its batches, its sampling and its checkpoint."""
  e = c.evaluation
  _check_multiple(
      "evaluation.batch_size", e.batch_size, e.samples, "evaluation.samples"
  )
  if not e.temperature:
    if e.samples > 1 and not samples_differ(c):
      rule = (
          f"must be above 0 with evaluation.samples = {e.samples}: greedy"
          " samples of a problem are all the same; set evaluation.samples=1"
          " (`iapo evaluate`: --samples=1)"
      )
      fail("evaluation.temperature", e.temperature, rule)
    for field, off in (("top_p", 1), ("top_k", 0)):
      value = getattr(e, field)
      if value != off:
        rule = (
            "has no effect with evaluation.temperature = 0 (greedy); leave it"
            f" at {off} (all tokens)"
        )
        fail(f"evaluation.{field}", value, rule)
  if e.checkpoint == "best" and (not e.every or c.checkpoint.keep_best < 5):
    fail(
        "evaluation.checkpoint",
        e.checkpoint,
        "needs evaluation.every >= 1, and checkpoint.keep_best >= 5 (it"
        " chooses among the five best)",
    )


def samples_differ(c: Config) -> bool:
  """Returns whether an evaluation's samples of one problem can differ.

  Greedy ones are the same, unless slips are planted in them.
  """
  return c.evaluation.temperature > 0 or c.data.arithmetic.slip_rate > 0


def _check_multiple(field: str, value: int, unit: int, what: str) -> None:
  if value % unit:
    fail(field, value, f"must be a multiple of {what} = {unit}")


def _check_format(c: Config) -> None:
  """Checks the marks, and that task, prompt and grader fit them."""
  form = c.format
  for name in ("think_open", "think_close", "answer_open", "answer_close"):
    if not getattr(form, name).strip():
      fail(f"format.{name}", getattr(form, name), "must not be blank")
  marks = form.marks
  for mark, other in itertools.permutations(marks, 2):
    if mark in other:
      rule = f"must not be a part of another mark, {other!r}"
      fail("format", mark, rule)
  if form.in_box != (form.answer_close == "}"):
    rule = f"must be }} with format.answer_open {formats.BOX}, and only then"
    fail("format.answer_close", form.answer_close, rule)
  if c.data.prompt == "plain":
    for group, name in (
        ("data", "instructions"), ("format", "instructions"),
        ("format", "example"),
    ):  # fmt: skip
      value = getattr(getattr(c, group), name)
      if value != formats.default_of(c, group, name):
        fail(f"{group}.{name}", value, "needs data.prompt instructed")
  words = FormatConfig()
  if c.data.task == "arithmetic" and (
      form.marks != words.marks or form.opened_by != words.opened_by
  ):
    rule = "must be think_answer with data.task arithmetic, which has its tags"
    fail("format.preset", form.preset, rule)
  if c.reward.grader == "token_match":
    _check_token_match(form)


def _check_gym(c: Config) -> None:
  """Checks that scorers get texts, and that nothing needs one gold answer."""
  if c.reward.grader != "host":
    rule = "must be host with data.task reasoning_gym, whose scorers read text"
    fail("reward.grader", c.reward.grader, rule)
  several = gym.several(c.data.gym)
  if several and c.probe.stride and c.probe.estimator in OF_GOLD:
    rule = (
        f"needs one gold answer, but a problem of {', '.join(several)} may have"
        " several right answers; use entropy, own or answer_entropy"
    )
    fail("probe.estimator", c.probe.estimator, rule)


def _check_token_match(form: FormatConfig) -> None:
  """Checks that tokens alone can be graded."""
  rule = "needs reward.grader host, which reads text"
  if form.opened_by != "prompt":
    fail("format.opened_by", form.opened_by, rule)
  if form.in_box:
    fail("format.answer_open", form.answer_open, rule)
  if form.lenient:
    fail("format.lenient", form.lenient, rule)


def _check_probe(c: Config) -> None:
  """Checks probes, and that the credit mode has the probes that it reads."""
  mode, probe = c.credit.mode, c.probe
  stride = probe.stride
  reads = CREDITS[mode].reads_information and c.credit.information != "none"
  if not stride and reads:
    fail("probe.stride", stride, f"must be at least 1 with credit.mode {mode}")
  if probe.at == "sentences" and stride != 1:
    fail("probe.stride", stride, "must be 1 with probe.at sentences")
  default = type(probe)()
  for field in ("estimator", "layers"):
    value = getattr(probe, field)
    if not stride and value != getattr(default, field):
      rule = "has no effect with probe.stride = 0 (no probes); leave it out"
      fail(f"probe.{field}", value, rule)
  unused = probe.estimator == "entropy" and not c.loss.early_weight
  if unused and probe.answer_tokens != 1:
    rule = (
        "has no effect with probe.estimator entropy and loss.early_weight 0;"
        " leave it out"
    )
    fail("probe.answer_tokens", probe.answer_tokens, rule)
  if probe.answer_tokens > c.data.max_gold_tokens:
    rule = f"must be at most data.max_gold_tokens = {c.data.max_gold_tokens}"
    fail("probe.answer_tokens", probe.answer_tokens, rule)
  if not c.model.pretrained or c.model.is_complete:
    check_layers(c)
  if CREDITS[mode].at_every_token:
    _check_every_token(c)


def check_layers(c: Config) -> None:
  """Checks that the decoder has as many layers as probes run."""
  if c.probe.layers > c.model.num_layers:
    rule = f"must be at most model.num_layers = {c.model.num_layers}"
    fail("probe.layers", c.probe.layers, rule)


def _check_every_token(c: Config) -> None:
  """Checks that there is an exact probe at every token."""
  probe, rule = c.probe, f"with credit.mode {c.credit.mode}"
  if probe.at == "sentences":
    rule += ", which is defined token by token"
    fail("probe.at", probe.at, f"must be stride {rule}")
  if probe.stride > 1:
    rule += ", which is defined token by token"
    fail("probe.stride", probe.stride, f"must be 1 {rule}")
  if probe.estimator != "entropy":
    fail("probe.estimator", probe.estimator, f"must be entropy {rule}")
  if probe.layers:
    fail("probe.layers", probe.layers, f"must be 0 {rule}")


def _check_credit(c: Config) -> None:
  """Checks rewards and credit."""
  credit, mode = c.credit, CREDITS[c.credit.mode]
  if credit.information != "realised" and not mode.takes_controls:
    names = [name for name, known in CREDITS.items() if known.takes_controls]
    rule = f"needs credit.mode {' or '.join(names)}; no other mode reads it"
    fail("credit.information", credit.information, rule)
  if not credit.only_correct and not mode.gates:
    rule = f"must be true with credit.mode {credit.mode}"
    fail("credit.only_correct", False, rule)
  if credit.normalise and mode.penalises_rewards:
    rule = (
        f"must be false with credit.mode {credit.mode}: dividing by the"
        " standard deviation would cancel the weight of the penalty"
    )
    fail("credit.normalise", True, rule)
  if c.reward.partial and c.data.task != "reasoning_gym":
    fail("reward.partial", True, "needs data.task reasoning_gym, which scores")
  _check_price(credit)
  if c.reward.overlong_tokens > c.rollout.max_tokens:
    rule = f"must be at most rollout.max_tokens = {c.rollout.max_tokens}"
    fail("reward.overlong_tokens", c.reward.overlong_tokens, rule)


def _check_price(credit: CreditConfig) -> None:
  """Checks that the mode prices tokens, at a price."""
  mode = CREDITS[credit.mode]
  if credit.price != "auto" and not mode.prices:
    names = [name for name, known in CREDITS.items() if known.prices]
    rule = (
        f"needs credit.mode {', '.join(names[:-1])} or {names[-1]}; no other"
        " mode prices tokens"
    )
    fail("credit.price", credit.price, rule)
  weight = "cost" if "cost" in mode.weights else "length_weight"
  if credit.priced != mode.prices and not getattr(credit, weight):
    rule = f"has no effect with credit.{weight} = 0; set credit.{weight}, too"
    fail("credit.price", credit.price, rule)


def _check_selection(c: Config) -> None:
  """Checks the selection of completions and tokens that learn."""
  select = c.select
  if select.shortest == 1 or select.shortest > c.group_size:
    rule = f"must be 0, or 2 to group_size = {c.group_size}"
    fail("select.shortest", select.shortest, rule)
  if select.shortest and CREDITS[c.credit.mode].whole_groups:
    rule = (
        f"must be 0 with credit.mode {c.credit.mode}, which compares whole"
        " groups"
    )
    fail("select.shortest", select.shortest, rule)
  if select.first_tokens >= c.rollout.max_tokens:
    rule = f"must be below rollout.max_tokens = {c.rollout.max_tokens}"
    fail("select.first_tokens", select.first_tokens, rule)
  for field in ("short_tokens", "later_share"):
    value = getattr(select, field)
    if value and not select.first_tokens:
      fail(f"select.{field}", value, "needs select.first_tokens >= 1")
  if bool(select.later_share) != bool(select.short_tokens):
    if select.later_share:
      rule = "needs select.short_tokens >= 1"
    else:
      rule = f"must be above 0, as select.short_tokens = {select.short_tokens}"
    fail("select.later_share", select.later_share, rule)


def check_model(m: ModelConfig) -> None:
  """Checks all rules of a decoder that need no devices."""
  _check_pretrained(m)
  fields.check(m, "model.")
  if m.num_heads % m.num_kv_heads:
    fail(
        "model.num_kv_heads",
        m.num_kv_heads,
        f"must divide model.num_heads = {m.num_heads}",
    )
  if m.head_dim % 2:
    rule = "must be even: rotary embeddings turn pairs of numbers"
    fail("model.head_dim", m.head_dim, rule)
  for name in ("rotary", "windows"):
    value = getattr(m, name)
    if len(value) not in (0, m.num_layers):
      rule = f"must have one entry per layer, {m.num_layers}, or none"
      fail(f"model.{name}", list(value), rule)
  for name in ("rope", "local_rope"):
    _check_rope(f"model.{name}", getattr(m, name), m)


def _check_pretrained(m: ModelConfig) -> None:
  """Checks that the fields that a pretrained model gives are left out."""
  if not m.pretrained or m.is_complete:
    return
  default = ModelConfig()
  for field in dataclasses.fields(m):
    value = getattr(m, field.name)
    own = field.name in model_config.OF_RUN
    if not own and value != getattr(default, field.name):
      rule = f"is read from model.pretrained = {m.pretrained!r}; leave it out"
      fail(f"model.{field.name}", value, rule)


def _check_rope(name: str, rope: RopeConfig, m: ModelConfig) -> None:
  width = m.head_dim * rope.fraction
  if not 0 < rope.fraction <= 1 or width % 2:
    rule = (
        "must be in (0, 1], and model.head_dim ="
        f" {m.head_dim} times it must be even"
    )
    fail(f"{name}.fraction", rope.fraction, rule)
  if "local" in m.rotary and rope.fraction != m.rope.fraction:
    rule = f"must equal model.rope.fraction = {m.rope.fraction}"
    fail(f"{name}.fraction", rope.fraction, rule)
  # Longrope divides by the logarithm of the original length.
  least = {"llama3": 1, "yarn": 1, LONGROPE: 2}.get(rope.kind, 0)
  if rope.original_positions < least:
    rule = f"must be at least {least} with kind {rope.kind}"
    fail(f"{name}.original_positions", rope.original_positions, rule)
  if rope.kind == LONGROPE:
    _check_longrope(name, rope, int(width) // 2)
  if rope.high_freq <= rope.low_freq:
    rule = f"must be above {name}.low_freq = {rope.low_freq}"
    fail(f"{name}.high_freq", rope.high_freq, rule)


def _check_longrope(name: str, rope: RopeConfig, pairs: int) -> None:
  if name != "model.rope":  # `rope_factors` is about that one alone
    fail(f"{name}.kind", rope.kind, "is supported for model.rope only")
  for field in ("short_factors", "long_factors"):
    value = getattr(rope, field)
    if len(value) != pairs:
      rule = f"must have {pairs} numbers, one for each rotated pair"
      fail(f"{name}.{field}", f"{len(value)} numbers", rule)


def _divisors(n: int) -> list[int]:
  return [i for i in range(1, n + 1) if n % i == 0]


def check_platform(m: ModelConfig, platform: str) -> None:
  """Checks that a platform (cpu, gpu or tpu) has the chosen attention."""
  if m.attention != "fused":
    return
  if platform not in model_config.FUSED_PLATFORMS:
    rule = f"needs GPUs or TPUs, not {platform}; use auto or reference"
    fail("model.attention", m.attention, rule)
  if platform == "gpu" and m.head_dim not in (16, 32, 64, 128, 256):
    rule = (
        "needs a model.head_dim of 16, 32, 64, 128 or 256 on GPUs, not"
        f" {m.head_dim}; use reference"
    )
    fail("model.attention", m.attention, rule)


def mesh_shape(c: Config, devices: int) -> tuple[int, int, int]:
  """Returns the sizes of the axes (data, fsdp, tensor).

  Raises:
    ConfigError: if they do not fit `devices`, the number of devices, or do not
      divide the decoder or a batch.
  """
  sizes = dataclasses.asdict(c.mesh)
  fixed = math.prod(size for size in sizes.values() if size != -1)
  shape = {
      axis: devices // fixed if size == -1 else size
      for axis, size in sizes.items()
  }
  if math.prod(shape.values()) != devices:
    fail("mesh", sizes, f"must multiply to the number of devices, {devices}")
  tensor = shape["tensor"]
  split = ["num_heads", "num_kv_heads", "mlp_dim"]
  if c.model.is_complete:
    split.append("vocab_size")
  most = math.gcd(*(getattr(c.model, field) for field in split))
  for field in split:
    value = getattr(c.model, field)
    if value % tensor:
      sizes = [str(n) for n in range(1, most + 1) if most % n == 0]
      fail(
          f"model.{field}",
          value,
          f"must be a multiple of mesh.tensor = {tensor}; for this model"
          f" mesh.tensor can be {', '.join(sizes)}",
      )
  if c.model.d_model % shape["fsdp"]:
    rule = f"must be a multiple of mesh.fsdp = {shape['fsdp']}"
    fail("model.d_model", c.model.d_model, rule)
  _check_batches(c, shape["data"] * shape["fsdp"])
  return shape["data"], shape["fsdp"], shape["tensor"]


def _check_batches(c: Config, shards: int) -> None:
  """Checks that the batches of every stage split evenly over the shards."""
  what = "data x fsdp"
  if c.num_steps:
    _check_multiple("prompts_per_step", c.prompts_per_step, shards, what)
  sequences = c.sequences_per_step // shards
  if c.num_steps and sequences % c.loss.micro_batches:
    fail(
        "loss.micro_batches",
        c.loss.micro_batches,
        f"must divide the {sequences} completions of a shard (data x fsdp ="
        f" {shards} shards)",
    )
  if c.warm_start.num_steps:
    size = c.warm_start.batch_size
    _check_multiple("warm_start.batch_size", size, shards, what)
  e = c.evaluation
  _check_multiple(
      "evaluation.batch_size",
      e.batch_size,
      shards * e.samples,
      f"{what} x evaluation.samples",
  )

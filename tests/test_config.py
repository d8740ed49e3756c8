import dataclasses
import json

import pytest

from iapo_jax.config import parsing as config_lib
from iapo_jax.config import rules as config_rules
from iapo_jax.config.schema import Config
from iapo_jax.core.errors import ConfigError
from iapo_jax.run import assembly


def flat(**overrides):
  """The default configuration with fields set by dotted name (`__`)."""
  config = config_lib.default()
  for name, value in overrides.items():
    config.update_from_flattened_dict({name.replace("__", "."): value})
  return config


def test_the_default_parses_to_the_dataclass_defaults():
  assert config_lib.parse(config_lib.default()) == Config()


def test_integers_become_floats_where_asked():
  parsed = config_lib.parse({"credit": {"info_weight": 2}})
  assert isinstance(parsed.credit.info_weight, float)


def test_flatten_is_json_and_complete():
  flattened = config_lib.flatten(Config())
  assert json.loads(json.dumps(flattened)) == flattened
  assert flattened["warm_start.optimizer.learning_rate"] == 6e-3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"group_size": 1}, "config.group_size = 1: must be at least 2"),
        ({"group_size": 2.5}, "config.group_size = 2.5: must be of type int"),
        ({"group_size": True}, "config.group_size = True: must be of type int"),
        ({"seed": -1}, "config.seed = -1: must be in [0, 4294967295]"),
        (
            {"credit__mode": "iapo"},
            "config.credit.mode = 'iapo': must be one of grpo, gtpo,"
            " length_penalty, group_length_penalty, paper, to_go, faithful",
        ),
        (
            {"credit__information": "none", "credit__mode": "grpo"},
            "config.credit.information = 'none': needs credit.mode paper or"
            " to_go; no other mode reads it",
        ),
        (
            {"credit__mode": "length_penalty"},
            "config.credit.normalise = True: must be false with credit.mode"
            " length_penalty: dividing by the standard deviation would cancel"
            " the weight of the penalty",
        ),
        (
            {"credit__only_correct": False},
            "config.credit.only_correct = False: must be true with credit.mode"
            " paper",
        ),
        (
            {"reward__overlong_tokens": 73},
            "config.reward.overlong_tokens = 73: must be at most"
            " rollout.max_tokens = 72",
        ),
        (
            {"credit__price": "answer"},
            "config.credit.price = 'answer': needs credit.mode length_penalty,"
            " group_length_penalty or to_go; no other mode prices tokens",
        ),
        (
            {"credit__price": "both", "credit__mode": "to_go"},
            "config.credit.price = 'both': has no effect with credit.cost = 0;"
            " set credit.cost, too",
        ),
        (
            {"select__shortest": 9},
            "config.select.shortest = 9: must be 0, or 2 to group_size = 8",
        ),
        (
            {"select__shortest": 1},
            "config.select.shortest = 1: must be 0, or 2 to group_size = 8",
        ),
        (
            {"select__first_tokens": 72},
            "config.select.first_tokens = 72: must be below"
            " rollout.max_tokens = 72",
        ),
        (
            {"select__first_tokens": 9, "select__short_tokens": 20},
            "config.select.later_share = 0.0: must be above 0, as"
            " select.short_tokens = 20",
        ),
        (
            {"select__shortest": 4, "credit__mode": "gtpo"},
            "config.select.shortest = 4: must be 0 with credit.mode gtpo, which"
            " compares whole groups",
        ),
        (
            {"probe__layers": 1, "credit__mode": "faithful"},
            "config.probe.layers = 1: must be 0 with credit.mode faithful",
        ),
        (
            {
                "probe__layers": 1,
                "probe__stride": 0,
                "credit__mode": "grpo",
            },
            "config.probe.layers = 1: has no effect with probe.stride = 0 (no"
            " probes); leave it out",
        ),
        (
            {"select__later_share": 0.5},
            "config.select.later_share = 0.5: needs select.first_tokens >= 1",
        ),
        (
            {"loss__ratio": "group"},
            "config.loss.ratio = 'group': must be one of token, sequence",
        ),
        (
            {"probe__stride": 0, "credit__mode": "paper"},
            "config.probe.stride = 0: must be at least 1 with credit.mode"
            " paper",
        ),
        (
            {"probe__stride": 2, "credit__mode": "faithful"},
            "config.probe.stride = 2: must be 1 with credit.mode faithful,"
            " which is defined token by token",
        ),
        (
            {"probe__estimator": "surprise"},
            "config.probe.estimator = 'surprise': must be one of entropy, gold,"
            " own, answer_entropy, gold_chance",
        ),
        (
            {"probe__answer_tokens": 2},
            "config.probe.answer_tokens = 2: has no effect with probe.estimator"
            " entropy and loss.early_weight 0; leave it out",
        ),
        (
            {"probe__answer_tokens": 2, "probe__estimator": "gold"},
            "config.probe.answer_tokens = 2: must be at most"
            " data.max_gold_tokens = 1",
        ),
        (
            {"probe__layers": 3},
            "config.probe.layers = 3: must be at most model.num_layers = 2",
        ),
        (
            {"probe__estimator": "own", "credit__mode": "faithful"},
            "config.probe.estimator = 'own': must be entropy with credit.mode"
            " faithful",
        ),
        (
            {"probe__at": "words"},
            "config.probe.at = 'words': must be one of stride, sentences",
        ),
        (
            {"probe__at": "sentences", "probe__stride": 2},
            "config.probe.stride = 2: must be 1 with probe.at sentences",
        ),
        (
            {"probe__at": "sentences", "credit__mode": "faithful"},
            "config.probe.at = 'sentences': must be stride with credit.mode"
            " faithful, which is defined token by token",
        ),
        (
            {"credit__info_weight": float("nan")},
            "config.credit.info_weight = nan: must be finite",
        ),
        (
            {"rollout__temperature": 0.0},
            "config.rollout.temperature = 0.0: must be positive",
        ),
        (
            {"model__num_kv_heads": 3},
            "config.model.num_kv_heads = 3: must divide model.num_heads = 2",
        ),
        (
            {"model__head_dim": 7},
            "config.model.head_dim = 7: must be even: rotary embeddings turn"
            " pairs of numbers",
        ),
        (
            {"loss__micro_batches": 3},
            "config.loss.micro_batches = 3: must divide prompts_per_step x"
            " group_size = 64; try one of [1, 2, 4, 8, 16, 32, 64]",
        ),
        (
            {"loss__aggregation": "mean"},
            "config.loss.aggregation = 'mean': must be one of token_mean,"
            " sequence_mean, constant_length",
        ),
        (
            {"data__overlong": "drop"},
            "config.data.overlong = 'drop': must be one of error, skip,"
            " truncate_left",
        ),
        (
            {"mesh__data": 0},
            "config.mesh.data = 0: must be at least 1, or -1 for the rest",
        ),
        (
            {"mesh__fsdp": -1},
            "config.mesh = {'data': -1, 'fsdp': -1, 'tensor': 1}: only one axis"
            " may be -1",
        ),
        (
            {"optimizer__b1": 1.0},
            "config.optimizer.b1 = 1.0: must be in [0, 1): Adam divides by 1 -"
            " b",
        ),
        (
            {"optimizer__learning_rate": -1.0},
            "config.optimizer.learning_rate = -1.0: must be at least 0",
        ),
        (
            {"model__dtype": "float16"},
            "config.model.dtype = 'float16': must be one of float32, bfloat16",
        ),
    ],
)
def test_a_broken_rule_is_one_line(overrides, message):
  config = config_lib.default()
  config.unlock()
  for name, value in overrides.items():
    group, _, field = name.rpartition("__")
    target = config[group] if group else config
    with target.ignore_type():
      target[field] = value
  with pytest.raises(ConfigError) as error:
    config_lib.parse(config)
  assert str(error.value) == message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"groupsize": 8},
            "config.groupsize = 8: unknown field; did you mean"
            " config.group_size?",
        ),
        (
            {"credit": {"inf_weight": 1.0}},
            "config.credit.inf_weight = 1.0: unknown field; did you mean"
            " config.credit.info_weight?",
        ),
        ({"zzz": 1}, "config.zzz = 1: unknown field; see `iapo fields`"),
        ({"credit": 3}, "config.credit = 3: must be a group of fields"),
        ({1: 2}, "config.1 = 2: unknown field; see `iapo fields`"),
        (
            {"loss": {"kl_weight": 10**309}},
            f"config.loss.kl_weight = {10**309}: must be finite",
        ),
    ],
)
def test_unknown_fields_are_named(config, message):
  with pytest.raises(ConfigError) as error:
    config_lib.parse(config)
  assert str(error.value) == message


@pytest.mark.parametrize(
    ("overrides", "devices", "message"),
    [
        (
            {"mesh__tensor": 4},
            8,
            "config.model.num_heads = 2: must be a multiple of mesh.tensor = 4;"
            " for this model mesh.tensor can be 1, 2",
        ),
        (
            {"mesh__tensor": 4, "model__num_heads": 8},
            8,
            "config.model.num_kv_heads = 2: must be a multiple of mesh.tensor ="
            " 4; for this model mesh.tensor can be 1, 2",
        ),
        (
            {"mesh__tensor": 2, "model__vocab_size": 37},
            2,
            "config.model.vocab_size = 37: must be a multiple of mesh.tensor ="
            " 2; for this model mesh.tensor can be 1",
        ),
        (
            {"mesh__tensor": 3},
            8,
            "config.mesh = {'data': -1, 'fsdp': 1, 'tensor': 3}: must multiply"
            " to the number of devices, 8",
        ),
        (
            {"mesh__fsdp": 8, "model__d_model": 60},
            8,
            "config.model.d_model = 60: must be a multiple of mesh.fsdp = 8",
        ),
        (
            {"warm_start__num_steps": 1, "warm_start__batch_size": 12},
            8,
            "config.warm_start.batch_size = 12: must be a multiple of data x"
            " fsdp = 8",
        ),
        (
            {"prompts_per_step": 12},
            8,
            "config.prompts_per_step = 12: must be a multiple of data x fsdp ="
            " 8",
        ),
        (
            {"loss__micro_batches": 16, "mesh__fsdp": 2},
            8,
            "config.loss.micro_batches = 16: must divide the 8 completions of a"
            " shard (data x fsdp = 8 shards)",
        ),
        (
            {"evaluation__batch_size": 12},
            8,
            "config.evaluation.batch_size = 12: must be a multiple of data x"
            " fsdp x evaluation.samples = 8",
        ),
    ],
)
def test_sizes_that_do_not_fit_the_devices(overrides, devices, message):
  parsed = config_lib.parse(flat(**overrides))
  with pytest.raises(ConfigError) as error:
    config_rules.mesh_shape(parsed, devices)
  assert str(error.value) == message


@pytest.mark.mesh
def test_slices_lie_along_the_data_axis(monkeypatch):
  monkeypatch.setattr(assembly, "_slices", lambda _: 3)
  with pytest.raises(ConfigError, match="data = 8: must be a multiple of 3, t"):
    assembly.make_mesh(Config())


def test_the_mesh_takes_what_is_left():
  parsed = config_lib.parse(flat(mesh__tensor=2, model__vocab_size=40))
  assert config_rules.mesh_shape(parsed, 8) == (4, 1, 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"evaluation__samples": 3},
            "config.evaluation.batch_size = 256: must be a multiple of"
            " evaluation.samples = 3",
        ),
        (
            {"evaluation__checkpoint": "best", "evaluation__every": 0},
            "config.evaluation.checkpoint = 'best': needs evaluation.every >="
            " 1, and checkpoint.keep_best >= 5 (it chooses among the five"
            " best)",
        ),
        (
            {"checkpoint__keep_last": 1},
            "config.checkpoint.keep_last = 1: must be at least 2",
        ),
        (
            {"evaluation__top_p": 0.0},
            "config.evaluation.top_p = 0.0: must be in (0, 1]",
        ),
        (
            {"evaluation__top_p": 1.01},
            "config.evaluation.top_p = 1.01: must be in (0, 1]",
        ),
        (
            {"evaluation__top_k": -1},
            "config.evaluation.top_k = -1: must be at least 0",
        ),
        (
            {"evaluation__temperature": 0.0, "evaluation__samples": 4},
            "config.evaluation.temperature = 0.0: must be above 0 with"
            " evaluation.samples = 4: greedy samples of a problem are all the"
            " same; set evaluation.samples=1 (`iapo evaluate`: --samples=1)",
        ),
        (
            {"evaluation__temperature": 0.0, "evaluation__top_p": 0.95},
            "config.evaluation.top_p = 0.95: has no effect with"
            " evaluation.temperature = 0 (greedy); leave it at 1 (all tokens)",
        ),
        (
            {"evaluation__temperature": 0.0, "evaluation__top_k": 20},
            "config.evaluation.top_k = 20: has no effect with"
            " evaluation.temperature = 0 (greedy); leave it at 0 (all tokens)",
        ),
    ],
)
def test_rules_of_evaluation_and_checkpoints(overrides, message):
  with pytest.raises(ConfigError) as error:
    config_lib.parse(flat(**overrides))
  assert str(error.value) == message


def test_greedy_samples_differ_by_planted_slips():
  changes = {"evaluation__temperature": 0.0, "evaluation__samples": 4}
  slips = flat(**changes, data__arithmetic__slip_rate=0.2)
  assert config_lib.parse(slips).evaluation.samples == 4


def test_configurations_are_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    Config().seed = 3

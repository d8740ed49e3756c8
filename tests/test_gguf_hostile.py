"""GGUF files of strangers: what they claim is compared with what is there."""

import pathlib
import random
import resource
import struct
import time

import ggufs
import pytest
import tokenizer_kinds

from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import folder, gguf_header, tokenizer, weights

GOLDEN = pathlib.Path(__file__).parent / "golden"
HUGE = 2**60
U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10


def text(value):
  value = value.encode() if isinstance(value, str) else value
  return struct.pack("<Q", len(value)) + value


def pair(key, kind, value):
  return text(key) + struct.pack("<I", kind) + value


def array(key, kind, count, content=b""):
  return pair(key, ARRAY, struct.pack("<IQ", kind, count) + content)


def tensor(name="x", shape=(4,), kind=0, start=0):
  return text(name) + struct.pack(
      f"<I{len(shape)}QIQ", len(shape), *shape, kind, start
  )


def header(*pairs, tensors=(), version=3, counts=None, magic=b"GGUF", more=64):
  """A file with these entries, and some bytes of numbers after them."""
  counts = counts or (len(tensors), len(pairs))
  head = magic + struct.pack("<IQQ", version, *counts)
  head += b"".join(pairs) + b"".join(tensors)
  return head + bytes(-len(head) % 32) + bytes(more)


ALIGNED = "general.alignment"
# What is in a file, and what the error says after the file's name.
BROKEN = {
    "nothing": (b"", "is damaged or cut off: its magic number of 4 bytes"),
    "another format": (b"PK\3\4" + bytes(99), "is not a GGUF file"),
    "no counts": (b"GGUF\3\0\0\0\1", "is damaged or cut off: its number of"),
    "an old version": (header(version=1), "is of version 1; versions 2 and 3"),
    "a new version": (header(version=9), "is of version 9; versions 2 and 3"),
    "big-endian": (header(version=3 << 24), "is big-endian; versions 2 and 3"),
    "keys": (header(counts=(0, HUGE)), f"{HUGE} metadata keys cannot be in"),
    "tensors": (header(counts=(HUGE, 0)), f"{HUGE} tensors cannot be in"),
    "a key": (
        header(struct.pack("<Q", HUGE), counts=(0, 1)),
        f"a metadata key has {HUGE} bytes, more than 65535",
    ),
    "a text": (
        header(pair("k", STRING, struct.pack("<Q", HUGE))),
        f"k of {HUGE} bytes cannot be in the",
    ),
    "a list of numbers": (
        header(array("k", U8, HUGE)), f"{HUGE} values of k cannot be in the",
    ),
    "a list of texts": (
        header(array("k", STRING, HUGE)), f"{HUGE} texts of k cannot be in the",
    ),
    "a count that overflows": (
        header(array("k", U64, 2**61)), f"{2**61} values of k cannot be in",
    ),
    "lists of lists": (
        header(array("k", ARRAY, HUGE)), "k is a list of lists, which is not",
    ),
    "an unknown type": (
        header(pair("k", 99, bytes(8))), "k has values of type 99, which is",
    ),
    "an unknown type in a list": (
        header(array("k", 13, 0)), "k has values of type 13, which is not",
    ),
    "a key twice": (
        header(*[pair("k", U32, bytes(4))] * 2), "has the metadata key 'k' twi",
    ),
    "a key that is no text": (
        header(pair(b"\xff", U32, bytes(4))), "a metadata key is not UTF-8",
    ),
    "a text that is none": (
        header(pair("k", STRING, text(b"\xc3("))), "k is not UTF-8",
    ),
    "a list with one that is none": (
        header(array("k", STRING, 1, text(b"\xed\xa0\x80"))),
        "an entry of k is not UTF-8",
    ),
    "dimensions": (
        header(tensors=[text("x") + struct.pack("<I", 2**32 - 1) + bytes(40)]),
        "tensor 'x' has 4294967295 dimensions: must have 1 to 4",
    ),
    "no dimensions": (
        header(tensors=[tensor(shape=()) + bytes(8)]), "has 0 dimensions",
    ),
    "a shape": (
        header(tensors=[tensor(shape=(HUGE, HUGE))]),
        "is damaged or cut off: tensor 'x' ends at byte",
    ),
    "an empty shape": (
        header(tensors=[tensor(shape=(4, 0))]), "has shape [0, 4], which is em",
    ),
    "a place": (
        header(tensors=[tensor(start=2**63)]), "tensor 'x' ends at byte 92233",
    ),
    "a place in between": (
        header(tensors=[tensor(start=8)]), "does not start at a multiple of 32",
    ),
    "the end": (
        header(tensors=[tensor(shape=(17,))]), "tensor 'x' ends at byte",
    ),
    "a type of numbers": (
        header(tensors=[tensor(kind=4)]), "has the type 4, which is not known",
    ),
    "blocks": (
        header(tensors=[tensor(shape=(33,), kind=2)]),
        "has rows of 33 numbers: Q4_0 has blocks of 32",
    ),
    "a tensor twice": (
        header(tensors=[tensor(), tensor(start=32)]), "has the tensor 'x' twic",
    ),
    "the same bytes twice": (
        header(tensors=[tensor("x"), tensor("y")]), "tensors 'x' and 'y' overl",
    ),
    "no alignment": (
        header(pair(ALIGNED, U32, struct.pack("<I", 0))), f"{ALIGNED} = 0: mus",
    ),
    "an odd alignment": (
        header(pair(ALIGNED, U32, struct.pack("<I", 48))), "a power of two",
    ),
    "an alignment of another type": (
        header(pair(ALIGNED, BOOL, b"\1")), f"{ALIGNED} = True: must be",
    ),
    "a huge alignment": (
        header(pair(ALIGNED, U64, struct.pack("<Q", HUGE)),
               tensors=[tensor()]), "ends at byte",
    ),
}  # fmt: skip


def refusal(place):
  """What is said of a file, without memory or time for what it claims."""
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  start = time.process_time()
  messages = []
  for read in (folder.read_model, tokenizer.load, weights.reader):
    with pytest.raises(ConfigError) as error:
      read(place)
    messages.append(str(error.value))
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert after - before < 2**16, "MiB for what is not there"
  assert time.process_time() - start < 5
  assert messages == messages[:1] * 3
  assert messages[0].startswith(f"{str(place)!r}: ")
  assert "\n" not in messages[0]
  return messages[0]


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_claims_what_is_not_there(case, tmp_path):
  content, told = BROKEN[case]
  place = tmp_path / "m.gguf"
  place.write_bytes(content)
  assert told in refusal(place)


def test_a_file_that_is_cut_off_anywhere(tmp_path):
  """In metadata, tokens, names of tensors and weights."""
  whole = ggufs.write(
      tmp_path / "whole.gguf", GOLDEN / "qwen2",
      tok=tokenizer_kinds.of("byte_level"), kind="F16",
  ).read_bytes()  # fmt: skip
  place = tmp_path / "m.gguf"
  place.write_bytes(whole)
  folder.read_model(place)
  for size in [*range(0, 4000, 41), *range(4000, len(whole), 1999)]:
    place.write_bytes(whole[:size])
    with pytest.raises(ConfigError, match="damaged or cut off"):
      gguf_header.read(place)


def test_bytes_that_were_changed(tmp_path):
  """A file with other bytes is refused or read; nothing else is raised."""
  whole = ggufs.write(
      tmp_path / "whole.gguf", GOLDEN / "gemma3", spm=True,
      tok=tokenizer_kinds.of("replaced"),
  ).read_bytes()  # fmt: skip
  rng, refused = random.Random(0), 0
  place = tmp_path / "m.gguf"
  for _ in range(150):
    content = bytearray(whole)
    for _ in range(rng.randrange(1, 4)):
      at = rng.randrange(24, 9000)
      content[at] = rng.choice((0, 1, 255, rng.randrange(256)))
    place.write_bytes(content)
    try:
      weights.check(weights.reader(place), folder.read_model(place))
      folder.read_tokens(place)
      tokenizer.load(place)
    except ConfigError as error:
      refused += 1
      assert "m.gguf" in str(error)
  assert 30 < refused < 150


def test_a_file_that_became_shorter(tmp_path):
  place = ggufs.write(tmp_path / "m.gguf", GOLDEN / "qwen2")
  reader = weights.reader(place)
  place.write_bytes(place.read_bytes()[:-4000])
  with pytest.raises(ConfigError, match="became shorter while it was read"):
    for name in reader.names:
      reader.read(name, (slice(None),))


def test_a_file_that_cannot_be_read(tmp_path):
  place = tmp_path / "m.gguf"
  place.symlink_to("/proc/self/mem")
  with pytest.raises(ConfigError, match=r"m\.gguf': "):
    gguf_header.read(place)
  gone = tmp_path / "gone.gguf"
  with pytest.raises(ConfigError, match=r"cannot be read \(No such"):
    gguf_header.read(gone)

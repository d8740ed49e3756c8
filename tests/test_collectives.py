"""What moves between devices, read from the text of programs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from iapo_jax.tools import collectives

PROGRAM = """
HloModule step, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%layer (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %a = f32[4,8]{1,0:T(8,128)} all-gather(%q), channel_id=1, OPTIONS
  ROOT %t = (s32[], f32[4,8]) tuple(%i, %a)
}

%small () -> f32[2] {
  ROOT %r = f32[2]{0} all-reduce(%v), channel_id=2, OPTIONS, to_apply=%add
}

%large () -> f32[6] {
  ROOT %r = f32[6]{0} all-reduce(%v), channel_id=3, OPTIONS, to_apply=%add
}

%started (p: bf16[2]) -> (bf16[2], bf16[8]) {
  %g = bf16[8]{0} all-gather(%p), channel_id=4, OPTIONS
  ROOT %c = (bf16[2]{0:T(8)S(1)}, bf16[8]{0}, /*index=2*/u32[]) custom-call(%g)
}

%ended (p: bf16[2]) -> bf16[8] {
  %g = bf16[8]{0} all-gather(%p), channel_id=4, OPTIONS
  ROOT %c = bf16[8]{0} custom-call(%g)
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %w = (s32[], /*index=1*/f32[4,8]) while(%p), condition=%c, body=%layer, LOOP
  %b = f32[] conditional(%p), branch_computations={%small, %large}
  %s = (bf16[2], bf16[8], u32[]) fusion(%p), kind=kCustom, calls=%started
  %e = bf16[8] fusion(%s), kind=kCustom, calls=%ended
  ROOT %done = f32[4] copy(%p), metadata={op_name="jit(step)/copy"}
}
"""
BETWEEN = """
HloModule step

%token (p: (s32[], f32[2])) -> (s32[], f32[2]) {
  %s = (f32[2,8]{1,0:T(8)}, u32[], token[]) send(%q, %a), channel_id=10, SLICES
  %d = token[] send-done(%s), channel_id=10, SLICES
  %h = (f32[9]{0}, u32[], token[]) send(%q, %a), channel_id=12, HOST
  ROOT %t = (s32[], f32[2]) tuple(%i, %x)
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %w = (s32[], f32[2]) while(%p), condition=%c, body=%token, LOOP
  ROOT %done = f32[4] copy(%p)
}
"""
GROUPS = [
    "replica_groups=[2,4]<=[8]",
    "replica_groups={{0,1,2,3},{4,5,6,7}}",
    "replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}",
    "replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0))"
    " {'axis_0'}",
]


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("known", [True, False])
def test_by_hand(groups, known):
  named = 'metadata={op_name="jit(step)/Decoder/while"}'
  loop = 'backend_config={"known_trip_count":{"n":"5"}}' if known else named
  text = PROGRAM.replace("OPTIONS", groups).replace("LOOP", loop)

  def trips(name):
    assert name == "jit(step)/Decoder/while" and not known
    return 5

  found = collectives.transfers(text, trips)
  # Five times 3/4 of 4 · 8 · 4 bytes are gathered: 5 · 96. Of the branches the
  # larger: twice 3/4 of 6 · 4 bytes. What is started and ended is gathered
  # once: 3/4 of 8 · 2 bytes.
  assert [(x.kind, x.devices, x.times, x.sent_bytes) for x in found] == [
      ("all-gather", 4, 5, 480.0),
      ("all-reduce", 4, 1, 36.0),
      ("all-gather", 4, 1, 12.0),
  ]


def test_between_slices():
  """What the host is asked for is not: it sends to nobody."""
  handler = 'frontend_attributes={_xla_host_transfer_handler_name="%s"}'
  text = (
      BETWEEN.replace("SLICES", handler % "xla_megascale_runtime")
      .replace("HOST", handler % "xla_ffi_python_cpu_callback")
      .replace("LOOP", 'metadata={op_name="jit(step)/update/while"}')
  )
  (found,) = collectives.transfers(text, lambda _: 3)
  assert found.kind == collectives.BETWEEN_SLICES
  assert found.scope == "jit(step)/update/while"  # of the loop around it
  assert found.sent_bytes == 3 * 2 * 8 * 4


RING = """
HloModule step

%windowed_dot_general_body_ag.1 (p: (bf16[4], bf16[4])) -> (bf16[4], bf16[4]) {
  %a = (bf16[4], bf16[4], u32[], u32[]) collective-permute-start(%x), PAIRS
  %b = bf16[4]{0} collective-permute(%y), channel_id=2, PAIRS
  ROOT %t = (bf16[4], bf16[4]) tuple(%x, %b)
}

ENTRY %main (p: bf16[4]) -> bf16[4] {
  %w = (bf16[4]) while(%p), condition=%c, body=%windowed_dot_general_body_ag.1
  ROOT %done = bf16[4] copy(%p)
}
"""


def test_products_that_pass_parts_on():
  """Two rings of four devices each; two of the parts pass in every turn."""
  pairs = "{0,2},{2,4},{4,6},{6,0},{1,3},{3,5},{5,7},{7,1}"
  text = RING.replace("PAIRS", f"source_target_pairs={{{pairs}}}")
  found = collectives.transfers(text, lambda _: pytest.fail("not asked"))
  assert [(x.kind, x.times, x.sent_bytes) for x in found] == [
      ("collective-permute", 2, 2 * 8)
  ] * 2


def test_groups_that_are_not_understood_are_not_left_out():
  text = PROGRAM.replace("OPTIONS", "replica_groups=<new>")
  with pytest.raises(ValueError, match="unknown notation: %a = f32"):
    collectives.transfers(text, lambda _: 1)


def test_of_a_compiled_program():
  # Eight devices have a column of a [16, 8] matrix each; three times a product
  # with it is summed over them: fp32[16], twice 7/8 of 64 bytes, three times.
  mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
  columns = NamedSharding(mesh, P(None, "x"))
  rows = NamedSharding(mesh, P("x"))

  def step(matrix, vector):
    def once(carry, _):
      product = jax.lax.with_sharding_constraint(
          matrix @ (vector * carry), NamedSharding(mesh, P())
      )
      return jnp.sum(product), product

    return jax.lax.scan(once, 1.0, length=3)[1]

  compiled = (
      jax.jit(step)
      .lower(
          jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=columns),
          jax.ShapeDtypeStruct((8,), jnp.float32, sharding=rows),
      )
      .compile()
  )
  found = collectives.transfers(compiled.as_text(), lambda _: 0)
  assert [(x.kind, x.devices, x.times) for x in found] == [("all-reduce", 8, 3)]
  assert found[0].sent_bytes == 3 * 2 * 7 / 8 * 64
  assert "while" in found[0].scope

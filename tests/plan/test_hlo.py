"""Bytes sent between devices, read from programs written by hand and from one that was compiled."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ssppo_jax.distributed.mesh import make_mesh
from ssppo_jax.plan.hlo import by_kind, collectives

BY_HAND = """
%cond (c: (s32[], bf16[8,16])) -> pred[] {
  %n = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%fused (p: bf16[4,16]) -> bf16[8,16] {
  ROOT %g2 = bf16[8,16]{1,0} all-gather(%p), channel_id=7, dimensions={0}
}

%body (b: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %f = bf16[8,16] fusion(%x), kind=kCustom, calls=%fused
  %again = bf16[8,16] fusion(%x), kind=kCustom, calls=%fused
  %r = f32[3,2]{1,0} all-reduce(%y), channel_id=8, to_apply=%add
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %w = (s32[], bf16[8,16]) while(%t), condition=%cond, body=%body
  %s = (bf16[4,16]{1,0}, bf16[16,16]{1,0}) all-gather-start(%q), channel_id=9, dimensions={0}
  %d = bf16[16,16] all-gather-done(%s)
  %p = f32[10]{0} reduce-scatter(%z), channel_id=10
}
"""


def test_loops_multiply_channels_count_once_and_an_all_reduce_passes_twice():
    assert by_kind(collectives(BY_HAND)) == {
        "all-gather": 5 * 8 * 16 * 2 + 16 * 16 * 2,
        "all-reduce": 5 * 2 * 6 * 4,
        "reduce-scatter": 40,
    }
    assert by_kind(collectives("nothing here")) == {}


DECODING = """
%ends (c: (pred[4,5], s32[4])) -> pred[] {
  %n = s32[]{:T(128)} constant(4)
  %e = pred[4,5]{1,0} get-tuple-element(%c), index=0
  %f = s32[] fusion(%e), kind=kLoop, calls=%count
  ROOT %lt = pred[] compare(%f, %n), direction=LT
}

%body (b: (pred[4,5], s32[4])) -> (pred[4,5], s32[4]) {
  %g = bf16[8]{0} all-gather(%p), channel_id=1, dimensions={0}
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %w = (pred[4,5], s32[4]) while(%t), condition=%ends, body=%body
}
"""


def test_a_loop_that_ends_by_what_it_computes_counts_as_often_as_it_may_run():
    (one,) = collectives(DECODING, longest=512)
    assert (one.size, one.passes) == (16, 512)
    assert by_kind(collectives(BY_HAND, longest=0)) == by_kind(collectives(BY_HAND))


GPU = """
%body (b: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %s = ((bf16[4,16]{1,0}, f32[2]{0}), (bf16[16,16]{1,0}, f32[8]{0})) all-gather-start(%q, %r), \
channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
}

%async (p: f32[40]) -> f32[10] {
  %rs = f32[10]{0} reduce-scatter(%p), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %w = (s32[], bf16[8,16]) while(%t), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"32"}}
  %c = ((f32[40]), f32[10]) async-start(%z), calls=%async
  %x = f32[6]{0} all-reduce-start(%y), channel_id=3, replica_groups=[2,4]<=[4,2]T(1,0)
  %m = (f32[5]{0}, f32[5]{0}, u32[], u32[]) collective-permute-start(%v), channel_id=4
}
"""


def test_a_gpu_program_started_combined_and_counted_by_the_compiler():
    found = {one.kind: one for one in collectives(GPU)}
    assert by_kind(found.values()) == {
        "all-gather": 32 * (16 * 16 * 2 + 8 * 4),
        "reduce-scatter": 4 * 10 * 4,
        "all-reduce": 2 * 6 * 4,
        "collective-permute": 5 * 4,
    }
    np.testing.assert_array_equal(found["all-gather"].groups, [[0, 1, 2, 3], [4, 5, 6, 7]])
    np.testing.assert_array_equal(found["all-reduce"].groups, [[0, 2, 4, 6], [1, 3, 5, 7]])


TPU = """
%cond (c: (bf16[4,8], u32[])) -> pred[] {
  %n = u32[]{:T(128)} constant(8)
  %i = u32[]{:T(128)} get-tuple-element(%c), index=1
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (b: (bf16[4,8], u32[])) -> (bf16[4,8], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %i = u32[]{:T(128)} get-tuple-element(%b), index=1
  %x = bf16[4,8]{1,0} get-tuple-element(%b), index=0
  %s = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[], u32[]) collective-permute-start(%x), channel_id=1, \
source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %d = bf16[4,8]{1,0} collective-permute-done(%s)
  %next = u32[]{:T(128)} add(%i, %two)
  ROOT %t = (bf16[4,8]{1,0}, u32[]{:T(128)}) tuple(%d, %next)
}

ENTRY %main (a: bf16[4,8]) -> f32[2] {
  %w = (bf16[4,8], u32[]) while(%t), condition=%cond, body=%body
  %r = ((f32[8,2]{1,0}, bf16[4,4]{1,0}), (f32[2,2]{1,0}, bf16[1,4]{1,0})) \
reduce-scatter-start(%p, %q), channel_id=2, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  %g = f32[6]{0} all-reduce(%y), channel_id=3, replica_groups=mesh['a'=2,'b'=4] {'a'}
  %h = f32[6]{0} all-reduce(%y), channel_id=4, replica_groups=mesh['a'=8] {'a':(2)2}
  %k = f32[6]{0} all-reduce(%y), channel_id=5, \
replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}
}
"""


def test_a_product_in_parts_is_counted_by_the_stride_of_its_loop():
    """What XLA makes of a gathered weight: a loop that hands parts on, two passes in one body."""
    found = {one.kind: one for one in collectives(TPU)}
    permuted = found["collective-permute"]
    assert permuted.passes == 4 and permuted.size == 4 * 8 * 2
    assert permuted.between_nodes(2) == 4 * 64 / 2  # a node of two receives from one other
    assert permuted.between_nodes(4) == 0
    for mark, kind in (("ag", "all-gather"), ("rs", "reduce-scatter")):
        named = TPU.replace("%body", f"%wide.windowed_dot_general_body_{mark}")
        assert collectives(named)[0][:3] == (kind, *permuted[1:3])


SLICES = """
%all-reduce-scatter.9 (input.9: f32[16,8]) -> f32[16,1] {
  %a = f32[16,8]{1,0} all-reduce(%input.9), channel_id=45, replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %s = f32[16,1]{1,0} dynamic-slice(%a, %zero, %at), dynamic_slice_sizes={16,1}
}

ENTRY %main (a: bf16[4,8]) -> f32[2] {
  %f = f32[16,1]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.9
  %r = (f32[16,1]{1,0:T(8,128)}, u32[], token[]) recv(%after), channel_id=2, frontend_attributes=\
{_xla_megascale_target="{1:3}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""


def test_a_tpu_program_reduces_and_scatters_in_a_fusion_and_passes_parts_between_slices():
    scattered, across = collectives(SLICES)
    assert (scattered.kind, scattered.size) == ("reduce-scatter", 16 * 8 * 4)
    assert scattered.between_nodes(8) == 0
    assert (across.kind, across.size, across.slices) == ("all-reduce", 2 * 16 * 4, 3)
    assert across.between_nodes(8) == 2 * 16 * 4 * 2 / 3


def test_devices_named_by_the_axes_of_a_mesh():
    reduced, *summed = collectives(TPU)[1:]
    assert reduced.size == 8 * 2 * 4 + 4 * 4 * 2  # all parts, of both arrays
    np.testing.assert_array_equal(reduced.groups, [[0, 1, 2, 3], [4, 5, 6, 7]])
    np.testing.assert_array_equal(summed[0].groups, [[0, 4], [1, 5], [2, 6], [3, 7]])
    np.testing.assert_array_equal(summed[1].groups, [[0, 2], [1, 3], [4, 6], [5, 7]])
    np.testing.assert_array_equal(summed[2].groups, [[0, 1, 2, 3], [4, 5, 6, 7]])


def test_bytes_between_nodes_are_fetched_once_by_the_devices_of_a_node_together():
    found = {one.kind: one for one in collectives(GPU)}
    gather, reduce = found["all-gather"], found["all-reduce"]
    assert gather.between_nodes(4) == 0.0  # each group on a node of its own
    assert gather.between_nodes(2) == 32 * (16 * 16 * 2 + 8 * 4) / 2 / 2  # half, by two devices
    assert reduce.between_nodes(4) == 2 * 6 * 4 / 2 / 2
    assert reduce.between_nodes(1) == 2 * 6 * 4 * 3 / 4
    assert found["collective-permute"].between_nodes(4) == 0.0  # the text names no groups


def test_a_compiled_scan_over_gathered_weights_counts_every_layer():
    mesh, layers, d = make_mesh((1, 8, 1)), 6, 32
    weights = jax.ShapeDtypeStruct(
        (layers, d, d), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp", None))
    )
    x = jax.ShapeDtypeStruct((16, d), jnp.float32, sharding=NamedSharding(mesh, P("fsdp", None)))

    def run(weights, x):
        def body(x, w):
            w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P(None, None)))
            return (
                jax.lax.with_sharding_constraint(
                    jnp.tanh(x @ w), NamedSharding(mesh, P("fsdp", None))
                ),
                None,
            )

        return jax.lax.scan(body, x, weights)[0]

    sent = by_kind(collectives(jax.jit(run).lower(weights, x).compile().as_text()))
    assert sent == {"all-gather": layers * d * d * 4}

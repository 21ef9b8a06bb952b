"""Bytes sent between devices, read from programs written by hand and from one that was compiled."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ssppo_jax.distributed.mesh import make_mesh
from ssppo_jax.plan.hlo import collective_bytes

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
    assert collective_bytes(BY_HAND) == {
        "all-gather": 5 * 8 * 16 * 2 + 16 * 16 * 2,
        "all-reduce": 5 * 2 * 6 * 4,
        "reduce-scatter": 40,
    }
    assert collective_bytes("nothing here") == {}


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

    sent = collective_bytes(jax.jit(run).lower(weights, x).compile().as_text())
    assert sent == {"all-gather": layers * d * d * 4}

"""Tunix's DPO step on Llama 3.1 8B, compiled for a TPU slice that is only described: python
peer_tunix_slice.py v5e:4x4

One pair of 512 + 512 tokens a chip, bfloat16 weights and optimizer state. Prints one JSON line.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ |= {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
}

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tunix.models.llama3.model as llama
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tunix.sft.dpo.dpo_trainer import TrainExample, dpo_loss_fn

PROMPT, NEW = 512, 512


def main(topology: str) -> None:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    chips = len(devices)
    mesh = Mesh(np.array(devices).reshape(chips, 1), ("fsdp", "tp"))
    llama.shard = lambda x, spec: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))
    config = dataclasses.replace(
        llama.ModelConfig.llama3p1_8b(), remat_config=llama.RematConfig.DECODER
    )
    graph, state = nnx.split(nnx.eval_shape(lambda: llama.Llama3(config, rngs=nnx.Rngs(0))))
    leaves, tree = jax.tree.flatten(state)
    specs = jax.tree.leaves(nnx.get_partition_spec(state), is_leaf=lambda x: isinstance(x, P))

    def placed(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    pairs = zip(leaves, specs, strict=True)
    params = tree.unflatten(
        [placed(x.shape, jnp.bfloat16, s if isinstance(s, P) else P()) for x, s in pairs]
    )
    optimizer = optax.rmsprop(5e-7)
    like = {x.shape: x.sharding for x in jax.tree.leaves(params)}
    whole = NamedSharding(mesh, P())
    moments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=like.get(x.shape, whole)),
        jax.eval_shape(optimizer.init, params),
    )

    def rows(*shape, dtype=jnp.int32):
        return placed(shape, dtype, P("fsdp", *(None,) * (len(shape) - 1)))

    both, length = 2 * chips, PROMPT + NEW
    example = TrainExample(
        input_ids=rows(both, length),
        positions=rows(both, length),
        attention_mask=rows(both, length, length, dtype=jnp.bool_),
        ref_chosen_logps=rows(chips, dtype=jnp.float32),
        ref_rejected_logps=rows(chips, dtype=jnp.float32),
        completion_mask=rows(both, NEW),
        logits_to_keep=NEW,
    )

    def step(params, moments, example):
        loss, gradient = jax.value_and_grad(lambda p: dpo_loss_fn(nnx.merge(graph, p), example)[0])(
            params
        )
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, loss

    start = time.perf_counter()
    with mesh:
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, moments, example).compile()
    seconds = time.perf_counter() - start
    peak = compiled.memory_analysis().peak_memory_in_bytes / 2**30
    print(json.dumps({"phase": "train", "peak": peak, "compile_seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1])

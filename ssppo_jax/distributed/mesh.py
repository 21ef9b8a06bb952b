"""Make the device mesh, map parameter paths to PartitionSpecs, and constrain activations."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ssppo_jax.errors import ConfigError
from ssppo_jax.types import Array, PyTree

AXES = ("replica", "data", "fsdp", "tensor")
ROWS = ("replica", "data", "fsdp")  # the axes a batch is split over

Shape = tuple[int, int, int, int]  # sizes of AXES

DECODER_RULES: tuple[tuple[str, P], ...] = (
    (r"embed/embedding$", P("tensor", "fsdp")),
    (r"attn/[qkv]/kernel$", P(None, "fsdp", "tensor", None)),
    (r"(attn/[qkv]|mlp/(gate|up))/lora_a$", P(None, "fsdp", None)),
    (r"attn/[qkv]/lora_b$", P(None, None, "tensor", None)),
    (r"attn/o/lora_a$", P(None, "tensor", None, None)),
    (r"(attn/o|mlp/down)/lora_b$", P(None, None, "fsdp")),
    (r"mlp/(gate|up)/lora_b$", P(None, None, "tensor")),
    (r"mlp/down/lora_a$", P(None, "tensor", None)),
    (r"attn/[qkv]/(bias|kernel_scale)$", P(None, "tensor", None)),
    (r"mlp/(gate|up)/kernel_scale$", P(None, "tensor")),
    (r"(attn/o|mlp/down)/kernel_scale$", P(None, "fsdp")),
    (r"attn/o/kernel$", P(None, "tensor", None, "fsdp")),
    (r"mlp/(gate|up)/kernel$", P(None, "fsdp", "tensor")),
    (r"mlp/down/kernel$", P(None, "tensor", "fsdp")),
    (r"norm/scale$", P()),
    (r"head/kernel$", P("fsdp", "tensor")),
    (r"score/kernel$", P("fsdp", None)),
)


def mesh_shape(sizes: dict[str, int], devices: int) -> Shape:
    """Fill in one -1 from the number of devices.

    Args:
      sizes: by axis; an axis that is left out has size 1.

    Raises:
      ConfigError: sizes that do not multiply to the number of devices.
    """
    shape = [sizes.get(a, 1) for a in AXES]
    if shape.count(-1) > 1 or any(s == 0 or s < -1 for s in shape):
        raise ConfigError(
            f"mesh {sizes}: sizes must be positive, at most one of them -1 (the rest of the"
            " devices)"
        )
    known = int(np.prod([s for s in shape if s != -1]))
    if -1 in shape and devices % known == 0:
        shape[shape.index(-1)] = devices // known
    if int(np.prod(shape)) != devices:
        raise ConfigError(
            f"mesh {sizes} needs {'a multiple of ' if -1 in shape else ''}{known} devices; this run"
            f" has {devices}"
        )
    replica, data, fsdp, tensor = shape
    return replica, data, fsdp, tensor


def batch_ways(shape: Sequence[int]) -> int:
    """Return the parts that a batch is cut into."""
    return int(np.prod(shape[: len(ROWS)]))


def make_mesh(shape: tuple[int, ...], devices=None) -> Mesh:
    """Make a mesh with Auto axes.

    Under Explicit axes, JAX's default, embedding gathers and take_along_axis raise. The devices of
    one replica lie together: on one TPU slice, and on as few hosts as there can be.

    Args:
      shape: sizes of `AXES`; first axes that are left out have size 1.
      devices: all of JAX's if None.

    Raises:
      ConfigError: several TPU slices, and `replica` is not their number.
    """
    whole = (1,) * (len(AXES) - len(shape)) + tuple(shape)
    types = (AxisType.Auto,) * len(AXES)
    found = jax.devices() if devices is None else devices
    slices = {getattr(device, "slice_index", None) or 0 for device in found}
    if len(slices) == 1:
        return jax.make_mesh(whole, AXES, axis_types=types, devices=devices)
    if whole[0] != len(slices):
        raise ConfigError(
            f"mesh.replica={whole[0]}: these devices are {len(slices)} slices, which only replicas"
            f" may span; set mesh.replica={len(slices)}"
        )
    placed = mesh_utils.create_hybrid_device_mesh(
        (1, *whole[1:]), (whole[0], 1, 1, 1), devices=found
    )
    return Mesh(placed, AXES, axis_types=types)


def sampling_shape(shape: Shape, sizes: dict[str, int]) -> Shape:
    """Return the mesh that sampling uses beside a training mesh of this shape.

    Args:
      shape: of the training mesh.
      sizes: of `data` and `tensor`; both 0 for the training mesh.

    Raises:
      ConfigError: one size without the other, or sizes that do not multiply to the devices.
    """
    if not any(sizes.values()):
        return shape
    if not all(sizes.values()):
        raise ConfigError(
            f"sampling.mesh {sizes}: set both sizes, one of them may be -1 (the rest of the"
            " devices); or set both to 0 for the training mesh"
        )
    return mesh_shape(sizes, int(np.prod(shape)))


def sampling_mesh(mesh: Mesh, sizes: dict[str, int]) -> Mesh:
    """Cut the devices of a training mesh anew, by `sampling_shape`.

    The devices keep their order, so that one program can move arrays from one mesh to the other.
    """
    replica, data, fsdp, tensor = mesh.axis_sizes
    shape = sampling_shape((replica, data, fsdp, tensor), sizes)
    return Mesh(mesh.devices.reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def path_name(path) -> str:
    """Write a key path as `layers/attn/q/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def specs(tree: PyTree) -> PyTree:
    """Return a PartitionSpec for every leaf: the first rule whose pattern is found in its path.

    Optimizer states carry the parameters' paths as suffixes, so the same rules cover them.

    Raises:
      ConfigError: leaves no rule matches, all named.
    """
    lost = []

    def one(path, leaf):
        name = path_name(path)
        if leaf.ndim == 0:
            return P()
        for pattern, spec in DECODER_RULES:
            if re.search(pattern, name):
                return spec
        lost.append(name)
        return P()

    result = jax.tree_util.tree_map_with_path(one, tree)
    if lost:
        raise ConfigError(
            f"no sharding rule matches: {', '.join(lost)}; add one to the rules in"
            " distributed/mesh.py"
        )
    return result


def shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """Return a NamedSharding for every leaf of a tree of arrays or ShapeDtypeStructs."""
    problems = []

    def one(path, leaf, spec):
        for axis, name in enumerate(spec):
            if name is not None and leaf.shape[axis] % mesh.shape[name]:
                problems.append(
                    f"{path_name(path)} {tuple(leaf.shape)}: axis {axis} is not divisible by"
                    f" {name}={mesh.shape[name]}"
                )
        return NamedSharding(mesh, spec)

    result = jax.tree_util.tree_map_with_path(one, tree, specs(tree))
    if problems:
        raise ConfigError("the mesh does not divide the model:\n  " + "\n  ".join(problems))
    return result


def abstract(mesh: Mesh, shapes: PyTree) -> PyTree:
    """Return shapes and dtypes of a tree with its leaves' shardings, for loading and compiling."""
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        shardings(mesh, shapes),
    )


def shard_bytes(tree: PyTree) -> int:
    """Return the bytes that one device holds of a tree of abstract arrays."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def ways_of(mesh: Mesh) -> int:
    """Return how many ways a batch's rows are split."""
    return batch_ways(mesh.axis_sizes)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def row_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Split array axis `axis` (the prompts) over all batch axes of the mesh."""
    return NamedSharding(mesh, P(*(None,) * axis, ROWS))


def put_rows(mesh: Mesh, tree: PyTree, axis: int = 0) -> PyTree:
    """Put host arrays, the same in every process, on the mesh, split along `axis`."""
    return _put(row_sharding(mesh, axis), tree)


def put_micro_batches(mesh: Mesh, tree: PyTree, parts: int) -> PyTree:
    """Put [B,...] on the mesh as [parts, B/parts, ...], each part's rows split as in `put_rows`."""
    cut = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), tree)
    return put_rows(mesh, cut, axis=1)


def put_whole(mesh: Mesh, tree: PyTree) -> PyTree:
    """Put host arrays, the same in every process, whole on every device."""
    return _put(replicated(mesh), tree)


def _put(sharding: NamedSharding, tree: PyTree) -> PyTree:
    def one(x):
        x = np.asarray(x)
        parts = sharding.addressable_devices_indices_map(x.shape)
        # device_put, because a transfer guard takes make_array_from_callback for an implicit one
        shards = [jax.device_put(x[index], device) for device, index in parts.items()]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, shards)

    return jax.tree.map(one, tree)


def host_copy(tree: PyTree) -> Callable[[], PyTree]:
    """Copy sharded arrays to the host's memory; return a function that puts them back.

    A process keeps what its own devices hold, and of replicas one. What is put back has the same
    shardings.
    """

    def one(x: jax.Array) -> Callable[[], jax.Array]:
        kept: dict[str, np.ndarray] = {}
        for shard in x.addressable_shards:
            if str(shard.index) not in kept:
                kept[str(shard.index)] = np.array(shard.data)  # a view would hold the device's
        shape, dtype, sharding = x.shape, x.dtype, x.sharding
        return lambda: jax.make_array_from_callback(
            shape, sharding, lambda index: kept[str(index)], dtype=dtype
        )

    kept = jax.tree.map(one, tree)
    return lambda: jax.tree.map(lambda put: put(), kept)


@dataclasses.dataclass(frozen=True)
class Constrain:
    """Constrain activations: XLA left alone drops the batch sharding of the logits.

    Tokens are looked up where the embeddings' columns are: every device reads its columns of all
    tokens and then gives each row to the device it belongs to. Gathering the table would cost the
    whole vocabulary instead.
    """

    mesh: Mesh

    @property
    def vocab_parts(self) -> int:
        """Return the ways the vocabulary is cut."""
        return self.mesh.shape["tensor"]

    def __call__(self, x: Array, kind: str) -> Array:
        if self.mesh.size == 1:
            return x
        spec = P(ROWS) if kind == "rows" else LAYOUTS[kind, x.ndim]
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def per_device(self, kernel: Callable[..., Array]) -> Callable[..., Array]:
        """Run `kernel`(q, k, v [B,S,heads,E], length [B]) on each device's own rows and heads."""
        if self.mesh.size == 1:
            return kernel
        heads = LAYOUTS["heads", 4]
        given = (heads, heads, heads, P(ROWS))
        return jax.shard_map(
            kernel, mesh=self.mesh, in_specs=given, out_specs=heads, check_vma=False
        )


LAYOUTS = {
    ("columns", 3): P(("replica", "data"), None, "fsdp"),  # [B,S,D]
    ("tokens", 3): P(ROWS, None, None),  # [B,S,D]
    ("heads", 4): P(ROWS, None, "tensor", None),  # [B,S,H,E]
    ("logits", 5): P(ROWS, None, None, "tensor", None),  # [B,K,T,parts,v]
    ("logits", 3): P(ROWS, None, "tensor"),  # [B,K,V], one decoding step
    ("cache", 5): P(None, ROWS, "tensor"),  # [N,B,G,P,E]
    ("cache", 6): P(None, ROWS, None, "tensor"),  # [N,B,K,G,T,E]
    ("count", 0): P(),
}

import dataclasses
import json
import os
import shutil
import struct
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from safetensors.numpy import load_file, save_file

from ssppo_jax.distributed.mesh import abstract, make_mesh
from ssppo_jax.errors import ConfigError, DataError
from ssppo_jax.models.arch import tiny_arch
from ssppo_jax.weights import hf, names, tiny
from ssppo_jax.weights.source import load_tokenizer

ARCHS = {
    "llama": tiny_arch(tie_embeddings=False, head_dim=6),
    "mistral": tiny_arch(model_type="mistral", num_kv_heads=1),
    "qwen2": tiny_arch(model_type="qwen2", num_layers=3),
}


def assert_same(a, b):
    a, b = dict(hf.flatten(a)), dict(hf.flatten(b))
    assert sorted(a) == sorted(b)
    for path in a:
        assert a[path].dtype == b[path].dtype, path
        assert a[path].tobytes() == b[path].tobytes(), path


def to_shapes(tree, dtype):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)


def edit(folder, change):
    """Rewrite a single-file folder after `change(tensors)`."""
    tensors = load_file(folder / hf.SINGLE)
    change(tensors)
    save_file(tensors, folder / hf.SINGLE, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ARCHS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_export_then_import_is_bit_exact(kind, dtype, tmp_path, make_tree):
    arch = ARCHS[kind]
    tree = make_tree(arch, dtype=dtype)
    folder = hf.save_params(tree, arch, tmp_path / "out")
    assert hf.read_arch(folder) == arch
    assert_same(hf.load_params(folder, arch, dtype=dtype), tree)


def test_import_then_export_writes_the_same_file(tiny_folder, tmp_path):
    folder, arch, _ = tiny_folder
    again = hf.save_params(hf.load_params(folder, arch), arch, tmp_path / "again")
    for file in ("model.safetensors", "config.json", "generation_config.json"):
        assert (again / file).read_bytes() == (folder / file).read_bytes()


def test_tensors_land_where_hugging_face_means_them(tmp_path):
    """The (h, e) row of q_proj is head h's e-th query feature, and o_proj's columns are laid out
    alike."""
    arch = tiny_arch(num_layers=2, tie_embeddings=False)
    n, d, h, e = 1, 5, 3, 6
    tensors = {
        name: np.zeros(names.hf_shape(leaf, arch), np.float32)
        for leaf in names.leaves(arch)
        for name in names.hf_names(leaf, arch)
    }
    tensors["model.layers.1.self_attn.q_proj.weight"][h * arch.head_dim + e, d] = 1
    tensors["model.layers.1.self_attn.o_proj.weight"][d, h * arch.head_dim + e] = 2
    tensors["model.layers.1.mlp.down_proj.weight"][d, 33] = 3
    tensors["lm_head.weight"][200, d] = 4
    save_file(tensors, tmp_path / hf.SINGLE)
    tree = hf.load_params(tmp_path, arch)
    assert tree["layers"]["attn"]["q"]["kernel"][n, d, h, e] == 1
    assert tree["layers"]["attn"]["o"]["kernel"][n, h, e, d] == 2
    assert tree["layers"]["mlp"]["down"]["kernel"][n, 33, d] == 3
    assert tree["head"]["kernel"][d, 200] == 4
    assert sum(leaf.sum() for _, leaf in hf.flatten(tree)) == 10


def test_shards_hold_the_limit_and_read_back_the_same(tiny_folder, tmp_path):
    folder, arch, tree = tiny_folder
    limit = 20_000
    sharded = hf.save_params(tree, arch, tmp_path / "sharded", max_shard_bytes=limit)
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        held = load_file(file)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= limit
    weight_map = json.loads((sharded / hf.INDEX).read_text())["weight_map"]
    assert weight_map.keys() == load_file(folder / hf.SINGLE).keys()
    assert_same(hf.load_params(sharded, arch), tree)


def test_export_casts_when_asked_and_says_so_in_the_config(tiny_folder, tmp_path):
    _, arch, tree = tiny_folder
    folder = hf.save_params(tree, arch, tmp_path / "bf16", dtype=ml_dtypes.bfloat16)
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    back = hf.load_params(folder, arch, dtype=np.float32)
    want = tree["norm"]["scale"].astype(ml_dtypes.bfloat16).astype(np.float32)
    assert back["norm"]["scale"].tobytes() == want.tobytes()


@pytest.mark.parametrize("kind", ["gqa", "tied"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_loaded_into_a_mesh_is_what_is_loaded_on_the_host(kind, dtype, tmp_path, make_tree):
    arch = tiny_arch(tie_embeddings=kind == "tied")
    folder = hf.save_params(make_tree(arch), arch, tmp_path / "m")
    mesh = make_mesh((2, 2, 2))
    wanted = abstract(mesh, to_shapes(hf.load_params(folder, arch), dtype))
    placed = hf.load_placed(folder, arch, wanted)
    assert jax.tree.all(jax.tree.map(lambda leaf, w: leaf.sharding == w.sharding, placed, wanted))
    assert_same(jax.tree.map(np.asarray, placed), hf.load_params(folder, arch, dtype=dtype))


def test_loading_holds_one_tensor_and_the_shards_of_this_process(tmp_path, make_tree, monkeypatch):
    """What NumPy and safetensors allocate at most, for a process that has one of 8 devices."""
    arch = tiny_arch(
        num_layers=24, hidden_size=128, mlp_dim=512, vocab_size=1024, tie_embeddings=False
    )
    folder = hf.save_params(make_tree(arch), arch, tmp_path / "m")
    wanted = abstract(make_mesh((1, 8, 1)), to_shapes(hf.load_params(folder, arch), np.float32))
    mine = jax.devices()[3]
    monkeypatch.setattr(
        hf.jax, "make_array_from_single_device_arrays", lambda shape, sharding, shards: shards[0]
    )
    monkeypatch.setattr(
        NamedSharding,
        "addressable_devices_indices_map",
        lambda self, shape: {mine: self.devices_indices_map(shape)[mine]},
    )
    tracemalloc.start()
    placed = hf.load_placed(folder, arch, wanted)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    sizes = [np.prod(names.hf_shape(leaf, arch)) * 4 for leaf in names.leaves(arch)]
    own = sum(leaf.nbytes for leaf in jax.tree.leaves(placed))
    whole = sum(np.prod(names.shape(leaf, arch)) * 4 for leaf in names.leaves(arch))
    assert own < whole / 7
    assert peak < own + max(sizes) + 200_000, (peak, own, max(sizes), whole)
    assert peak < whole / 4


def test_missing_left_over_and_misshapen_tensors_are_all_listed(tiny_folder):
    folder, arch, _ = tiny_folder

    def change(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros(3, np.float32)
        tensors["model.norm.weight"] = np.zeros(31, np.float32)
        tensors["model.layers.0.self_attn.v_proj.weight"] = np.zeros((16, 32), np.int32)

    edit(folder, change)
    with pytest.raises(ConfigError) as error:
        hf.load_params(folder, arch)
    for named in (
        "missing model.layers.1.mlp.up_proj",
        "model.layers.2.mlp.up_proj",
        "(31,)",
        "v_proj.weight is I32",
    ):
        assert named in str(error.value)


def test_rotary_buffers_of_old_exports_are_ignored(tiny_folder):
    folder, arch, tree = tiny_folder
    edit(
        folder,
        lambda t: t.update(
            {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
        ),
    )
    assert_same(hf.load_params(folder, arch), tree)


def test_a_missing_head_hints_at_tying(tiny_folder):
    folder, arch, _ = tiny_folder
    edit(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ConfigError, match='"tie_word_embeddings": true'):
        hf.load_params(folder, arch)


def test_a_tied_head_stored_twice_must_equal_the_embedding(tiny_folder):
    folder, arch, tree = tiny_folder
    tied = dataclasses.replace(arch, tie_embeddings=True)
    with pytest.raises(ConfigError, match="differs"):
        hf.load_params(folder, tied)
    edit(
        folder,
        lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}),
    )
    loaded = hf.load_params(folder, tied)
    assert "head" not in loaded
    np.testing.assert_array_equal(loaded["embed"]["embedding"], tree["embed"]["embedding"])


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "a\\b.safetensors", "x.bin"],
)
def test_an_index_cannot_point_outside_its_folder(name, tmp_path):
    arch = tiny_arch()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / hf.INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(DataError, match="refused shard name"):
        hf.load_params(tmp_path / "m", arch)


def test_an_index_of_absent_shards_and_a_broken_index_are_named(tmp_path):
    (tmp_path / hf.INDEX).write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    )
    with pytest.raises(DataError, match="missing shards model-00001-of-00002"):
        hf.load_params(tmp_path, tiny_arch())
    for text in ("{", "[]", '{"weight_map": 3}', "\xff"):
        (tmp_path / hf.INDEX).write_bytes(text.encode("latin-1"))
        with pytest.raises(DataError, match=r"index\.json"):
            hf.load_params(tmp_path, tiny_arch())


def test_a_tensor_in_two_shards_is_refused(tiny_folder, tmp_path):
    _, arch, tree = tiny_folder
    folder = hf.save_params(tree, arch, tmp_path / "two", max_shard_bytes=90_000)
    second = sorted(folder.glob("*.safetensors"))[1]
    save_file(load_file(second) | {"model.embed_tokens.weight": tree["embed"]["embedding"]}, second)
    with pytest.raises(DataError, match="also in another shard"):
        hf.load_params(folder, arch)


def header(entries, data=b""):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


F32 = {"dtype": "F32", "shape": [2]}
HOSTILE = {
    "empty": b"",
    "truncated header": header({"a": {**F32, "data_offsets": [0, 8]}}, b"\0" * 8)[:20],
    "header length beyond any file": struct.pack("<Q", 2**62) + b"{}",
    "data beyond the file": header({"a": {**F32, "data_offsets": [0, 8]}}, b"\0" * 4),
    "offsets do not fit the shape": header({"a": {**F32, "data_offsets": [0, 400]}}, b"\0" * 400),
    "backward offsets": header({"a": {**F32, "data_offsets": [8, 0]}}, b"\0" * 8),
    "overlap": header(
        {"a": {**F32, "data_offsets": [0, 8]}, "b": {**F32, "data_offsets": [4, 12]}}, b"\0" * 12
    ),
    "size overflow": header(
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}}, b"\0" * 8
    ),
    "negative shape": header(
        {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"\0" * 8
    ),
    "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR." + b"\0" * 16,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_damaged_and_hostile_files_are_named_not_read(case, tmp_path):
    (tmp_path / hf.SINGLE).write_bytes(HOSTILE[case])
    with pytest.raises(DataError, match=r"model\.safetensors: not a valid safetensors file"):
        hf.load_params(tmp_path, tiny_arch())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.pkl"])
def test_pickles_are_refused_with_a_remedy(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match=f"{name}.*refused.*save_pretrained"):
        hf.load_params(tmp_path, tiny_arch())


@pytest.mark.parametrize("ids", ["a", [2, None], {"a": 1}, True])
def test_stop_ids_that_are_none_are_named(tiny_folder, tmp_path, ids):
    folder = shutil.copytree(tiny_folder[0], tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    with pytest.raises(DataError, match=r"generation_config\.json: eos_token_id must be"):
        hf.read_arch(folder)


def test_an_existing_folder_is_never_overwritten(tiny_folder):
    folder, arch, tree = tiny_folder
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ConfigError, match="not empty"):
        hf.save_params(tree, arch, folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_failed_export_leaves_nothing_behind(tmp_path, make_tree, monkeypatch):
    arch = tiny_arch()
    monkeypatch.setattr(hf, "write_json", lambda path, value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hf.save_params(make_tree(arch), arch, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_tree_that_is_not_the_architecture_is_not_exported(tmp_path, make_tree):
    arch = tiny_arch()
    tree = make_tree(arch)
    tree["norm"]["scale"] = np.ones(5, np.float32)
    tree["extra"] = {"x": np.ones(1, np.float32)}
    del tree["embed"]
    with pytest.raises(ConfigError) as error:
        hf.save_params(tree, arch, tmp_path / "out")
    for named in ("missing embed/embedding", "unknown extra/x", "norm/scale has shape (5,)"):
        assert named in str(error.value)
    assert not (tmp_path / "out").exists()


def test_export_takes_the_tokenizer_and_generation_config_along(tiny_folder, tmp_path):
    folder, arch, tree = tiny_folder
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "evil.py"):
        (source / name).write_text(name)
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 9]}')
    out = hf.save_params(tree, arch, tmp_path / "out", tokenizer_from=source)
    assert (out / "chat_template.jinja").read_text() == "chat_template.jinja"
    assert not (out / "evil.py").exists()
    assert hf.read_arch(out).eos_ids == (2, 9)  # a stop id that only generation_config.json names
    with pytest.raises(ConfigError, match="no tokenizer files"):
        hf.save_params(tree, arch, tmp_path / "none", tokenizer_from=folder)


def test_export_takes_every_chat_template_along(tiny_folder, tmp_path):
    """transformers 5 keeps a default template in a file and the others in a folder."""
    _, arch, tree = tiny_folder
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}", "rag": "{{ 3 }}"}
    tokenizer.save_pretrained(tmp_path / "source")
    (tmp_path / "source/additional_chat_templates/evil.py").touch()
    out = hf.save_params(tree, arch, tmp_path / "out", tokenizer_from=tmp_path / "source")
    assert load_tokenizer(out).chat_template == tokenizer.chat_template
    assert sorted(file.name for file in (out / hf.MORE_TEMPLATES).iterdir()) == [
        "rag.jinja",
        "tool_use.jinja",
    ]


@pytest.mark.parametrize("labels", [0, 1, 2])
def test_export_keeps_the_padding_id_and_the_label_names(labels, make_tree, tmp_path):
    """transformers cannot score a batch without a padding id, and shows scores by label name."""
    arch = tiny_arch(num_labels=labels)
    source = hf.save_params(make_tree(arch), arch, tmp_path / "source")
    named = {
        "pad_token_id": 5,
        "id2label": {str(i): f"name {i}" for i in range(labels)},
        "label2id": {f"name {i}": i for i in range(labels)},
        "problem_type": "regression",
    }
    config = hf.read_json(source / "config.json")
    hf.write_json(source / "config.json", config | named)
    (source / "generation_config.json").unlink()
    (source / "tokenizer.json").touch()
    again = hf.read_arch(source)
    out = hf.save_params(
        hf.load_params(source, again), again, tmp_path / "o", tokenizer_from=source
    )
    kept = hf.read_json(out / "config.json")
    assert kept["pad_token_id"] == 5
    assert hf.read_json(out / "generation_config.json")["pad_token_id"] == 5
    if labels:
        assert kept | named == kept and hf.read_arch(out) == arch
    else:
        assert "id2label" not in kept


def test_label_names_of_a_tokenizers_model_are_not_another_models(make_tree, tmp_path):
    one, two = tiny_arch(num_labels=1), tiny_arch(num_labels=2)
    source = hf.save_params(make_tree(two), two, tmp_path / "two")
    (source / "tokenizer.json").touch()
    out = hf.save_params(make_tree(one), one, tmp_path / "one", tokenizer_from=source)
    assert hf.read_arch(out) == one


def test_configs_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        hf.read_arch(tmp_path)
    (tmp_path / "config.json").write_text("{nope")
    with pytest.raises(DataError, match=r"config\.json: not readable as JSON"):
        hf.read_arch(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match=r"config\.json: model_type 'bert'"):
        hf.read_arch(tmp_path)


def test_exported_weights_can_be_read_by_others(tiny_folder):
    folder, _, _ = tiny_folder
    assert [file.stat().st_mode & 0o044 for file in folder.glob("*.safetensors")] == [0o044]


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_the_stored_dtype_is_read_from_the_tensors(tiny_folder, tmp_path, name):
    _, arch, tree = tiny_folder
    folder = hf.save_params(tree, arch, tmp_path / name, dtype=np.dtype(name))
    assert hf.stored_dtype(folder) == np.dtype(name)
    assert hf.read_json(folder / "config.json")["torch_dtype"] == name


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_exported_files_have_the_permissions_that_the_users_mask_gives(tiny_folder, tmp_path, mask):
    _, arch, tree = tiny_folder
    before = os.umask(mask)
    try:
        folder = hf.save_params(tree, arch, tmp_path / "out", texts={"README.md": "# Café\n"})
    finally:
        os.umask(before)
    for file in folder.iterdir():
        assert file.stat().st_mode & 0o777 == 0o666 & ~mask, file.name
    assert (folder / "README.md").read_text(encoding="utf-8") == "# Café\n"

"""The kernels are compiled once for a machine, and a machine that cannot is told why."""

import dataclasses
import logging
import shutil
import stat
from pathlib import Path

import jax
import pytest

from ssppo_jax import schema
from ssppo_jax.generate import make_sampler
from ssppo_jax.kernels import library
from ssppo_jax.models.arch import tiny_arch
from ssppo_jax.models.decoder import Decoder
from ssppo_jax.parallel import make_mesh
from ssppo_jax.runtime import build_runtime, make_decoder
from ssppo_jax.sampling import SamplingParams

ROOT = Path(__file__).parents[2]

missing = library.missing.__wrapped__  # asked anew at every call; only where it fails, for XLA takes a name once


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Where an empty cache keeps them."""
    monkeypatch.setenv("SSPPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path / "cache" / "kernels"


def test_they_are_compiled_once_and_found_again(folder, monkeypatch):
    kept = library.compiled()
    assert list(folder.iterdir()) == [kept] and kept.stat().st_size > 0
    before = kept.stat().st_mtime_ns
    assert library.compiled() == kept and kept.stat().st_mtime_ns == before


def test_another_source_or_processor_is_compiled_for_anew(folder, monkeypatch, tmp_path):
    found = {library.compiled()}
    changed = tmp_path / "changed"
    shutil.copytree(library.FOLDER, changed)
    monkeypatch.setattr(library, "FOLDER", changed)
    for name in ("tile.h", "decode.c"):
        (changed / name).write_text((changed / name).read_text() + "\n// changed\n")
        found.add(library.compiled())
    monkeypatch.setattr(library, "_processor", lambda: "another")
    found.add(library.compiled())
    assert len(found) == 4 == len(list(folder.iterdir()))


def test_without_a_compiler_the_log_says_so(monkeypatch, caplog):
    monkeypatch.setenv("PATH", "")
    with caplog.at_level(logging.WARNING):
        assert missing() == "there is no C compiler: install gcc"
    (record,) = caplog.records
    assert "twice as long" in record.message and "install gcc" in record.message


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(folder, monkeypatch, tmp_path):
    path = tmp_path / "compiler"
    path.write_text('#!/bin/sh\ncase "$*" in *--version*) ;; *) echo no such flag >&2; exit 1;; esac\n')
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("CC", str(path))
    assert missing() == f"{path} failed: no such flag"
    assert not list(folder.iterdir())


def test_a_compiler_that_is_not_there_and_a_folder_that_cannot_be_written_are_reasons(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", str(tmp_path / "nothing"))
    assert "nothing" in missing()
    monkeypatch.delenv("CC")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SSPPO_CACHE", str(tmp_path / "file"))
    assert "file/kernels" in missing()


def test_layers_cannot_be_laid_apart_without_them(monkeypatch):
    monkeypatch.setattr(library, "missing", lambda: "there is no C compiler")
    settings = {"num_samples": 2, "eos_ids": (1,), "pad_id": 0, "sampling": SamplingParams()}
    make_sampler(Decoder(tiny_arch()), **settings)
    with pytest.raises(ValueError, match="no C compiler"):
        make_sampler(Decoder(tiny_arch()), **settings, apart=True)


ASKED = [
    ({}, True, True),
    ({"model.kernels": "false"}, False, False),
    ({"model.dtype": "bfloat16"}, False, False),
    ({"lora.rank": "2"}, True, False),
]


@pytest.mark.parametrize("overrides, kernels, apart", ASKED, ids=str)
def test_a_run_uses_them_where_it_can_and_is_asked_to(overrides, kernels, apart, monkeypatch):
    monkeypatch.undo()  # the compiled ones, already known to XLA
    runtime = build_runtime(schema.load(str(ROOT / "configs/smoke.py"), overrides, 1))
    assert not runtime.decoder.kernels  # on a mesh of several devices
    mesh = make_mesh((1, 1, 1), devices=jax.devices()[:1])
    alone = dataclasses.replace(runtime, mesh=mesh, decoder=make_decoder(runtime.config, runtime.arch, mesh))
    assert (alone.decoder.kernels, alone.decodes_apart) == (kernels, apart)
    monkeypatch.setattr(library, "missing", lambda: "there is no C compiler")
    assert not make_decoder(runtime.config, runtime.arch, mesh).kernels

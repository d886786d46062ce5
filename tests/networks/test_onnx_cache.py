"""The cache of trunks in ONNX form gives back what it was given, and nothing else."""

from __future__ import annotations

import os

import pytest

from sppdet.networks.backbone import Backbone
from sppdet.networks.onnx_cache import cache_folder, cached_trunk, keep_trunk
from sppdet.networks.trunk_output import Cut

pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPPDET_CACHE", str(tmp_path / "cache"))


def kept(seed: int) -> tuple[str, str, bytes]:
    backbone = Backbone.create("small", "random", "cpu", "float32", seed=seed)
    trunk = "small", str(backbone.settings()["weights"]), backbone.to_onnx()
    keep_trunk(*trunk)
    return trunk


def test_a_trunk_is_known_by_its_network_and_weights():
    name, weights, model = kept(seed=1)
    assert cached_trunk(name, weights).model == model
    assert cached_trunk(name, "0" * 16) is None and cached_trunk("alexnet", weights) is None


def test_trunks_of_the_same_weights_that_end_in_other_layers_are_apart():
    cuts = [Cut(("features.8", "features.11")), Cut(("features.11", "features.8")), Cut(("features.11",))]
    for cut in cuts:
        backbone = Backbone.create("small", "random", "cpu", "float32", seed=1, cut=cut)
        keep_trunk("small", weights := str(backbone.settings()["weights"]), backbone.to_onnx(), cut)
    assert [cached_trunk("small", weights, cut).layer_channels for cut in cuts] == [(128, 128), (128, 128), (128,)]
    assert [cached_trunk("small", weights, cut).cut for cut in cuts] == cuts


def test_the_name_of_a_network_of_a_library_is_no_folder():
    keep_trunk("timm/a", "0" * 16, b"model")
    assert [path.name[:7] for path in cache_folder().iterdir()] == ["timm-a-"]


@pytest.mark.parametrize("damage", [lambda model: model[:-9], lambda model: b"", lambda model: model[:-1] + b"!"])
def test_a_damaged_file_is_removed_with_a_warning_of_one_line(damage, caplog):
    name, weights, model = kept(seed=1)
    (path,) = cache_folder().iterdir()
    path.write_bytes(damage(model))
    assert cached_trunk(name, weights) is None and not path.exists()
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(f"{path}: its content is not what was written")


def test_the_trunk_of_another_network_under_a_right_name_is_removed(caplog):
    (_, _, other), (name, weights, _) = kept(seed=1), kept(seed=2)
    for path in cache_folder().iterdir():
        path.unlink()
    keep_trunk(name, weights, other)
    assert cached_trunk(name, weights) is None
    assert "is of small with other weights, layers or precision" in caplog.text


def test_the_trunks_that_were_used_last_are_kept():
    first = kept(seed=0)
    for seed in range(1, 8):
        kept(seed)
    for path in cache_folder().iterdir():
        os.utime(path, (1, 1))
    assert cached_trunk(*first[:2])
    kept(seed=8)
    assert len([*cache_folder().iterdir()]) == 8 and cached_trunk(*first[:2])


def test_the_cache_is_where_the_system_has_those_of_a_user(monkeypatch):
    monkeypatch.delenv("SPPDET_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder().as_posix() == "/caches/sppdet/trunks"

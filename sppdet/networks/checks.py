"""Settings of a configuration that the chosen network does not allow."""

from __future__ import annotations

from sppdet.config import Config
from sppdet.networks.backbone import Backbone
from sppdet.networks.onnx_trunk import has_onnxruntime
from sppdet.networks.trunk_output import Cut
from sppdet.networks.trunks import build_trunk, fc_layers
from sppdet.networks.weights import imagenet_package, load_weights
from sppdet.utils import SppdetError


def check_network(config: Config) -> None:
    """Refuse settings that do not suit ``backbone.name``, before anything runs.

    Raises:
        SppdetError: an unknown network, one that cannot be cut, layers that it does not have, ImageNet weights that
            there are not or of a package that is not installed, ``engine=onnxruntime`` or ``precision=int8`` with
            settings or a network that they do not support or where ONNX Runtime is not installed, fc layers that the
            network does not bring (``finetune.init=imagenet``), or levels or units that its fc layers do not have.

    Examples:
        >>> check_network(Config())
    """
    name, end_to_end = config.backbone.name, config.end_to_end
    cut = Cut.of(config.backbone)
    trunk = build_trunk(name, cut=cut)
    if config.backbone.weights == "imagenet":
        imagenet_package(name)
    if config.backbone.precision == "int8" and config.backbone.weights == "pretrain":
        raise SppdetError("backbone.precision: int8 is not for backbone.weights=pretrain; use backbone.precision=auto")
    if config.backbone.engine == "onnxruntime":
        _check_onnxruntime(config)
        Backbone.wrap(name, trunk, "cpu", cut=cut, engine="onnxruntime")  # else a trained trunk would be refused
    if config.backbone.precision == "int8":
        Backbone.wrap(name, trunk, config.device, "int8", cut, config.backbone.engine)
    if config.finetune.init != "imagenet" or not (end_to_end.enabled or config.features != "pool5"):
        return
    layers = fc_layers(name)
    section, units = ("end_to_end", end_to_end.units) if end_to_end.enabled else ("finetune", config.finetune.units)
    if config.backbone.layers or config.pooling.layer_levels:
        raise SppdetError(
            f"finetune.init: the fc6 of {name} reads its last layer; set backbone.layers=[] and "
            "pooling.layer_levels=[], or finetune.init=random"
        )
    if config.pooling.levels != (layers.bins,) or units != layers.units:
        raise SppdetError(
            f"finetune.init: the fc6 of {name} reads one level of {layers.bins} x {layers.bins} bins; set "
            f"pooling.levels=[{layers.bins}] and {section}.units={layers.units}"
        )


def check_weights(config: Config) -> None:
    """Refuse a file in ``backbone.weights`` that is missing or does not fit the network; proposals need none.

    Raises:
        SppdetError: such a file, or an error of `check_network`.
    """
    check_network(config)
    name, weights = config.backbone.name, config.backbone.weights
    if weights not in ("imagenet", "pretrain"):
        load_weights(build_trunk(name, cut=Cut.of(config.backbone)), name, weights)


def _check_onnxruntime(config: Config) -> None:
    """Refuse ``backbone.engine=onnxruntime`` where it is not installed, and what it does not compute."""
    if not has_onnxruntime():
        raise SppdetError(
            "backbone.engine: onnxruntime is not installed; run 'pip install onnxruntime', or use auto or torch"
        )
    if config.backbone.precision == "bfloat16":
        raise SppdetError("backbone.engine: onnxruntime multiplies in float32; use backbone.precision=auto, or torch")
    if config.device.startswith("cuda"):
        raise SppdetError(f"backbone.engine: onnxruntime runs on the CPU here, not on {config.device}; use device=cpu")

"""What weights a trunk takes, and how those that do not fit are refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

from sppdet.networks.trunk_output import WHOLE, Cut
from sppdet.networks.trunks import build_trunk
from sppdet.networks.weights import load_weights, weights_digest
from sppdet.utils.errors import SppdetError


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_loaded_from_a_file_of_the_whole_network(tmp_path, suffix):
    source, target = build_trunk("small", seed=1), build_trunk("small", seed=2)
    assert weights_digest(source) != weights_digest(target)
    path = tmp_path / f"weights{suffix}"
    state = source.state_dict() | {"classifier.weight": torch.zeros(2, 2)}
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    load_weights(target, "small", str(path))
    assert weights_digest(source) == weights_digest(target)


def test_random_leaves_the_weights():
    trunk = build_trunk("small", seed=1)
    before = weights_digest(trunk)
    load_weights(trunk, "small", "random")
    assert weights_digest(trunk) == before


def test_the_digest_tells_every_weight():
    trunk = build_trunk("small")
    digests = {weights_digest(trunk)}
    for name, value in trunk.state_dict().items():
        if name.endswith("num_batches_tracked"):  # which changes no map
            value += 1
        else:
            value.view(-1)[-1] += 1
            digests.add(weights_digest(trunk))
    assert len(digests) == 1 + 5 * 5  # five conv layers, each with weights and four tensors of batch norm
    assert weights_digest(trunk) in digests


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(build_trunk("squeezenet1_1").state_dict(), tmp_path / "w.pth")
    message = r"backbone\.weights: .*w\.pth does not fit small: .*give weights of small or set backbone\.name"
    with pytest.raises(SppdetError, match=message):
        load_weights(build_trunk("small"), "small", str(tmp_path / "w.pth"))
    # SqueezeNet 1.1 has the names of 1.0, but other shapes.
    with pytest.raises(SppdetError, match=r"does not fit squeezenet1_0"):
        load_weights(build_trunk("squeezenet1_0"), "squeezenet1_0", str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("of_file", "name"), [("resnet34", "resnet18"), ("resnet101", "resnet50"), ("resnet34", "torchvision/resnet18")]
)
def test_weights_of_a_deeper_network_of_the_same_names_are_refused(tmp_path, of_file, name):
    """A deeper ResNet has all tensors that the shallower one asks for."""
    torch.save(get_model(of_file).state_dict(), tmp_path / "w.pth")
    for cut in (WHOLE, Cut(("layer3.0",))):
        with pytest.raises(SppdetError, match=rf"w\.pth does not fit {name}: .* does not have \(first: layer[13]\.\d"):
            load_weights(build_trunk(name, cut=cut), name, str(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_layers_beyond_the_cut_and_another_classifier_do_not_matter(tmp_path, name):
    whole = get_model("resnet18").state_dict()
    torch.save(whole | {"fc.0.weight": torch.zeros(2, 2)}, tmp_path / "w.pth")
    trunk = build_trunk(name, cut=Cut(("layer3.0",)))
    load_weights(trunk, name, str(tmp_path / "w.pth"))
    assert torch.equal(trunk.state_dict()["conv1.weight"], whole["conv1.weight"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "cannot be read as a state_dict"),
        (b"no weights", "cannot be read as a state_dict"),
        (b"junk of no format", r"cannot be read as a state_dict \(.*[a-z]{3}.*\)"),  # torch's reason is a number
        ([1, 2], "is not a state_dict"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_unreadable_weights_are_refused_in_one_line(tmp_path, content, message, suffix):
    path = tmp_path / f"w{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
        message = message if suffix == ".pth" else "cannot be read as a state_dict"
    with pytest.raises(SppdetError, match=rf"backbone\.weights: .*{message}") as caught:
        load_weights(build_trunk("small"), "small", str(path))
    assert "\n" not in str(caught.value)


def test_a_network_that_torchvision_lacks_has_no_imagenet_weights():
    with pytest.raises(SppdetError, match="no imagenet weights of 'small'; use pretrain, random or a file"):
        load_weights(build_trunk("small"), "small", "imagenet")

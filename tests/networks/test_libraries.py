"""Networks of torchvision and timm as backbones: where they are cut, where their cells lie, and what is refused."""

from __future__ import annotations

import copy
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sppdet import config
from sppdet.config import Config
from sppdet.networks import libraries
from sppdet.networks.backbone import Backbone
from sppdet.networks.cell_grid import cell_grid, freeze
from sppdet.networks.checks import check_network
from sppdet.networks.cut import cut_network
from sppdet.networks.normalisation import IMAGENET
from sppdet.networks.trunk_output import WHOLE, CellGrid, Cut
from sppdet.networks.trunks import NETWORKS, build_trunk, network, restore_trunk
from sppdet.utils.errors import SppdetError

# Stride 16 and centre, as their paddings say: 3 x 3 with 1 and 7 x 7 with 3 leave cell 0 on pixel 0; each 2 x 2 without
# padding adds half of its input's stride, and 4 x 4 at stride 4 has its centre on pixel 1.5.
NAMES = {
    "torchvision/resnet18": (0.0, "layer3", 256),
    "mobilenet_v3_small": (0.0, "features.9.block.0", 288),
    "convnext_tiny": (1.5 + 2 + 4, "features.6.0", 384),
    "efficientnet_b0": (0.0, "features.6.0.block.0", 672),
    "vgg11_bn": (0.5 + 1 + 2 + 4, "features.27", 512),
    "timm/regnetx_002": (0.0, "s3", 152),
}
DILATE = Cut(dilate=True)
DILATED = {
    "torchvision/resnet18": (0.0, 512),
    "mobilenet_v3_small": (0.0, 576),
    "convnext_tiny": (7.5 + 8, 768),
    "efficientnet_b0": (0.0, 1280),
    "vgg11_bn": (7.5 + 8, 512),
    "timm/regnetx_002": (0.0, 368),
}


LENGTH, WIDTH = 2048, 32  # of strips, which are longer than what a cell sees and yet few pixels


@cache
def trunk_of(name: str, cut: Cut = WHOLE) -> nn.Module:
    """Return a trunk with random weights, in float64."""
    trunk = build_trunk(name, 1, cut).double().eval()
    for key, parameter in trunk.named_parameters():
        if key.endswith("layer_scale"):  # 1e-6 would hide the branches of ConvNeXt
            nn.init.constant_(parameter, 0.5)
    for key, layer in trunk.named_modules():
        if key.endswith("avgpool"):  # squeeze-and-excitation reads the whole map: give it a constant
            layer.register_forward_hook(lambda *call: torch.zeros_like(call[2]))
    return trunk


def averaging(trunk: nn.Module) -> nn.Module:
    """Return a trunk of the same geometry that is linear and whose output depends on all pixels that it reads."""
    trunk = copy.deepcopy(trunk)
    for layer in trunk.modules():
        if isinstance(layer, nn.MaxPool2d):
            layer.forward = partial(mean_pool, layer)
        elif isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, (nn.ReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.LayerNorm)):
            layer.forward = lambda x: x
    for node in trunk.graph.nodes:
        if node.target is functional.layer_norm:
            node.replace_all_uses_with(node.args[0])
    trunk.recompile()
    return trunk


def mean_pool(pool: nn.MaxPool2d, x: torch.Tensor) -> torch.Tensor:
    weight = x.new_ones(x.shape[1], 1, pool.kernel_size, pool.kernel_size)
    return functional.conv2d(x, weight, None, pool.stride, pool.padding, pool.dilation, x.shape[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_cut_after_its_last_layer_at_stride_16(name):
    centre, layer, channels = NAMES[name]
    trunk = trunk_of(name)
    assert cell_grid(trunk) == CellGrid(16, centre)
    x = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        assert trunk(x).shape == (1, channels, 6, 8)
        torch.testing.assert_close(trunk(x), trunk_of(name, Cut((layer,)))(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_layers_beyond_stride_16_keep_it_by_dilation(name):
    centre, channels = DILATED[name]
    trunk = trunk_of(name, DILATE)
    assert cell_grid(trunk) == CellGrid(16, centre)
    with torch.no_grad():
        assert trunk(torch.zeros(1, 3, 64, 64, dtype=torch.float64)).shape[:2] == (1, channels)


def test_every_second_cell_of_a_dilated_trunk_is_one_of_the_strided_network():
    dilated, whole = trunk_of("torchvision/resnet18", DILATE), network("torchvision/resnet18").build().double().eval()
    whole.load_state_dict(dilated.state_dict(), strict=False)
    strided = nn.Sequential(*[*whole.children()][:-2])
    x = torch.zeros(1, 3, 512, 512, dtype=torch.float64)
    x[..., 224:288, 224:288] = torch.randn(
        1, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    with torch.no_grad():
        torch.testing.assert_close(dilated(x)[..., ::2, ::2][..., 6:10, 6:10], strided(x)[..., 6:10, 6:10])


@pytest.mark.parametrize("cut", [WHOLE, DILATE], ids=["strided", "dilated"])
@pytest.mark.parametrize("name", NAMES)
def test_an_image_moved_by_16_pixels_moves_the_map_by_a_cell(name, cut):
    trunk, middle = trunk_of(name, cut), LENGTH // 2
    x = torch.zeros(1, 3, LENGTH, WIDTH, dtype=torch.float64)
    noise = torch.randn(1, 3, 64, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, :, middle - 32 : middle + 32] = noise
    with torch.no_grad():
        still, moved = trunk(x), trunk(x.roll(16, 2))
    cells = slice(middle // 16 - 5, middle // 16 + 5)
    size = still[:, :, cells].abs().max().item()  # tiny: batch norm of random weights normalises nothing
    assert size > 0
    torch.testing.assert_close(moved[:, :, 1:][:, :, cells], still[:, :, cells], rtol=0, atol=1e-9 * size)
    assert (moved - still)[:, :, cells].abs().max() > 1e-3 * size


@pytest.mark.parametrize("cut", [WHOLE, DILATE], ids=["strided", "dilated"])
@pytest.mark.parametrize("name", NAMES)
def test_the_receptive_field_of_a_cell_is_centred_where_the_grid_says(name, cut):
    trunk, cell = trunk_of(name, cut), LENGTH // 32
    x = torch.ones(1, 3, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    averaging(trunk)(x)[0, :, cell].sum().backward()
    rows = x.grad[0].abs().sum((0, 2)).nonzero()
    first, last = rows.min().item(), rows.max().item()
    assert 0 < first < last < LENGTH - 1
    assert (first + last) / 2 == cell_grid(trunk).centre + 16 * cell


def test_timm_s_networks_agree_with_torchvision_s():
    mine, theirs = (build_trunk(f"{library}/resnet18", 1).eval() for library in ("timm", "torchvision"))
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(mine(x), theirs(x))
    assert cell_grid(mine) == cell_grid(theirs)
    assert network("timm/resnet18").normalisation == IMAGENET


def test_a_transformer_of_timm_is_refused():
    with pytest.raises(SppdetError, match=r"^backbone.name: timm/vit_tiny_patch16_224 cannot be cut") as caught:
        build_trunk("timm/vit_tiny_patch16_224")
    assert "\n" not in str(caught.value)


def test_built_in_networks_agree_with_the_librarys():
    for name, layer in {"resnet18": "layer3", "vgg16": "features.29", "squeezenet1_1": "features.12"}.items():
        with torch.device("meta"):
            built_in, trunk = build_trunk(name), build_trunk(f"torchvision/{name}", cut=Cut((layer,)))
        assert cell_grid(trunk) == cell_grid(built_in)
        assert trunk.state_dict().keys() == built_in.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["backbone.name=vit_b_16"],
            "backbone.name: vit_b_16 cannot be cut at stride 16: .*Wrong image height! Expected 224",
        ),
        (
            ["backbone.name=swin_t"],
            "backbone.name: swin_t cannot be cut at stride 16: no layer has a cell per 16 pixels",
        ),
        (
            ["backbone.name=timm/resnet18"],
            r"timm/resnet18 needs timm, which is not installed; run 'pip install sppdet\[timm\]'",
        ),
        (["backbone.name=resnet18", "backbone.dilate=true"], "backbone.dilate: resnet18 is built in, up to stride 16"),
        (
            ["backbone.name=torchvision/resnet18", "backbone.layers=[layer4]"],
            "layer4 of torchvision/resnet18 has a cell per 32 pixels from pixel 0 on where a cell per 16",
        ),
        (
            ["backbone.name=torchvision/resnet18", "backbone.layers=[fc]"],
            "fc of torchvision/resnet18 has no cells where",
        ),
        (["backbone.name=torchvision/resnet18", "backbone.layers=[layer5]"], "no layer 'layer5'; did you mean"),
        (["backbone.name=googlenet", "backbone.dilate=true"], "backbone.dilate: googlenet cannot be dilated: "),
        (["backbone.name=mobilenet_v3_smal"], r"did you mean 'mobilenet_v3_small'\?"),
    ],
)
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_what_cannot_be_cut_is_refused_before_anything_runs(monkeypatch, options, message):
    monkeypatch.setattr(libraries, "has_timm", lambda: False)
    with pytest.raises(SppdetError, match=message) as caught:
        check_network(config.override(Config(), ["backbone.weights=random", *options]))
    assert "\n" not in str(caught.value)


def test_padding_that_depends_on_the_image_is_refused():
    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 16, 16)

        def forward(self, x):
            extra = -x.shape[3] % 16
            return self.conv(functional.pad(x, (extra // 2, extra - extra // 2, 0, 0)))

    message = r"same cannot be cut .*: pad pads on the left by a number that depends on the size of the image"
    with pytest.raises(SppdetError, match=message):
        cut_network(Same(), "same", WHOLE)


def test_checks_in_a_networks_code_keep_no_later_layer():
    class Checked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*(nn.Conv2d(3, 3, 2, 2) for _ in range(5)))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
                torch._assert(x.dim() == 4, "a batch of images")
            return x.mean((2, 3))

    assert {key.split(".")[1] for key in cut_network(Checked(), "checked", WHOLE).state_dict()} == {*"0123"}


def test_a_trunk_is_restored_from_its_weights():
    cut, name = Cut(("features.8", "features.9.block.0"), dilate=True), "mobilenet_v3_small"
    trunk = trunk_of(name, cut)
    again = restore_trunk(name, {key: value.float() for key, value in trunk.state_dict().items()}, cut).eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(again(x), build_trunk(name, 1, cut).eval()(x), rtol=0, atol=0)
    with pytest.raises(RuntimeError):
        restore_trunk(name, trunk.state_dict(), DILATE)


def test_the_input_is_normalised_as_for_the_weights_of_the_library():
    assert libraries.LibraryNetwork("torchvision", "efficientnet_v2_s").normalisation == IMAGENET
    assert libraries.LibraryNetwork("torchvision", "efficientnet_v2_l").normalisation.mean == (0.5, 0.5, 0.5)


def test_the_smallest_images_have_cells():
    backbone = Backbone.create("mobilenet_v3_small", "random", "cpu", "float32")
    assert backbone(np.zeros((1, 3, 3), np.uint8), 1.0).shape == (4, 4, 288)
    assert backbone.normalisation == NETWORKS["resnet18"].normalisation


def test_weights_of_another_network_are_refused_in_one_line(tmp_path):
    torch.save(build_trunk("small").state_dict(), tmp_path / "small.pth")
    with pytest.raises(
        SppdetError, match=r"small.pth does not fit mobilenet_v3_small: .* tensors are missing"
    ) as caught:
        Backbone.create("mobilenet_v3_small", str(tmp_path / "small.pth"), "cpu", "float32")
    assert "\n" not in str(caught.value)


def test_layers_up_to_a_stride_are_fixed_with_their_squeeze_and_excitation():
    with torch.device("meta"):
        trunk = build_trunk("mobilenet_v3_small")
    freeze(trunk, 4)
    frozen = {key.split(".")[1] for key, value in trunk.named_parameters() if not value.requires_grad}
    learning = {key.split(".")[1] for key, value in trunk.named_parameters() if value.requires_grad}
    # Block 1 has stride 4, block 2 the stride 8 from its middle on.
    assert frozen == {"0", "1", "2"} and learning == {*map(str, range(2, 10))}
    with torch.device("meta"):
        trunk = build_trunk("convnext_tiny")
    freeze(trunk, 4)
    scales = {key.split(".")[1]: value.requires_grad for key, value in trunk.named_parameters() if "layer_scale" in key}
    assert scales == {"1": False, "3": True, "5": True}

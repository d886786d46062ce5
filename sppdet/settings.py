"""Every setting and its default: the fields of these dataclasses are the keys of a YAML file (see ``config``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sppdet.proposals import SelectiveSearch


@dataclass
class Data:
    root: str = "shapes"  # a VOC-layout folder, or `shapes`: the synthetic set, drawn on first use
    train_split: str = "trainval"
    test_split: str = "test"
    classes: list[str] | None = None  # null: the classes found in the annotations
    limit_train: int | None = None  # only the first n pictures
    limit_test: int | None = None


@dataclass
class Backbone:
    name: str = "squeezenet1_0"  # alexnet vgg16 squeezenet1_0 squeezenet1_1 resnet18 resnet50 small
    weights: str = "imagenet"  # imagenet (torchvision's download), a file, random, or `pretrain`: stage 1 makes them
    precision: str = "auto"  # auto: bfloat16 where the processor multiplies it natively, else float32


@dataclass
class Pretrain:
    """SPP classification of the training objects, for `backbone.weights: pretrain`."""

    sizes: list[int] = field(default_factory=lambda: [224, 180])  # alternate epochs, as in the paper's 3.1.2
    epochs: int = 12
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4


@dataclass
class Regions:
    """Where windows are read: on conv maps of the whole picture, or each on a crop of its own, as in R-CNN."""

    crop: str = "none"  # none: on the maps; warp, square or square_context: how a crop is made (sppdet/warp.py)
    crop_size: int = 227  # pixels a side of a crop
    context: int = 16  # of them on each side, what surrounds the window in its crop
    scales: list[int] = field(default_factory=lambda: [688])  # lengths of the picture's shorter side
    max_side: int = 2500  # a scaled picture's longer side never exceeds this
    target: int = 224  # each window is read at the scale that brings it nearest target x target
    shrink: float = 6.5  # pixels by which each edge moves inwards before rounding to cells (the program's 'offset')


@dataclass
class Pooling:
    """A window's vector: SPP-net's is `max` at 6, 3, 2, 1; Fast R-CNN's `max` at 7; Mask R-CNN's `align` at 7."""

    kind: str = "max"  # max or average of a bin's whole cells; align: the mean of points of the unrounded window
    levels: list[int] = field(default_factory=lambda: [6, 3, 2, 1])
    samples: int = 0  # align: points a side of each bin; 0: as many as it is cells long, rounded up


@dataclass
class Finetune:
    """The fc head: fc6 and fc7 on the pooled vector, trained for K + 1-way classification, conv layers fixed."""

    # random, or imagenet: fc6 and fc7 of alexnet or vgg16, from backbone.weights; also where end_to_end trains
    init: str = "random"
    units: int = 1024
    dropout: float = 0.5
    optimizer: str = "adamw"  # adamw or sgd (momentum 0.9); fresh fc layers need adamw
    learning_rate: float = 3e-4
    schedule: str = "cosine"  # cosine, after a warm-up; or step: a tenth of the rate in the last sixth of the steps
    weight_decay: float = 0.05
    steps: int = 2000  # 0 takes the layers of init=imagenet as they are
    batch_size: int = 512
    windows_per_image: int = 64
    foreground: float = 0.25  # share of windows with IoU >= 0.5; the rest lies in [0.1, 0.5)
    flip: bool = False  # learn from the mirror images too, which need maps of their own


@dataclass
class EndToEnd:
    """Trunk and fc layers trained together by Fast R-CNN's multi-task loss, before the maps are made.

    On crops, with `box_weight: 0`, this is R-CNN's fine-tuning of the whole network.
    """

    enabled: bool = False
    epochs: float = 8.0
    pictures_per_step: int = 2
    windows_per_picture: int = 64
    foreground: float = 0.25  # share of windows with IoU >= 0.5
    background: float = 0.1  # the others' lowest IoU, below 0.5; R-CNN's is 0
    hard_of: int = 0  # 0: all windows drawn learn; n: of n drawn a picture, the windows_per_picture hardest
    focal: float = 0.0  # exponent of the focal loss; 0: cross entropy
    scales: list[int] = field(default_factory=lambda: [480, 576, 688])  # shorter sides; each picture draws one
    flip: bool = True
    frozen_stride: int = 4  # layers whose cells are at most this many pixels apart stay as they are; 0 trains all
    units: int = 1024
    dropout: float = 0.5
    box_weight: float = 1.0  # of the box loss beside the classifier's
    optimizer: str = "adamw"  # adamw or sgd (momentum 0.9); fresh fc layers need adamw
    learning_rate: float = 3e-4  # of the fresh layers
    trunk_rate: float = 0.3  # the trunk's learning rate is this share of it
    weight_decay: float = 0.05


@dataclass
class Svm:
    """Per-class SVMs and their hard-negative mining; see sppdet/svm.py and sppdet/mining.py."""

    C: float = 1e-3
    positive_weight: float = 2.0  # liblinear's -w1 2
    bias: float = 10.0  # liblinear's -B 10, scikit-learn's intercept_scaling
    norm: float = 20.0  # features are scaled so that their mean L2 norm is this
    positive_overlap: float = 1.0  # proposals that overlap an object by this are positives too; 1: objects alone
    negative_overlap: float = 0.3
    solver: str = "dual"  # dual: our dense dual coordinate descent; liblinear: scikit-learn's LinearSVC
    passes: int = 1  # over the training pictures
    rounds: int = 5  # fits in the first pass: after 1/16, 1/8, 1/4, 1/2 and all of the pictures
    hard_margin: float = -1.0001  # a negative that scores above this is hard
    evict_margin: float = -1.2  # after a fit, negatives that score below this leave
    duplicate_overlap: float = 0.7  # of a picture's hard negatives that overlap by more, the hardest stays
    hard_per_picture: int = 100  # new negatives a class and picture
    max_negatives: int = 30000  # a class's hardest, give or take a quarter; in a fit each takes 2 bytes a feature
    random_negatives: int = 5000  # to start from
    flip: bool = False  # learn from the mirror images too, which need maps of their own


@dataclass
class BoxRegression:
    enabled: bool = True
    # ridge: per-class regression of the pooled vector; joint: the layer of end-to-end training; ridge+joint: their mean
    kind: str = "ridge"
    min_overlap: float = 0.5  # of the windows it learns from with an object
    ridge: float = 3000.0
    max_windows: int = 4000  # a class; a random sample beyond that
    flip: bool = False  # learn from the mirror images too, which need maps of their own


@dataclass
class Detection:
    nms: float = 0.3
    vote: float = 0.0  # 0: regression of the survivors, as in the originals; else the IoU from which boxes vote
    flip: bool = False  # the mirrored picture is looked at too, for another run of the backbone
    min_margin: float = -1.5
    max_candidates: int = 500  # a class and picture, the best ones, before NMS
    max_per_class: int = 100  # a class and picture, after NMS
    # Times this, the whole picture's margin for a class, where below 0, is added to those of its windows (context.py);
    # above 0, training has a stage `context` for it.
    context: float = 0.0


@dataclass
class Run:
    dir: str = "runs/default"
    cache: str = "cache"
    seed: int = 3


@dataclass
class Config:
    data: Data = field(default_factory=Data)
    proposals: SelectiveSearch = field(default_factory=SelectiveSearch)
    backbone: Backbone = field(default_factory=Backbone)
    pretrain: Pretrain = field(default_factory=Pretrain)
    regions: Regions = field(default_factory=Regions)
    pooling: Pooling = field(default_factory=Pooling)
    features: str = "pool5"  # what the classifier sees: pool5, fc6, fc7, or pool5+fc7, both side by side
    svd_ranks: list[int] = field(default_factory=list)  # of fc6 and fc7, truncated once trained; []: whole layers
    classifier: str = "svm"  # svm, or the softmax of end-to-end training
    finetune: Finetune = field(default_factory=Finetune)
    end_to_end: EndToEnd = field(default_factory=EndToEnd)
    svm: Svm = field(default_factory=Svm)
    bbox: BoxRegression = field(default_factory=BoxRegression)
    detection: Detection = field(default_factory=Detection)
    run: Run = field(default_factory=Run)
    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...
    workers: int = 0  # 0: every core
    memory_gb: float = 2.0  # of window vectors, held while SVMs and boxes learn; more: maps are read less often


@dataclass
class Folders:
    """Pictures in a folder a class: ROOT/train/CLASS/*.jpg, ROOT/val/CLASS/*.jpg."""

    root: str = "."
    train: str = "train"  # a folder in root, else a path of its own
    val: str | None = "val"  # likewise; null: not measured

    def place(self, name: str) -> Path:
        inside = Path(self.root) / name
        return Path(name) if Path(name).exists() and not inside.exists() else inside


@dataclass
class Views:
    """What of a picture the classifier is tested on (He et al. 2014, sections 3.1.4 and 3.1.5)."""

    views: str = "crop"  # crop: the centre; full: the whole picture; multi: windows on the maps of several scales
    view: int | None = None  # side of the crop and of the windows; null: the largest of sizes
    side: int | None = None  # the picture's shorter side for crop and full; null: the training's
    scales: list[int] | None = None  # its shorter sides for multi; null: 224 256 300 360 448 560 for views of 224


@dataclass
class ClassifierRun:
    dir: str = "runs/classifier"
    seed: int = 3


@dataclass
class Classify:
    """SPP-net as a classifier: `sppdet classify`."""

    data: Folders = field(default_factory=Folders)
    backbone: Backbone = field(default_factory=Backbone)
    levels: list[int] = field(default_factory=lambda: [6, 3, 2, 1])  # of the pyramid; [6] is none
    units: int = 0  # of fc6 and fc7; 0: one linear layer on the pyramid
    dropout: float = 0.5
    sizes: list[int] = field(default_factory=lambda: [224, 180])  # of the views, alternate epochs; [224] is one size
    side: int | None = None  # the pictures' shorter side, of which views are cut; null: 256 for sizes of 224
    flip: bool = True
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 3e-4  # at its highest; of the layers above the trunk
    trunk_rate: float | None = None  # the trunk's is this share of it; null: 1 for random weights, else 0.1
    frozen_stride: int = 0  # layers whose cells are at most this many pixels apart stay as they are; 0 trains all
    weight_decay: float = 1e-4
    test: Views = field(default_factory=Views)
    run: ClassifierRun = field(default_factory=ClassifierRun)
    device: str = "auto"
    workers: int = 0

    @property
    def crop(self) -> int:
        """Side of what is cut from a picture before it is brought to the epoch's size."""
        return max(self.sizes)

    @property
    def shorter_side(self) -> int:
        return self.side or round(self.crop * 256 / 224)

    @property
    def tested(self) -> Views:
        """`test` with a number for every null."""
        view = self.test.view or self.crop
        scales = self.test.scales or [round(view * scale / 224) for scale in (224, 256, 300, 360, 448, 560)]
        return Views(self.test.views, view, self.test.side or self.shorter_side, scales)

"""Train torchvision's Faster R-CNN on the images of a run, with the trunk of `quick` and as much processor time.

    python scripts/study_faster_rcnn.py runs/front_door/BCCD-quick-all --minutes 4

EfficientNet-Lite0 with ImageNet weights, its last block dilated (320 channels, stride 16), all of it trained but the
statistics of its batch normalisation; torchvision's own heads and losses. AdamW, one rate for all, warmed up and then
lowered to 0 by the share of the time that is spent. Nothing is chosen by the test images.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from sppdet.cli import common as cli
from sppdet.config import load
from sppdet.data import Dataset, Sample, load_split
from sppdet.detection import Detections
from sppdet.evaluation import evaluate_detections
from sppdet.networks import build_trunk, load_weights

TRUNK, CHANNELS = "efficientnet_lite0", 320
SHORT_SIDE, LONG_SIDE = 480, 853
ANCHORS = (32, 64, 128, 256, 512)  # sides, each with the ratios 1/2, 1 and 2
RATE, DECAY, BATCH, WARM_UP = 2e-4, 1e-4, 2, 0.1
SEED = 3


class Trunk(nn.Module):
    """The trunk as torchvision's detectors want it; its batch normalisation keeps ImageNet's statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = CHANNELS
        self.layers = build_trunk(TRUNK)
        load_weights(self.layers, TRUNK, "imagenet")

    def train(self, mode: bool = True) -> Trunk:
        super().train(mode)
        for layer in self.layers.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        return self

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"0": self.layers(images)}


def make_detector(classes: int) -> FasterRCNN:
    """Return an untrained detector of so many classes."""
    return FasterRCNN(
        Trunk(),
        classes + 1,
        min_size=SHORT_SIDE,
        max_size=LONG_SIDE,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
        rpn_anchor_generator=AnchorGenerator((ANCHORS,), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
    )


def example(sample: Sample) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return image and target as torchvision wants them; label 0 is background."""
    target = {"boxes": torch.from_numpy(sample.boxes), "labels": torch.from_numpy(sample.labels + 1)}
    return torch.from_numpy(sample.read().copy()).permute(2, 0, 1).float() / 255, target


def drawn(dataset: Dataset) -> Iterator[Sample]:
    """Yield images with objects for ever, in random order, every second one mirrored."""
    rng = np.random.default_rng(SEED)
    useful = [sample for sample in dataset if len(sample.boxes)]
    while True:
        for i in rng.permutation(len(useful)):
            yield useful[i].mirror() if rng.random() < 0.5 else useful[i]


def train(detector: FasterRCNN, dataset: Dataset, seconds: float) -> int:
    """Train for so many seconds of processor time; return the number of steps."""
    optimizer = torch.optim.AdamW(detector.parameters(), RATE, weight_decay=DECAY)
    images, begun, steps = drawn(dataset), time.process_time(), 0
    detector.train()
    while (share := (time.process_time() - begun) / seconds) < 1:
        factor = min(share / WARM_UP, 1.0) * (1 + math.cos(math.pi * share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = RATE * max(factor, 0.01)
        batch = [example(next(images)) for _ in range(BATCH)]
        losses = detector([pixels for pixels, _ in batch], [target for _, target in batch])
        loss = torch.stack([*losses.values()]).sum()
        if not torch.isfinite(loss):
            raise SystemExit(f"error: the loss is {loss.item()} after {steps} steps; lower RATE")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        steps += 1
    return steps


@torch.inference_mode()
def detect(detector: FasterRCNN, dataset: Dataset) -> list[Detections]:
    """Return the detections of every image."""
    detector.eval()
    results = []
    for sample in dataset:
        (found,) = detector([example(sample)[0]])
        results.append(Detections(found["boxes"].numpy(), found["labels"].numpy() - 1, found["scores"].numpy()))
    return results


def study(options: argparse.Namespace) -> None:
    """Run the study and print its result."""
    config = load(options.run / "config.json")
    images = load_split(config, config.data.train_split, limit=config.data.limit_train)
    test = load_split(config, config.data.test_split, images.classes, config.data.limit_test)
    torch.manual_seed(SEED)
    detector = make_detector(len(images.classes))
    steps = train(detector, images, 60 * options.minutes)
    figures = evaluate_detections(test, detect(detector, test))
    print(
        f"{options.run.name}: {steps} steps of {BATCH} images in {options.minutes:g} minutes; "
        f"mAP {figures['mAP']:.1f}, AP75 {figures['coco']['AP75']:.1f} on {len(test)} images"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, whose images are used")
    parser.add_argument("--minutes", type=float, required=True, help="processor time of the training")
    return cli.run(study, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())

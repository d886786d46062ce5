"""A seeded fuzzer: inputs of every kind are changed at random, and must be read or refused in one line.

A mutant passes if its reader returns, or raises `SppdetError` with messages of one line. Any other exception, or more
than 20 seconds of the processor, fails. ``python tests/fuzzing.py 10000`` tries that many mutants;
tests/test_fuzzing.py some.
"""

from __future__ import annotations

import copy
import io
import json
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file

from sppdet import config
from sppdet.config import ClassifierConfig, Config
from sppdet.utils import SppdetError

_SLOWEST = 20.0  # seconds of the processor that one mutant may take, however busy the machine is

# Values of other types than expected, and beyond all limits.
_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 10**9, 10**30, -(10**400), 0.5, -1e300, 1e400, float("nan"), "", "x", "1e999", "auto",
    "../..", "\0", "\ud800", [], [1], ["a", "a"], [[1]], {}, {"a": 1}, [None], "9" * 5000, [0] * 100,
]  # fmt: skip
_YAML = [
    "2024-13-45", "2024-02-30 25:61:61", "!!float x", "!!int x", "!!timestamp x", "!!python/object:os.system x",
    "!!binary $", "!!set {a: 1}", "!!omap [a]", "9" * 5000, "0x" + "f" * 9000, "-" + "9" * 400, ".inf", ".nan",
    "[" * 5000, "{a: " * 5000, "&a [*a]", "*a", "{<<: 1}", "{<<: [*a]}", "? [1]\n: 2", "{1: 2}", "{[1]: 2}", "~",
    "\x00", "\ud800", "'", "1:2:3", "12:30", "{}", "[]", "[{}]", "0o17", "017", "1_000", "=", "<<", "on", "%",
    "[&a [x,x,x,x,x,x,x,x], &b [*a,*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b,*b,*b], &d [*c,*c,*c,*c,*c,*c,*c,*c],"
    " &e [*d,*d,*d,*d,*d,*d,*d,*d], &f [*e,*e,*e,*e,*e,*e,*e,*e], &g [*f,*f,*f,*f,*f,*f,*f,*f]]",
]  # fmt: skip


def mutated_bytes(rng: random.Random, content: bytes) -> bytes:
    """Return the content with bits flipped, cut short, or with a piece zeroed, repeated or replaced."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        at = rng.randrange(len(data) + 1)
        size = rng.choice([1, 4, 64, 512])
        how = rng.randrange(5)
        if how == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del data[at:]
        elif how == 2:
            data[at : at + size] = bytes(len(data[at : at + size]))
        elif how == 3:
            data[at:at] = data[at : at + size]
        else:
            data[at : at + size] = rng.randbytes(size)
    return bytes(data)


def mutated_json(rng: random.Random, value: Any) -> Any:
    """Return a JSON value of which one entry, at any depth, is replaced, removed, renamed or wrapped."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            collect(node[key])

    collect(value)
    if not places or rng.random() < 0.03:
        return rng.choice(_VALUES)
    node, key = rng.choice(places)
    how = rng.randrange(6)
    if how == 0:
        del node[key]
    elif how == 1:
        node[key] = [node[key]]
    elif how == 2 and isinstance(node, dict):
        node[rng.choice(["x", "", *node])] = node.pop(key)
    else:
        node[key] = rng.choice(_VALUES)
    return value


def mutated_text(rng: random.Random, text: str) -> str:
    """Return YAML with a value replaced, or with bytes changed."""
    lines = text.splitlines()
    if rng.random() < 0.3:
        return mutated_bytes(rng, text.encode()).decode("utf-8", "replace")
    at = rng.randrange(len(lines))
    key = lines[at].partition(":")[0] if rng.random() < 0.8 else rng.choice(["x", "- ", "? ", ""])
    lines[at] = f"{key}: {rng.choice(_YAML)}" if rng.random() < 0.7 else f"{key}: {rng.choice(_VALUES)!r}"
    return "\n".join(lines)


def write_json(path: Path, value: Any) -> None:
    path.write_bytes(json.dumps(value).encode("utf-8", "surrogatepass"))


def unsealed(path: Path) -> Any:
    """Return the content of a JSON file without its checksum, which would refuse every mutant."""
    return {name: value for name, value in json.loads(path.read_text()).items() if name != "checksum"}


# A kind of input: (rng) -> what was tried, for the report, and a function that reads it.
Case = tuple[object, Callable[[], object]]


def override_cases(folder: Path) -> Iterator[Callable[[random.Random], Case]]:
    """Yield the kinds: overrides and files of settings, of detectors and of classifiers."""
    path = folder / "settings.yaml"
    for kind in (Config, ClassifierConfig):
        keys, text = config.keys(kind), config.to_yaml(kind())

        def override(rng: random.Random, kind=kind, keys=keys) -> Case:
            value = rng.choice(_YAML) if rng.random() < 0.5 else str(rng.choice(_VALUES[:8] + _VALUES[14:]))
            key = rng.choice(keys) if rng.random() < 0.9 else rng.choice(["", ".", "svm", "svm.C.x", "x.y", "\0"])
            return f"{key}={value}", lambda: config.load(None, [f"{key}={value}"], kind)

        def file(rng: random.Random, kind=kind, text=text) -> Case:
            mutant = mutated_text(rng, text)
            path.write_bytes(mutant.encode("utf-8", "surrogatepass"))
            return mutant, lambda: config.load(path, (), kind)

        yield override
        yield file


def image_cases(folder: Path) -> Iterator[Callable[[random.Random], Case]]:
    """Yield a kind per format of images."""
    from sppdet.data.images import image_size, read_image

    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 3), np.uint8)
    for form, image in [
        ("JPEG", Image.fromarray(pixels)), ("PNG", Image.fromarray(pixels)), ("BMP", Image.fromarray(pixels)),
        ("TIFF", Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)), ("GIF", Image.fromarray(pixels[..., 0])),
        ("WEBP", Image.fromarray(pixels)), ("PPM", Image.fromarray(pixels)), ("PNG", Image.new("RGBA", (9, 9))),
    ]:  # fmt: skip
        stream = io.BytesIO()
        image.save(stream, form)
        content = stream.getvalue()

        def case(rng: random.Random, content=content, form=form) -> Case:
            path = folder / f"image.{form.lower()}"
            path.write_bytes(mutated_bytes(rng, content))
            return path.read_bytes(), lambda: (image_size(path), read_image(path))

        yield case


def model_cases(folder: Path) -> Iterator[Callable[[random.Random], Case]]:
    """Yield the kinds: model.json of detectors and of an ensemble, and their use on an image."""
    from detectors import random_detector, two_rectangles

    from sppdet.detection.saved_ensemble import combine_runs, load
    from sppdet.detection.saved_model import save_detector
    from sppdet.networks import Cut

    image = two_rectangles()
    cut, pyramids = Cut(("features.11", "features.14")), {"layer_levels": ((2, 1), (1,)), "layer_weights": (1.0, 0.5)}
    for number, detector in enumerate([
        random_detector(), random_detector("fc6", False), random_detector("pool5+fc7"),
        random_detector(cut=cut, map_type="uint8", **pyramids),
    ]):  # fmt: skip
        model = folder / f"model{number}"
        save_detector(detector, model)
        load(model, "cpu").predict(image)  # compiles kernels, which would count as the time of a mutant
        write_json(model / "config.json", config.to_dict(Config()))
    combine_runs([folder / "model0", folder / "model0"], [1, 2], folder / "ensemble")
    for model in [*sorted(folder.glob("model?")), folder / "ensemble"]:
        description = unsealed(model / "model.json")

        def case(rng: random.Random, model=model, description=description) -> Case:
            mutant = mutated_json(rng, description)
            if isinstance(mutant, dict):
                mutant.setdefault("proposals", {})
            write_json(model / "model.json", mutant)
            return mutant, lambda: load(model, "cpu").predict(image)

        yield case
    tensors = load_file(folder / "model0" / "model.safetensors")

    def weights(rng: random.Random) -> Case:
        write_json(folder / "model0" / "model.json", unsealed(folder / "ensemble/parts/0/model.json"))
        changed, name = dict(tensors), rng.choice([name for name in tensors if not name.startswith("trunk")])
        value = changed.pop(name)
        if rng.random() < 0.7:
            changed[name] = rng.choice([value[:1], value.flatten(), value[None]])
        save_file({name: value.contiguous() for name, value in changed.items()}, folder / "model0/model.safetensors")
        return name, lambda: load(folder / "model0", "cpu").predict(image)

    yield weights


def classifier_cases(folder: Path) -> Iterator[Callable[[random.Random], Case]]:
    """Yield the kind classifier.json."""
    from sppdet.classification.classifier import Classifier, SPPClassifier, load_classifier
    from sppdet.networks import Backbone

    settings = ClassifierConfig(levels=(2, 1), sizes=(64,))
    backbone = Backbone.create("small", "random", "cpu", "float32")
    network = SPPClassifier(backbone.trunk, backbone.channels, 2, settings.levels)
    Classifier(("a", "b"), backbone, network.eval(), settings.tested).save(folder / "classifier")
    description = unsealed(folder / "classifier" / "classifier.json")

    def case(rng: random.Random) -> Case:
        mutant = mutated_json(rng, description)
        write_json(folder / "classifier" / "classifier.json", mutant)
        return mutant, lambda: load_classifier(folder / "classifier", "cpu")

    yield case


def record_cases(folder: Path) -> Iterator[Callable[[random.Random], Case]]:
    """Yield the kinds: records of stages and their costs, and checkpoints."""
    import torch
    from torch import nn

    from sppdet.evaluation.costs import read_costs, record_cost
    from sppdet.training.cached_result import Key, is_done, write_result
    from sppdet.utils import checkpoints
    from sppdet.utils.execution import Checkpoint

    key = Key.of(["settings"], ["images"])
    result = folder / "result.safetensors"
    write_result(result, key, {"weight": np.zeros(3)}, head={"units": 3})
    record = unsealed(result.with_suffix(".json"))

    def stage(rng: random.Random) -> Case:
        mutant = mutated_json(rng, record)
        write_json(result.with_suffix(".json"), mutant)
        return mutant, lambda: is_done(result, key, keep=rng.random() < 0.5)

    def cost(rng: random.Random) -> Case:
        mutant = mutated_json(rng, {"svm": {"seconds": 1.0}, "maps": {"seconds": 2.0, "disk_mb": 3}})
        write_json(folder / "stages.json", mutant)
        return mutant, lambda: (read_costs(folder), record_cost(folder, "bbox", {"seconds": 1}))

    network = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint = Checkpoint(folder / "fuzz.checkpoint", "key")
    checkpoints.save(checkpoint, network, optimizer, {"losses": torch.ones(2)}, {"reports": []})
    content, tensors = checkpoint.path.read_bytes(), load_file(checkpoint.path)
    from safetensors import safe_open

    with safe_open(checkpoint.path, "pt") as stored:
        metadata = stored.metadata()

    def bytes_of_checkpoint(rng: random.Random) -> Case:
        checkpoint.path.write_bytes(mutated_bytes(rng, content))
        return "bytes", lambda: checkpoints.restore(checkpoint, network, optimizer)

    def content_of_checkpoint(rng: random.Random) -> Case:
        changed, notes = dict(tensors), dict(metadata)
        if rng.random() < 0.4:
            changed.pop(rng.choice(list(changed)))
        else:
            name = rng.choice(["groups", "notes", "groups"])
            notes[name] = rng.choice(["", "{", "null", "[]", json.dumps(mutated_json(rng, json.loads(notes[name])))])
        save_file(changed, checkpoint.path, metadata=notes)
        return (sorted(changed), notes), lambda: checkpoints.restore(checkpoint, network, optimizer)

    yield from (stage, cost, bytes_of_checkpoint, content_of_checkpoint)


def annotation_cases(folder: Path) -> Iterator[Callable[[random.Random], Case]]:
    """Yield a kind per format of annotations, each in a folder with an image."""
    from labelled import voc_xml, write_image

    from sppdet.data.labelled_folder import read_folder

    coco = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [3, 4, 10, 12], "iscrowd": 0}],
        "categories": [{"id": 2, "name": "cat"}],
    }
    shape = {"label": "cat", "points": [[3, 4], [13, 16]], "shape_type": "rectangle"}
    labelme = {"version": "5", "imagePath": "a.jpg", "imageWidth": 40, "imageHeight": 30, "shapes": [shape]}
    box = {"x": 10, "y": 10, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["cat"]}
    result = {"type": "rectanglelabels", "original_width": 40, "original_height": 30, "value": box}
    studio = [{"id": 1, "data": {"image": "/data/upload/1/a.jpg"}, "annotations": [{"result": [result]}]}]
    cvat = (
        '<annotations><version>1.1</version><image id="0" name="a.jpg" width="40" height="30">'
        '<box label="cat" xtl="3" ytl="4" xbr="13" ybr="16" rotation="10"/><polygon label="cat" points="3,4;9,4;9,9"/>'
        '<ellipse label="cat" cx="20" cy="15" rx="5" ry="4"/></image></annotations>'
    )
    contents: dict[str, Any] = {
        "voc/a.xml": voc_xml(("cat", 3, 4, 13, 16)),
        "coco/a.json": coco,
        "labelme/a.json": labelme,
        "labelstudio/export.json": studio,
        "yolo/a.txt": "0 0.5 0.5 0.25 0.4\n0 0.3 0.3 0.1 0.1\n",
        "yolo-names/data.yaml": "names:\n  0: cat\nnc: 1\ntrain: .\n",
        "cvat/annotations.xml": cvat,
        "csv/boxes.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,40,30,cat,3,4,13,16\n",
    }
    for name, content in contents.items():
        path = folder / name
        write_image(path.parent / "a.jpg")
        if name.startswith("yolo"):
            (path.parent / "classes.txt").write_text("cat\n")
            (path.parent / "a.txt").write_text("0 0.5 0.5 0.25 0.4\n")

        def case(rng: random.Random, path=path, content=content) -> Case:
            if not isinstance(content, str) and rng.random() < 0.7:
                write_json(path, mutated_json(rng, content))
            else:
                text = content if isinstance(content, str) else json.dumps(content)
                path.write_bytes(mutated_bytes(rng, text.encode()))
            return path.read_bytes(), lambda: read_folder(path.parent, skip_bad=rng.random() < 0.5)

        yield case


def list_cases(folder: Path) -> Iterator[Callable[[random.Random], Case]]:
    """Yield the kinds: lists of images, of the classes looked for, made splits, and the record of written labels."""
    from labelled import voc_xml, write_image

    from sppdet.data import AnnotationFolder, Prelabelled, read_folder, read_voc, split_folder
    from sppdet.data.looked_for import with_looked_for

    images, looked_for = folder / "voc/JPEGImages", folder / "looked_for.csv"
    for number in range(4):
        write_image(images / f"{number}.jpg", seed=number)
        path = folder / f"voc/Annotations/{number}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(voc_xml(("cat", 3, 4, 13, 16), ("dog", 20, 4, 30, 16), filename=f"{number}.jpg"))
    names = folder / "voc/ImageSets/Main/train.txt"
    names.parent.mkdir(parents=True)
    names.write_text("0\n1 1\n2 -1\n")

    def image_list(rng: random.Random) -> Case:
        names.write_bytes(mutated_bytes(rng, b"0\n1 1\n2 -1\n"))
        return names.read_bytes(), lambda: read_voc(folder / "voc", "train")

    whole = read_folder(folder / "voc")

    def looked(rng: random.Random) -> Case:
        looked_for.write_bytes(mutated_bytes(rng, b'image,classes\n0.jpg,cat,dog\n"1",cat\n2,\n'))
        return looked_for.read_bytes(), lambda: with_looked_for(whole.dataset(), str(looked_for))

    split_folder(whole, 0.5)
    splits = next(folder.rglob("sppdet-splits.json"))
    stored = json.loads(splits.read_text())

    def split(rng: random.Random) -> Case:
        write_json(splits, mutated_json(rng, stored))
        return splits.read_bytes(), lambda: split_folder(whole, 0.5)

    boxes = np.array([[3, 4, 13, 16]], np.float32)
    paths = sorted(images.iterdir())
    for form in ("yolo", "coco"):
        where = AnnotationFolder(images, form)
        where.write([Prelabelled(path, (40, 30), ["cat"], boxes, [0.9]) for path in paths], ["cat"])
        record = where.folder / ".sppdet-labels.json"
        content = json.loads(record.read_text())

        def labels(rng: random.Random, form=form, record=record, content=content) -> Case:
            write_json(record, mutated_json(rng, content))
            return record.read_bytes(), lambda: AnnotationFolder(images, form).without_annotation(paths)

        yield labels
    yield from (image_list, looked, split)


def video_cases(folder: Path) -> Iterator[Callable[[random.Random], Case]]:
    """Yield a kind per form of videos."""
    from sppdet.data import Video, written_video

    pixels = np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), np.uint8)
    for name in ("a.mp4", "a.avi", "a.mkv"):
        path = folder / name
        with written_video(path, 5, (64, 48)) as add:
            for number, image in enumerate(pixels):
                add(image, number / 5)
        content = path.read_bytes()

        def case(rng: random.Random, path=path, content=content) -> Case:
            path.write_bytes(mutated_bytes(rng, content))

            def read() -> None:
                video = Video(str(path), rng.choice([1, 2]))
                for _ in zip(range(100), video):
                    pass
                video.lacks_frames()
                video.close()

            return path.read_bytes(), read

        yield case


def large_image_cases(folder: Path) -> Iterator[Callable[[random.Random], Case]]:
    """Yield a kind per format of images that libvips reads part by part."""
    from sppdet.data.large_images import PixelsInFile

    pixels = np.random.default_rng(0).integers(0, 256, (240, 310, 3), np.uint8)
    sixteen = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    for name, image in [
        ("a.jpg", Image.fromarray(pixels)), ("a.png", Image.fromarray(pixels)), ("b.png", sixteen),
        ("a.tiff", Image.fromarray(pixels)), ("a.webp", Image.fromarray(pixels)), ("c.png", Image.new("RGBA", (90, 9))),
    ]:  # fmt: skip
        path = folder / name
        image.save(path)
        content = path.read_bytes()

        def case(rng: random.Random, path=path, content=content) -> Case:
            path.write_bytes(mutated_bytes(rng, content))

            def read() -> None:
                image = PixelsInFile(path)
                image.read((0, image.height // 2, image.width // 2, image.height))
                image.overview()

            return path.name, read

        yield case


def run_cases(folder: Path) -> Iterator[Callable[[random.Random], Case]]:
    """Yield the kinds: the files of a run that ``evaluate`` and ``report`` read, its bank, and files of weights."""
    import torch
    from safetensors import safe_open
    from safetensors.numpy import save_file as save_numpy
    from tiny_run import TinyRun

    from sppdet.data.shapes import make_shapes
    from sppdet.evaluation import evaluate_run, read_devkit_results, read_last_evaluation, summary, write_report
    from sppdet.networks import Backbone
    from sppdet.networks.weights import load_weights
    from sppdet.training import bank

    make_shapes(folder / "shapes", train=6, test=2, size=(160, 120))
    run = TinyRun(folder / "tiny", folder / "shapes")
    run.train()
    last = read_last_evaluation(run.folder)
    missed = {"image": "train_00000", "class": "circle", "box": [1, 2, 30, 40], "margin": 0.5}
    write_json(run.folder / "perhaps_missed.json", {"perhaps_missed": [missed]})
    contents = {name: unsealed(run.folder / name) for name in ("metrics.json", "config.json", "perhaps_missed.json")}

    def restore() -> None:
        for name, content in contents.items():
            write_json(run.folder / name, content)

    for name, content in contents.items():

        def case(rng: random.Random, name=name, content=content) -> Case:
            restore()
            mutant = mutated_json(rng, content)
            write_json(run.folder / name, mutant)
            read = rng.choice([lambda: summary(evaluate_run(run.folder)), lambda: write_report(run.folder)])
            return f"{name}: {mutant}", read

        yield case
    detections = sorted((run.folder / "detections").glob("*.txt"))
    texts = {path: path.read_bytes() for path in detections}

    def result(rng: random.Random) -> Case:
        for path, content in texts.items():
            path.write_bytes(mutated_bytes(rng, content))
        return "detections", lambda: read_devkit_results(run.folder / "detections", last.dataset, "test")

    yield result
    path = run.folder / bank.BANK_FILE
    with safe_open(path, "numpy") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    described = json.loads(metadata["bank"])

    def vectors(rng: random.Random) -> Case:
        changed = dict(tensors)
        name = rng.choice(list(changed))
        value = changed.pop(name)
        if rng.random() < 0.7:
            changed[name] = np.ascontiguousarray(rng.choice([value[:1], value.flatten(), value[None], value[1:]]))
        mutant = json.dumps(mutated_json(rng, described)) if rng.random() < 0.7 else json.dumps(described)
        save_numpy(changed, path, metadata | {"bank": mutant, "checksum": bank._checksum(changed, mutant)})
        return (name, mutant), lambda: bank.Bank.load(run.folder)

    yield vectors
    trunk = Backbone.create("small", "random", "cpu", "float32").trunk
    state = {name: value.contiguous() for name, value in trunk.state_dict().items()}
    torch.save(state, folder / "weights.pth")
    save_file(state, folder / "weights.safetensors")
    for path in (folder / "weights.pth", folder / "weights.safetensors"):
        content = path.read_bytes()

        def weights(rng: random.Random, path=path, content=content) -> Case:
            path.write_bytes(mutated_bytes(rng, content))
            return path.name, lambda: load_weights(trunk, "small", str(path))

        yield weights


def cache_cases(folder: Path) -> Iterator[Callable[[random.Random], Case]]:
    """Yield a kind per form of stored arrays, with and without their checksum, and the stored trunk in ONNX form."""
    from sppdet.features.store import Store
    from sppdet.networks import Backbone, arrays_digest, cached_trunk
    from sppdet.networks.onnx_cache import cache_folder, keep_trunk
    from sppdet.ops import encode_map

    rng = np.random.default_rng(0)
    values = {
        ".npy": rng.random((20, 4), np.float32), ".rows": rng.random((20, 16), np.float32),
        ".b2nd": rng.random((5, 6, 8), np.float32), ".codes": encode_map(rng.random((5, 6, 8), np.float32)),
    }  # fmt: skip
    for suffix, value in values.items():
        store = Store(folder, suffix[1:], {}, suffix)
        store.write("a", value)
        content = store.path("a").read_bytes()

        def case(rng: random.Random, store=store, content=content) -> Case:
            kept = content if rng.random() < 0.5 else content[:-8]  # those of earlier versions have no checksum
            store.path("a").write_bytes(mutated_bytes(rng, kept))
            return store.suffix, lambda: store.read("a")

        yield case
    backbone = Backbone.create("small", "random", "cpu", "float32")
    if backbone.onnx is None:
        return
    digest = arrays_digest({name: value.numpy() for name, value in backbone.trunk.state_dict().items()})
    model = backbone.onnx.model

    def trunk(rng: random.Random) -> Case:
        keep_trunk("small", digest, model)
        for path in cache_folder().glob("small-*.onnx"):
            path.write_bytes(mutated_bytes(rng, model))
        return "onnx", lambda: cached_trunk("small", digest)

    yield trunk


FAMILIES = {
    "settings": override_cases,
    "images": image_cases,
    "models": model_cases,
    "classifiers": classifier_cases,
    "records": record_cases,
    "annotations": annotation_cases,
    "lists": list_cases,
    "videos": video_cases,
    "large images": large_image_cases,
    "runs": run_cases,
    "caches": cache_cases,
}


def fuzz(family: str, mutants: int, folder: Path, seed: int = 0) -> list[str]:
    """Try mutants of one family of inputs, each kind in turn.

    Args:
        family: one of FAMILIES.
        mutants: how many.
        folder: where files are written.
        seed: of all that is drawn.

    Returns:
        A report of each mutant that fails.
    """
    rng, kinds, failures = random.Random(seed), list(FAMILIES[family](folder)), []
    for number in range(mutants):
        tried, read = kinds[number % len(kinds)](rng)
        start = time.process_time()
        try:
            read()
        except SppdetError as error:
            if len(str(error)) > 2000 or str(error).count("\n") > 12:
                failures.append(f"{number}: a message of {len(str(error))} characters\n{str(error)[:300]}")
        except Exception:
            failures.append(f"{number}: {str(tried)[:1500]}\n{traceback.format_exc()[-1500:]}")
        if (seconds := time.process_time() - start) > _SLOWEST:
            failures.append(f"{number}: {seconds:.0f} s for {str(tried)[:300]}")
    return failures


def main(mutants: int, seed: int = 0) -> int:
    """Try mutants of all families, print what fails, and return how many do."""
    failed = 0
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            failures = fuzz(family, mutants // len(FAMILIES), Path(folder), seed)
        print(f"{family}: {mutants // len(FAMILIES)} mutants, {len(failures)} fail", *failures, sep="\n")
        failed += len(failures)
    return failed


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])) > 0)

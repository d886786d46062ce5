"""Splits of data sets: of VOC's lists, of a folder that has splits, and made ones that are stored."""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import filterfalse
from pathlib import Path

import numpy as np

from sppdet.config import Config, DataSettings
from sppdet.data.annotations import Located
from sppdet.data.dataset import Dataset, Sample
from sppdet.data.ignored import with_ignored_classes
from sppdet.data.images import IN_TILES, is_too_large
from sppdet.data.labelled_folder import LabelledFolder, duplicate_groups, read_folder
from sppdet.data.listing import SPLIT_FILE, Listing
from sppdet.data.looked_for import with_looked_for
from sppdet.data.names import check_class_names
from sppdet.data.problems import Problem, listed, raise_fatal, remarks
from sppdet.data.shapes import make_shapes
from sppdet.data.voc import read_voc, voc_folder, voc_lists
from sppdet.utils import SppdetError, counted, fingerprint, write_json

logger = logging.getLogger(__name__)

DEFAULT_SHARE = 0.2  # share of the images that a made split has for tests
_DERIVED = ("trainval", "test")  # splits that every folder has: made where it has none
_last_folder: dict[tuple, LabelledFolder] = {}  # the folder that was read last: both splits of a training are of one


def read_dataset(
    root: str | os.PathLike, split: str = "trainval", classes: Sequence[str] | None = None, limit: int | None = None
) -> Dataset:
    """Read the annotations of one split of a folder; images are read later, by `Sample.read`.

    Args:
        root: VOC folder (``VOC2007``), or its parent (``VOCdevkit``) if that holds exactly one; or any folder that
            `sppdet.data.read_folder` reads.
        split: of a VOC folder the name of a list in ``ImageSets/Main``: ``train``, ``val``, ``trainval``, ``test`` or
            your own. Of other folders ``trainval``, ``test``, ``all``, or a split that the folder has. Where it has
            none, one image in five is for ``test``: see `split_folder`.
        classes: names that the labels index. By default the names in all annotations of the split, sorted.
        limit: number of images to keep, the first ones of the split. The default keeps all.

    Returns:
        The images of the split in the order of the list.

    Raises:
        SppdetError: the folder or the split is missing, or files in it cannot be used; the message names them.

    Examples:
        >>> data = read_dataset("VOCdevkit")  # doctest: +SKIP
        >>> data  # doctest: +SKIP
        Dataset(5011 images, 20 classes, 15662 objects)
        >>> data[0]  # doctest: +SKIP
        Sample('000005', 500 x 375 pixels, 5 objects)
    """
    root = Path(root)
    if _has_lists(root, [split]):
        return read_voc(root, split, classes=classes, limit=limit)
    folder = _read_once(root, None, False)
    return folder.dataset(_images_of(folder, split, None, 3, None), classes, limit)


def load_split(config: Config, split: str, classes: Sequence[str] | None = None, limit: int | None = None) -> Dataset:
    """Read one split of the data set that ``config.data`` names.

    ``data.root=shapes`` names the synthetic data set (`sppdet.data.shapes.make_shapes`). It is drawn in the
    cache folder on first use.

    Args:
        config: its section ``data``, ``run.cache`` and ``run.seed`` are read.
        split: name of the split, ``trainval`` or ``test`` for example; see `read_dataset`.
        classes: names that the labels index, instead of ``data.classes``.
        limit: number of images to keep, the first ones of the split. The default keeps all.

    Raises:
        SppdetError: the folder is missing, or an error of `read_dataset`.
    """
    data, root = config.data, _root(config)
    classes = data.classes if classes is None else classes
    names = [data.train_split, data.test_split, split]
    every = _names_to_read(classes, data)
    if data.test_share is None and data.format in (None, "voc") and _has_lists(root, names):
        dataset = read_voc(root, split, every, limit, data.skip_bad)
    else:
        folder = _read_once(root, data.format, data.skip_bad)
        images = _images_of(folder, split, data.test_share, config.run.seed, Path(config.run.cache))
        dataset = folder.dataset(images, every, limit)
    return _as_labelled(dataset, data)


def load_folds(config: Config, folds: int) -> tuple[Dataset, list[Dataset]]:
    """Read all images of the data set that ``config.data`` names, and divide them into folds.

    Args:
        config: its section ``data``, ``run.cache`` and ``run.seed`` are read. ``data.limit_train`` limits all images.
        folds: their number.

    Returns:
        All images, and the images of each fold.

    Raises:
        SppdetError: there are fewer images than folds, or an error of `load_split`.
    """
    folder = _read_once(_root(config), config.data.format, config.data.skip_bad)
    folder = replace(folder, images=folder.images[: config.data.limit_train])
    data = config.data
    every = _as_labelled(folder.dataset(classes=_names_to_read(data.classes, data)), data)
    parts = fold_folder(folder, folds, config.run.seed, Path(config.run.cache))
    datasets = [folder.dataset(part, _names_to_read(every.classes, data)) for part in parts]
    return every, [_as_labelled(dataset, data) for dataset in datasets]


def _names_to_read(classes: Sequence[str] | None, data: DataSettings) -> list[str] | None:
    """Return the names of classes and of regions that are ignored; None where the annotations tell the classes."""
    return None if classes is None else [*dict.fromkeys([*classes, *data.ignore_classes])]


def _as_labelled(dataset: Dataset, data: DataSettings) -> Dataset:
    """Return a data set that knows what nobody has labelled: ignored regions, and classes that were not looked for."""
    check_class_names(dataset.classes, data.root)
    return with_looked_for(with_ignored_classes(_readable(dataset, data), data.ignore_classes), data.labelled_classes)


def _readable(dataset: Dataset, data: DataSettings) -> Dataset:
    """Refuse images with more pixels than are read at once that ``data.tiles`` does not cut, or leave them out."""
    largest = data.tiles or math.inf  # side of images that stay whole

    def unreadable(sample: Sample) -> bool:
        return is_too_large(sample.width, sample.height) and max(sample.width, sample.height) <= largest

    too_large = [*filter(unreadable, dataset)]
    if not too_large:
        return dataset
    if not data.skip_bad:
        sizes = {sample.path: f"{sample.width} x {sample.height} pixels" for sample in too_large}
        raise_fatal(
            Problem("unreadable image", str(path), f"{path}: {size} are too many to read at once; {IN_TILES}", True)
            for path, size in sizes.items()
        )
    names = listed([sample.path for sample in too_large])
    warnings.warn(f"{data.root}: too large, left out by data.skip_bad: {len(too_large)} ({names})", stacklevel=2)
    return replace(dataset, samples=tuple(filterfalse(unreadable, dataset)))


def divide_dataset(dataset: Dataset, test_share: float = DEFAULT_SHARE, seed: int = 3) -> tuple[Dataset, Dataset]:
    """Divide a data set into one for training and one for tests, each class with its share in both.

    Examples:
        >>> import numpy as np
        >>> from sppdet.data.dataset import Sample
        >>> label, none = np.zeros(1, np.int64), np.zeros(1, bool)
        >>> images = tuple(Sample(n, Path(n), 8, 6, np.zeros((1, 4), np.float32), label, none) for n in "abcde")
        >>> [len(part) for part in divide_dataset(Dataset(("cat",), images))]
        [4, 1]
    """
    if len(dataset) < 2:
        raise SppdetError(f"data set: {len(dataset)} image cannot be divided; give test=DATASET, or more images")
    objects = [Counter(dataset.classes[label] for label in sample.labels) for sample in dataset]
    parts = divide(objects, {"train": 1 - test_share, "test": test_share}, seed)
    train, test = (
        replace(dataset, samples=tuple(sample for sample, part in zip(dataset, parts) if part == name))
        for name in ("train", "test")
    )
    return train, test


def _root(config: Config) -> Path:
    """Return the folder that ``data.root`` names; the synthetic data set is drawn on first use."""
    data = config.data
    is_shapes = data.root == "shapes"
    if is_shapes and Path("shapes").is_dir():
        warnings.warn(
            "data.root=shapes names the synthetic data set; give data.root=./shapes to read your folder", stacklevel=2
        )
    root = make_shapes(Path(config.run.cache) / "shapes") if is_shapes else Path(data.root)
    if not root.is_dir():  # a relative path may come from a run that was started in another folder
        raise SppdetError(f"data.root: there is no folder {root} in {Path.cwd()}; give data.root=FOLDER")
    return root


def split_folder(
    folder: LabelledFolder, test_share: float = DEFAULT_SHARE, seed: int = 3, cache: Path | None = None
) -> dict[str, list[Located]]:
    """Divide images into ``trainval`` and ``test``, as before where they were divided before.

    Every class has its share in both, as far as its images allow; images of one content stay together. Where each image
    went is stored in the file ``sppdet-splits.json`` of the folder (or in the cache, if the folder is read-only), by
    content: images that are added later do not move the others.

    Args:
        folder: the images.
        test_share: share of the images for ``test``.
        seed: of the random draw, where nothing is stored.
        cache: folder for the file where ``folder`` is read-only.

    Returns:
        The images of ``trainval`` and of ``test``, by path.

    Raises:
        SppdetError: there are too few images.
    """
    shares = {"trainval": 1 - test_share, "test": test_share}
    return _stored_parts(folder, f"test {test_share:g}", shares, seed, cache)


def fold_folder(
    folder: LabelledFolder, folds: int = 5, seed: int = 3, cache: Path | None = None
) -> list[list[Located]]:
    """Divide images into folds for cross-validation, by the rules of `split_folder`.

    Returns:
        The images of each fold; a model that is measured on one is trained on all others.

    Raises:
        SppdetError: there are fewer images than folds.
    """
    shares = {str(number): 1 / folds for number in range(folds)}
    return list(_stored_parts(folder, f"{folds} folds", shares, seed, cache).values())


def _has_lists(root: Path, names: Sequence[str]) -> bool:
    """Whether splits are those of VOC's lists: all that are asked for are there, or one is that nothing can replace."""
    if not root.is_dir() or not [*root.glob("ImageSets/Main/*.txt"), *root.glob("VOC*/ImageSets/Main/*.txt")]:
        return False
    lists = voc_lists(voc_folder(root))
    missing = [name for name in names if name not in lists]
    return not missing or any(name not in (*_DERIVED, "all") for name in missing)


def _read_once(root: Path, format: str | None, skip_bad: bool) -> LabelledFolder:
    """Read a folder, unless it was the last one and none of its files has changed since; tell what it holds."""
    entries = sorted((path, status.st_size, status.st_mtime_ns) for path, status in _statuses(root))
    key = (root.resolve(), format, skip_bad, fingerprint([[str(path), *rest] for path, *rest in entries]))
    if key not in _last_folder:
        folder = read_folder(root, format, skip_bad)
        _last_folder.clear()
        _last_folder[key] = folder
        counts = folder.objects()
        logger.info(
            "%s: %s, %s, %s of %s",
            root, folder.format, counted(len(folder.images), "image"), counted(counts.total(), "object"),
            counted(len(counts), "class", "classes"),
        )  # fmt: skip
        notes = remarks(folder.problems)
        if folder.left_out:
            notes.append(f"files left out by data.skip_bad: {folder.left_out}")
        if notes:
            text = "\n  ".join([*notes, f"`sppdet check {root}` lists them all"])
            warnings.warn(f"{root}: look at these:\n  {text}", UserWarning, stacklevel=2)
    return _last_folder[key]


def _statuses(root: Path) -> list[tuple[Path, os.stat_result]]:
    """Return the files below a folder with size and time of change."""
    listing = Listing.of(root)
    return [(path, path.stat()) for path in (*listing.images, *listing.others) if path.is_file()]


def _images_of(
    folder: LabelledFolder, split: str, share: float | None, seed: int, cache: Path | None
) -> Sequence[Located]:
    """Return the images of a split by its name."""
    if split == "all":
        return folder.images
    splits = folder.splits() if share is None else {}
    if not splits:
        splits = split_folder(folder, DEFAULT_SHARE if share is None else share, seed, cache)
    if split in splits and (split != "trainval" or splits.keys() <= {*_DERIVED}):
        return splits[split]
    test = "test" if "test" in splits else "val"
    derived = {
        "test": splits.get(test, []),
        "trainval": [image for name, images in splits.items() if name != test for image in images],
    }
    if not derived.get(split):
        raise SppdetError(f"{folder.root}: no split {split}; there are: {', '.join(sorted({*splits, *_DERIVED}))}")
    return sorted(derived[split], key=lambda image: image.path)


def _stored_parts(
    folder: LabelledFolder, name: str, shares: Mapping[str, float], seed: int, cache: Path | None
) -> dict[str, list[Located]]:
    """Divide images into parts and store where each one went, under ``name``."""
    paths = [folder.root / SPLIT_FILE]
    if cache is not None:
        paths.append(cache / "splits" / f"{fingerprint(str(folder.root.resolve()))}.json")
    stored = next((content for path in paths if (content := _read_stored(path)) is not None), {})
    before = stored.get(name, {})
    groups = duplicate_groups(folder.images)
    if len(groups) < len(shares):
        raise SppdetError(
            f"{folder.root}: {len(groups)} different images cannot be divided into {len(shares)} parts; add images"
        )
    by_file = {file: part for file, (_, part) in before.items()}
    by_digest = dict(before.values())
    fixed = {}
    for number, group in enumerate(groups):
        known = [by_digest.get(group[0].facts.digest), *(by_file.get(_relative(folder, image)) for image in group)]
        part = next((part for part in known if part in shares), None)
        if part is not None:
            fixed[number] = part
    chosen = divide(
        [Counter({name for image in group for name in image.names}) for group in groups], shares, seed, fixed
    )
    parts: dict[str, list[Located]] = {part: [] for part in shares}
    now: dict[str, list[str]] = {}
    for part, group in zip(chosen, groups):
        parts[part] += group
        now |= {_relative(folder, image): [image.facts.digest, part] for image in group}
    if now.keys() - before.keys() or any(before[file] != entry for file, entry in now.items()):
        _store(paths, stored | {name: dict(sorted((before | now).items()))})
    return {part: sorted(images, key=lambda image: image.path) for part, images in parts.items()}


def _relative(folder: LabelledFolder, image: Located) -> str:
    """Return the path of an image below its folder."""
    return image.path.relative_to(folder.root).as_posix()


def _read_stored(path: Path) -> dict | None:
    """Return the content of a file of splits: by name of the split, file -> [digest, part]; None without the file."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for entries in content.values():
            for file, (digest, part) in entries.items():
                if not all(isinstance(text, str) for text in (file, digest, part)):
                    raise ValueError("expected texts")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SppdetError(f"{path}: holds no splits ({error}); restore it, or remove it to divide anew") from None
    return content


def _store(paths: Sequence[Path], content: dict) -> None:
    """Write the splits into the first of the files that can be written; nothing if none can."""
    for path in paths:
        if path.parent.exists() and not path.parent.stat().st_mode & 0o222:
            continue  # marked read-only, which does not stop the superuser
        try:
            write_json(path, content)
            return
        except OSError:
            continue


def divide(
    groups: Sequence[Mapping[str, int]], shares: Mapping[str, float], seed: int, fixed: Mapping[int, str] | None = None
) -> list[str]:
    """Divide groups into parts so that each class has its share in each part (iterative stratification).

    The rarest class is divided first: each of its groups goes to the part that lacks most of the class
    (Sechidis et al., ECML PKDD 2011).

    Args:
        groups: classes of each group, with counts.
        shares: part -> share; the shares sum to 1.
        seed: of the order in which groups are taken.
        fixed: number of a group -> part, for groups that are in one already.

    Returns:
        The part of each group.

    Examples:
        >>> divide([{"cat": 1}] * 8 + [{"dog": 1}] * 2, {"train": 0.5, "test": 0.5}, 0).count("test")
        5
    """
    parts, chosen = list(shares), dict(fixed or {})
    lacking: dict[str, dict[str, float]] = {part: defaultdict(float) for part in parts}  # class "": all groups

    def classes_of(number: int) -> list[str]:
        return [*groups[number], ""]

    for part in parts:
        for number in range(len(groups)):
            for name in classes_of(number):
                lacking[part][name] += shares[part] - (chosen.get(number) == part)
    waiting = [int(i) for i in np.random.default_rng(seed).permutation(len(groups)) if int(i) not in chosen]
    while waiting:
        counts = Counter(name for number in waiting for name in groups[number])
        rarest = min(counts, key=lambda name: (counts[name], name)) if counts else ""
        for number in [number for number in waiting if rarest in classes_of(number)]:
            part = max(parts, key=lambda part: (round(lacking[part][rarest], 9), round(lacking[part][""], 9)))
            chosen[number] = part
            for name in classes_of(number):
                lacking[part][name] -= 1
        waiting = [number for number in waiting if number not in chosen]
    _fill_empty(groups, parts, chosen, fixed or {})
    return [chosen[number] for number in range(len(groups))]


def _fill_empty(
    groups: Sequence[Mapping[str, int]], parts: Sequence[str], chosen: dict[int, str], fixed: Mapping[int, str]
) -> None:
    """Give every part that got no group one of the largest part, if possible one whose classes stay there too."""
    for part in parts:
        if part not in chosen.values():
            largest = Counter(chosen.values()).most_common(1)[0][0]
            members = [number for number, other in sorted(chosen.items()) if other == largest]
            counts = Counter(name for number in members for name in groups[number])
            movable = [number for number in members if number not in fixed] or members
            chosen[max(movable, key=lambda number: min([counts[name] for name in groups[number]], default=99))] = part

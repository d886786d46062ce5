"""Changes to VOC annotations on disk, for the tests of what depends on them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path


def rename_objects(annotation: Path, name: str) -> None:
    """Give all objects of an image another class."""
    tree = ET.parse(annotation)
    for old in tree.getroot().iter("name"):
        old.text = name
    tree.write(annotation)


def rename_class(root: Path, name: str, new: str) -> None:
    """Give a class another name, in all images."""
    for annotation in (root / "Annotations").iterdir():
        annotation.write_text(annotation.read_text().replace(f"<name>{name}<", f"<name>{new}<"))


def mark_first_object_difficult(annotation: Path) -> str:
    """Mark an image's first object as difficult; its class."""
    tree = ET.parse(annotation)
    thing = tree.getroot().find("object")
    thing.find("difficult").text = "1"
    tree.write(annotation)
    return thing.findtext("name")


def narrow_first_object(annotation: Path) -> str:
    """Take two pixels off an image's first object; its class."""
    tree = ET.parse(annotation)
    thing = tree.getroot().find("object")
    corner = thing.find("bndbox").find("xmax")
    corner.text = str(float(corner.text) - 2)
    tree.write(annotation)
    return thing.findtext("name")

"""COCO's JSON, as CVAT, Label Studio and Roboflow write it."""

from __future__ import annotations

import pytest
from labelled import kinds_of, objects_of, write, write_image
from pycocotools import mask as masks

from sppdet.data.labelled_folder import read_folder
from sppdet.utils.errors import SppdetError


def coco(*annotations: dict, name: str = "a.jpg", **changes) -> dict:
    """Return a file with one image, whose id is 17, and categories 3 and 90."""
    categories = [{"id": 0, "name": "things"}, {"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}]
    entries = [{"id": i, "image_id": 17, "category_id": 3} | entry for i, entry in enumerate(annotations, 5)]
    images = [{"id": 17, "file_name": name, "width": 40, "height": 30}]
    return {"info": {}, "images": images, "annotations": entries, "categories": categories} | changes


def test_ids_crowds_and_categories_without_objects(tmp_path):
    write_image(tmp_path / "images/a.jpg")
    boxes = {"bbox": [10, 5, 10.5, 10]}, {"bbox": [0, 0, 4, 4], "category_id": 90, "iscrowd": 1}
    write(tmp_path / "annotations/instances_default.json", coco(*boxes))
    folder = read_folder(tmp_path)
    assert (folder.format, folder.classes) == ("coco", ("cat", "dog"))
    assert objects_of(folder) == {"a": [("cat", 10, 5, 20.5, 15), ("dog", 0, 0, 4, 4)]}
    assert folder.images[0].ignored.tolist() == [False, True] and not folder.images[0].difficult.any()
    (sample,) = folder.dataset()
    assert sample.labels.tolist() == [0] and sample.ignored_of(1).tolist() == [[0, 0, 4, 4]]


def test_difficult_objects_that_we_wrote_stay_objects(tmp_path):
    write_image(tmp_path / "images/a.jpg")
    box = {"bbox": [10, 5, 10.5, 10], "iscrowd": 1, "difficult": 1}
    write(tmp_path / "annotations/instances_default.json", coco(box))
    (sample,) = read_folder(tmp_path).dataset()
    assert sample.difficult.tolist() == [True] and len(sample.ignored) == 0


def test_segmentations_stand_for_missing_boxes(tmp_path):
    write_image(tmp_path / "a.jpg")
    pixels = __import__("numpy").zeros((30, 40), "uint8", order="F")
    pixels[5:15, 10:20] = 1
    packed = masks.encode(pixels)
    packed["counts"] = packed["counts"].decode()
    runs = {"size": [30, 40], "counts": [305, 10, 20, 10, 855]}  # two columns of ten pixels, column by column
    polygon = {"segmentation": [[1, 2, 9, 2, 9, 8], [0.5, 3, 4, 3, 4, 11]], "bbox": []}
    write(tmp_path / "a.json", coco(polygon, {"segmentation": packed}, {"segmentation": runs, "bbox": [0, 0, 0, 0]}))
    assert objects_of(read_folder(tmp_path)) == {
        "a": [("cat", 0.5, 2, 9, 11), ("cat", 10, 5, 20, 15), ("cat", 10, 5, 12, 15)]
    }


def test_one_file_per_split(tmp_path):
    for seed, split in enumerate(("train", "valid")):
        write_image(tmp_path / split / f"{split}.jpg", seed=seed)
        content = coco({"bbox": [1, 2, 3, 4]}, name=f"{split}.jpg")
        write(tmp_path / split / "_annotations.coco.json", content)
    assert {name: len(images) for name, images in read_folder(tmp_path).splits().items()} == {"train": 1, "val": 1}


def test_file_names_give_the_split_where_folders_do_not(tmp_path):
    for seed, split in enumerate(("train2017", "val2017")):
        write_image(tmp_path / f"images/{seed}.jpg", seed=seed)
        write(tmp_path / f"annotations/instances_{split}.json", coco({"bbox": [1, 2, 3, 4]}, name=f"{seed}.jpg"))
    assert {n: images[0].id for n, images in read_folder(tmp_path).splits().items()} == {"train": "0", "val": "1"}


def test_names_that_lead_outside_of_the_folder_mean_images_inside_or_none(tmp_path):
    write_image(tmp_path / "data/a.jpg")
    write_image(tmp_path / "b.jpg")
    write(tmp_path / "data/x.json", coco({"bbox": [1, 2, 3, 4]}, name="..\\..\\images/a.jpg"))
    assert list(objects_of(read_folder(tmp_path / "data"))) == ["a"]
    write(tmp_path / "data/x.json", coco({"bbox": [1, 2, 3, 4]}, name="../b.jpg"))
    with pytest.raises(SppdetError, match=r"x\.json: image '\.\./b\.jpg' is not in .*data; add it or remove"):
        read_folder(tmp_path / "data")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [{"id": 1}]}, "is not as COCO's JSON should be \\('file_name' is missing\\); export it again"),
        ({"annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}]}, "of image 1, which is not in the"),
        ({"categories": [{"id": 4, "name": "cat"}]}, "of category 3, which is not in the list; correct it"),
        ({"annotations": {"a": 1}}, "is not as COCO's JSON should be"),
        ({"annotations": [{"image_id": 17, "category_id": 3, "bbox": ["x", 2, 3, 4]}]}, "could not convert"),
        ({"annotations": [{"image_id": 17, "category_id": 3, "bbox": [1, 2, 3]}]}, "a bbox of 3 numbers"),
        ({"annotations": [None]}, "is not as COCO's JSON should be"),
    ],
)
def test_files_of_another_form_are_named(tmp_path, change, message):
    write_image(tmp_path / "a.jpg")
    write(tmp_path / "x.json", coco({"bbox": [1, 2, 3, 4]}) | change)
    with pytest.raises(SppdetError, match=rf"x\.json: .*{message}"):
        read_folder(tmp_path)


def test_one_image_in_two_files_is_read_once(tmp_path):
    write_image(tmp_path / "a.jpg")
    write(tmp_path / "all.json", coco({"bbox": [1, 2, 3, 4]}))
    write(tmp_path / "train.json", coco({"bbox": [1, 2, 3, 4]}))
    folder = read_folder(tmp_path)
    assert objects_of(folder) == {"a": [("cat", 1, 2, 4, 6)]} and kinds_of(folder) == []
    write(tmp_path / "train.json", coco({"bbox": [1, 2, 3, 9]}))
    with pytest.raises(SppdetError, match=r"a\.jpg: is annotated differently in .*all\.json and .*train\.json; remove"):
        read_folder(tmp_path)


@pytest.mark.parametrize("rest", ["truncated", ""])
def test_a_file_that_is_not_json_is_an_error_beside_others(tmp_path, rest):
    for seed, split in enumerate(("train", "val")):
        write_image(tmp_path / f"{split}.jpg", seed=seed)
        write(tmp_path / f"{split}.json", coco({"bbox": [1, 2, 3, 4]}, name=f"{split}.jpg"))
    write(tmp_path / "val.json", (tmp_path / "val.json").read_text()[:-9] if rest else "")
    with pytest.raises(SppdetError, match=r"val\.json: is not JSON \(.*\); export it again"):
        read_folder(tmp_path)


def test_a_file_that_is_not_json_is_known_by_its_start(tmp_path):
    write_image(tmp_path / "a.jpg")
    write(tmp_path / "x.json", str(coco({"bbox": [1, 2, 3, 4]})).replace("'", '"')[:-9])
    with pytest.raises(SppdetError, match=r"x\.json: is not JSON"):
        read_folder(tmp_path)
    write(tmp_path / "x.json", '{ "compilerOptions": {}, // no annotation')
    with pytest.raises(SppdetError, match=r"no annotations; .*\(x\.json is none\)"):
        read_folder(tmp_path)


def test_json_of_another_form_is_passed_over(tmp_path):
    write_image(tmp_path / "a.jpg")
    write(tmp_path / "package.json", {"name": "tool", "files": ["a.js"]})
    write(tmp_path / "x.json", coco({"bbox": [1, 2, 3, 4]}))
    folder = read_folder(tmp_path)
    assert folder.format == "coco" and kinds_of(folder) == []


def test_of_coco_s_own_files_the_one_of_all_objects_is_read(tmp_path):
    """`annotations/` has captions, which are no objects, and key points of the people that the instances have, too."""
    write_image(tmp_path / "val2017/a.jpg")
    objects = {"bbox": [1, 2, 3, 4]}, {"bbox": [5, 6, 7, 8], "category_id": 90}
    write(tmp_path / "annotations/instances_val2017.json", coco(*objects))
    write(tmp_path / "annotations/person_keypoints_val2017.json", coco(objects[0] | {"keypoints": [1, 2, 2]}))
    captions = coco() | {"annotations": [{"id": 1, "image_id": 17, "caption": "A cat and a dog."}]}
    del captions["categories"]
    write(tmp_path / "annotations/captions_val2017.json", captions)
    folder = read_folder(tmp_path)
    assert objects_of(folder) == {"a": [("cat", 1, 2, 4, 6), ("dog", 5, 6, 12, 14)]} and kinds_of(folder) == []


def test_a_corner_that_is_no_number_is_an_error(tmp_path):
    write_image(tmp_path / "a.jpg")
    write(tmp_path / "x.json", coco({"bbox": [float("nan"), 2, 3, 4]}))
    with pytest.raises(
        SppdetError, match=r"x\.json: object 1 \(cat\) has a corner that is no finite number \(x1=nan, "
    ):
        read_folder(tmp_path)


def test_boxes_that_cvat_says_were_turned(tmp_path):
    write_image(tmp_path / "a.jpg")
    turned = {"bbox": [10, 10, 10, 4], "attributes": {"occluded": False, "rotation": 90.0}}
    write(tmp_path / "x.json", coco(turned, {"bbox": [1, 2, 3, 4], "attributes": {"rotation": 0.0}}))
    assert objects_of(read_folder(tmp_path)) == {"a": [("cat", 13, 7, 17, 17), ("cat", 1, 2, 4, 6)]}

"""Labels of folders and tables: what public datasets look like on a disk, each with the labels that it must give."""

import logging
import os

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning.data.datasets import huggingface, image_folder
from ddpm_lightning.data.folders import find_images
from ddpm_lightning.data.labels import in_order, labels_of
from ddpm_lightning.data.source import Form
from ddpm_lightning.errors import UserError


def draw(path, level=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), level).save(path)


def labels_in(root, **given):
    found = image_folder(root, channels=1, image_size=(4, 4), **given)
    return found.labels.tolist(), found.classes


@pytest.mark.parametrize(
    ("files", "labels", "classes"),
    [
        (["cat/a.png", "dog/b.png", "cat/c.png"], [0, 0, 1], ["cat", "dog"]),
        (["0/a.png", "1/a.png", "10/a.png", "2/a.png"], [0, 1, 3, 2], ["0", "1", "2", "10"]),  # in order of the paths
        (["1/a.png", "3/a.png", "07/a.png"], [2, 0, 1], ["1", "3", "07"]),
        (["b/x/a.png", "b/y/a.png", "a/a.png"], [0, 1, 1], ["a", "b"]),
        (["n0144/a.jpg", "n0145/a.JPEG", "n0145/b.jfif"], [0, 1, 1], ["n0144", "n0145"]),
        (["a.png", "b.png"], [0, 0], None),
        (["a.png", "cat/b.png"], [-1, 0], ["cat"]),
        (["Éa/a.png", "z/a.png"], [1, 0], ["z", "Éa"]),
        (["cat.v1/a.png", "cat/b.png"], [0, 1], ["cat", "cat.v1"]),
    ],
    ids=str,
)
def test_folders(tmp_path, files, labels, classes):
    for file in files:
        draw(tmp_path / file)
    found, names = labels_in(tmp_path)
    order = {
        path.relative_to(tmp_path).as_posix(): label
        for path, label in zip(find_images(tmp_path)[0], found, strict=True)
    }
    assert names == classes
    if classes is not None:
        assert {file: classes[label] if label >= 0 else None for file, label in order.items()} == {
            file: file.split("/")[0] if "/" in file else None for file in files
        }
    assert sorted(found) == sorted(labels)


@pytest.mark.parametrize(
    "name",
    [
        "._a.png",
        ".hidden.png",
        ".ipynb_checkpoints/a-checkpoint.png",
        "__MACOSX/._a.png",
        "__MACOSX/b.png",
        "@eaDir/a.png",
        "cat/.DS_Store",
        "Thumbs.db",
        "desktop.ini",
        ".git/a.png",
        "cat/._b.jpg",
    ],
)
def test_what_a_system_leaves_is_neither_a_picture_nor_a_class(tmp_path, caplog, name):
    draw(tmp_path / "cat" / "a.png")
    draw(tmp_path / "dog" / "a.png")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes((tmp_path / "cat" / "a.png").read_bytes())
    with caplog.at_level(logging.WARNING):
        assert labels_in(tmp_path) == ([0, 1], ["cat", "dog"])
    assert not caplog.records


@pytest.mark.parametrize(
    "ending",
    [
        "png",
        "jpg",
        "jpeg",
        "jfif",
        "jpe",
        "webp",
        "bmp",
        "gif",
        "tif",
        "tiff",
        "ppm",
        "pgm",
        "tga",
        "PNG",
        "avif",
        "jp2",
    ],
)
def test_every_ending_that_pillow_reads(tmp_path, ending):
    path = tmp_path / "cat" / f"a.{ending}"
    try:
        draw(path, 200)
    except (KeyError, OSError, ValueError):
        pytest.skip(f"this Pillow writes no {ending}")
    found = image_folder(tmp_path, channels=1, image_size=(4, 4))
    assert (found.images.float() - 200).abs().max() <= 2


def test_linked_folders_are_entered_once(tmp_path):
    draw(tmp_path / "elsewhere" / "a.png")
    root = tmp_path / "root"
    draw(root / "cat" / "a.png")
    os.symlink(tmp_path / "elsewhere", root / "dog")
    os.symlink(root, root / "cat" / "back")
    os.symlink(tmp_path / "nowhere", root / "cat" / "broken.png")
    assert labels_in(root) == ([0, 1], ["cat", "dog"])


def test_other_files_are_counted_aloud(tmp_path, caplog):
    draw(tmp_path / "cat" / "a.png")
    for name in ("readme.txt", "cat/a.json", "cat/movie.mp4", "cat/a.png.part"):
        (tmp_path / name).write_text("x")
    (tmp_path / "dog").mkdir()  # an empty folder is no class
    with caplog.at_level(logging.WARNING):
        assert labels_in(tmp_path) == ([0], ["cat"])
    (record,) = caplog.records
    assert "skipping 4 files that are not images, such as a.json" in record.getMessage()


def test_labels_that_there_are_not(tmp_path):
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    form = Form(1, [4, 4], num_classes=2)
    with pytest.raises(UserError, match=r"data.num_classes must be null, got 2: the dataset has no labels"):
        image_folder(tmp_path, channels=1, image_size=(4, 4)).prepared(form)
    draw(tmp_path / "cat" / "a.png")
    with pytest.raises(
        UserError, match=r"got 2: images directly in data.root have no label: move them into a subfolder"
    ):
        image_folder(tmp_path, channels=1, image_size=(4, 4)).prepared(form)


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        ("F", [[0.0, 0.5], [1.0, 0.2]], r"holds real numbers from 0 to 1: set data.dtype=float32"),
        ("I", [[0, 255], [17, 3]], r"holds 32-bit integers from 0 to 255: set data.dtype=float32"),
        ("I", [[-5, 70000], [17, 3]], r"holds 32-bit integers from -5 to 70000: set data.dtype=float32"),
    ],
)
def test_pictures_of_an_unknown_range_are_refused_with_it(tmp_path, kind, values, sentence):
    dtype = np.float32 if kind == "F" else np.int32
    Image.fromarray(np.array(values, dtype)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=sentence):
        image_folder(tmp_path, channels=1, image_size=(2, 2))
    found = image_folder(tmp_path, channels=1, image_size=(2, 2), dtype="float32")
    assert found.images[0, 0].tolist() == np.array(values, np.float32).tolist()


def test_sixteen_bits_become_eight(tmp_path):
    Image.fromarray(np.array([[0, 257], [65535, 128]], np.uint16)).save(tmp_path / "a.png")
    assert image_folder(tmp_path, channels=1, image_size=(2, 2)).images[0, 0].tolist() == [[0, 1], [255, 0]]


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        ([0, 2, 1], [0, 2, 1], []),
        ([0.0, 2.0], [0, 2], []),
        ([False, True], [0, 1], []),
        (["dog", "cat", "dog"], [1, 0, 1], ["cat", "dog"]),
        (["10", "2", "0"], [2, 1, 0], ["0", "2", "10"]),
        ([np.int64(3).item(), 1], [3, 1], []),
        ([], [], []),
    ],
    ids=str,
)
def test_a_tables_labels(values, labels, names):
    found, named = labels_of(values, "data.dataset.label_column=y")
    assert (found.tolist(), named) == (labels, names)
    assert found.dtype == torch.long


@pytest.mark.parametrize(
    "wrong", [0.7, float("nan"), float("inf"), None, -1, "cat", [1], {"a": 1}, 1e400, 2**40, -0.5, b"1", ""], ids=repr
)
def test_what_is_no_label_is_refused_with_its_row(wrong):
    with pytest.raises(
        UserError, match=r"label_column=y must hold non-negative integers, or strings only, got .* in row 2"
    ):
        labels_of([0, 1, wrong], "data.dataset.label_column=y")


def test_order():
    assert in_order(["10", "9", "1"]) == ["1", "9", "10"]
    assert in_order(["10", "9", "a"]) == ["10", "9", "a"]
    assert in_order(["٣", "1"]) == ["1", "٣"]


@pytest.mark.parametrize(
    ("column", "labels", "classes"),
    [([2, 0, 1], [2, 0, 1], ()), (["b", "a", "b"], [1, 0, 1], ["a", "b"]), (None, [0, 0, 0], None)],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_a_table_of_hugging_face(tmp_path, column, labels, classes, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    draw(tmp_path / "a.png")
    cell = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    rows = {"image": [cell] * 3, **({} if column is None else {"y": column})}
    (tmp_path / "table").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "table" / "train.parquet"))
    found = huggingface(
        str(tmp_path / "table"), channels=1, image_size=(4, 4), label_column=None if column is None else "y"
    )
    assert (found.labels.tolist(), found.classes) == (labels, classes)

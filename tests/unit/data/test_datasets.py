"""Sets on the disk in their own formats, written here: every pixel is known."""

import pickle
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from ddpm_lightning.data.datasets import from_torchvision, huggingface, image_folder
from ddpm_lightning.data.fitting import Fit
from ddpm_lightning.data.image_files import read_image, read_images
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.data.source import Form
from ddpm_lightning.errors import UserError
from tests.helpers.datasets import quadrants, write_fashion_mnist

random = np.random.default_rng(0)


def test_grey_sets_of_torchvision(fashion_mnist):
    root, images, labels = fashion_mnist
    found = from_torchvision(
        partial(torchvision.datasets.FashionMNIST, train=True), root=root, channels=1, image_size=(28, 28)
    )
    assert found.images.dtype == torch.uint8
    assert np.array_equal(found.images[:, 0].numpy(), images)
    assert found.labels.tolist() == labels.tolist()


def test_colour_sets_of_torchvision(cifar10):
    root, images, labels = cifar10
    found = from_torchvision(
        partial(torchvision.datasets.CIFAR10, train=True), root=root, channels=3, image_size=(32, 32)
    )
    assert np.array_equal(found.images.numpy(), images)
    assert found.labels.tolist() == labels


def test_a_set_that_cannot_be_had(tmp_path, monkeypatch):
    def offline(self):
        Path(self.raw_folder).mkdir(parents=True)
        (Path(self.raw_folder) / "train-images-idx3-ubyte.gz").write_bytes(b"half")
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "download", offline)
    with pytest.raises(
        UserError, match="does not hold FashionMNIST, and it cannot be downloaded there .*no network.*: set data.root="
    ):
        from_torchvision(torchvision.datasets.FashionMNIST, root=tmp_path / "none", channels=1, image_size=(28, 28))
    assert list(tmp_path.iterdir()) == []
    there = [tmp_path / name for name in (".git/refs/heads", "empty", "FashionMNIST")]
    for folder in there:
        folder.mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be downloaded"):
        from_torchvision(torchvision.datasets.FashionMNIST, root=tmp_path, channels=1, image_size=(28, 28))
    assert sorted(tmp_path.rglob("*")) == sorted([*there, tmp_path / ".git", tmp_path / ".git" / "refs"])


def test_a_download_is_moved_to_its_place_when_it_is_whole(tmp_path, monkeypatch):
    images, labels = random.integers(0, 256, (6, 28, 28)), np.arange(6)

    def download(self):
        assert Path(self.root).parent == tmp_path
        write_fashion_mnist(Path(self.root), images, labels)

    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "download", download)
    (tmp_path / ".ddpm_lightning_download_of_a_killed_process" / "raw").mkdir(parents=True)
    (tmp_path / "FashionMNIST" / "raw").mkdir(parents=True)
    (tmp_path / "FashionMNIST" / "notes.txt").write_text("mine")
    found = from_torchvision(torchvision.datasets.FashionMNIST, root=tmp_path, channels=1, image_size=(28, 28))
    assert torch.equal(found.images[:, 0], torch.from_numpy(images).byte())
    assert [path.name for path in tmp_path.iterdir()] == ["FashionMNIST"]
    assert sorted(path.name for path in (tmp_path / "FashionMNIST").iterdir()) == ["notes.txt", "raw"]


def test_processes_that_start_together_download_once(tmp_path, monkeypatch):
    downloads = []

    def download(self):
        downloads.append(self.root)
        time.sleep(0.2)
        write_fashion_mnist(Path(self.root), np.zeros((6, 28, 28), int), np.arange(6))

    def load(_):
        return from_torchvision(torchvision.datasets.FashionMNIST, root=tmp_path, channels=1, image_size=(28, 28))

    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "download", download)
    with ThreadPoolExecutor(4) as pool:  # a lock of files keeps threads apart as it does processes
        assert [len(found.images) for found in pool.map(load, range(4))] == [6] * 4
    assert len(downloads) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["FashionMNIST"]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_any_pictures(pictures, caplog, channels):
    found = image_folder(pictures, channels=channels, image_size=(8, 8), max_damaged=0.2)
    assert found.images.shape == (5, channels, 8, 8)
    assert found.labels.tolist() == [0, 0, 1, 1, 1]
    assert "truncated.png is damaged and skipped" in caplog.text
    names = ["grey", "rgb", "palette", "rgba", "sixteen"]
    for name, image in zip(names, found.images, strict=True):
        corners = [int(image[0, y, x]) for y, x in ((0, 0), (0, 7), (7, 0), (7, 7))]
        expected = [255 if name == "rgba" else 40, 90, 160, 250]
        assert np.abs(np.subtract(corners, expected)).max() <= 4, (name, corners)


def test_what_does_not_fit_is_cropped_at_the_centre(tmp_path):
    array = np.zeros((10, 30, 3), np.uint8)
    array[:, 10:20] = 200
    Image.fromarray(array).save(tmp_path / "wide.png")
    images, kept = read_images([tmp_path / "wide.png"], channels=3, image_size=(10, 10))
    assert (images == 200).all()
    assert kept.tolist() == [0]
    images, _ = read_images([tmp_path / "wide.png"], channels=3, image_size=(5, 15))
    assert images.shape == (1, 3, 5, 15)
    assert images[0, 0, 2, 7] == 200
    assert images[0, 0, 2, 0] == 0


def test_box_bicubic_averages_pixels_before_it_resizes(tmp_path):
    """Of what is 4 times as large, blocks of 4x4 pixels are averaged, by hand; bicubic weighs more than its own block."""
    array = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "noise.png")
    form = {"channels": 3, "image_size": (8, 8)}
    (boxed, _), (bicubic, _) = (
        read_images([tmp_path / "noise.png"], **form, resize=resize) for resize in ("box_bicubic", "bicubic")
    )
    means = array.reshape(8, 4, 8, 4, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(boxed[0].numpy() - means).max() < 2  # two roundings
    assert np.abs(bicubic[0].numpy() - means).max() > 5
    # 32x30 pixels are halved once, to 16x15, resized to 9x8, and cut to 8x8.
    Image.fromarray(array[:30]).save(tmp_path / "wide.png")
    wide, _ = read_images([tmp_path / "wide.png"], **form, resize="box_bicubic")
    tall = Image.fromarray(array[:30]).resize((16, 15), Image.Resampling.BOX).resize((9, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(wide[0].permute(1, 2, 0), np.asarray(tall)[:, 0:8])


def test_a_box_is_cut_out_before_resizing(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    form = {"channels": 3, "image_size": (8, 8)}
    images, _ = read_images([tmp_path / "a.png"], **form, crop=[5, 10, 8, 8])
    assert np.array_equal(images[0].permute(1, 2, 0), array[10:18, 5:13])
    for wrong, says in (
        ({"crop": [25, 0, 8, 8]}, r"a.png has 30x20 pixels, too few for data.dataset.crop=\[25, 0, 8, 8\]"),
        ({"crop": [0, 0, 0, 8]}, r"data.dataset.crop must be \[left, top, width, height\] in pixels or null, got"),
        ({"resize": "lanczos"}, "data.dataset.resize must be bicubic, bilinear or box_bicubic, got 'lanczos'"),
    ):
        with pytest.raises(UserError, match=says):
            read_images([tmp_path / "a.png"], **form, **wrong)


def test_folders_that_will_not_do(pictures, tmp_path):
    with pytest.raises(
        UserError, match=r"1 of 6 images is damaged, such as .*truncated.png: fix .*max_damaged=0.01 allows 0"
    ):
        image_folder(pictures, channels=3, image_size=(8, 8))
    with pytest.raises(UserError, match=r"1 of 1 images is damaged, .*max_damaged=1 allows 0"):
        read_images([pictures / "b" / "truncated.png"], channels=3, image_size=(8, 8), max_damaged=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="data.root must be a folder of images .*got .*empty"):
        image_folder(tmp_path / "empty", channels=3, image_size=(8, 8))
    with pytest.raises(
        UserError, match=r"data.image_size must be smaller, got \[100000, 100000\]: the 1 images of .* are 28 GiB"
    ):
        read_images([pictures / "a"], channels=3, image_size=(100_000, 100_000))


@pytest.fixture
def parquet(tmp_path):
    """A set as the hub keeps it: images as PNG within a table."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageColumn

    pictures = [Image.fromarray(quadrants(20 + i, 24)) for i in range(12)]
    columns = Features({"picture": ImageColumn(), "digit": ClassLabel(names=["even", "odd"])})
    held = Dataset.from_dict({"picture": pictures, "digit": [i % 2 for i in range(12)]}, features=columns)
    (tmp_path / "set").mkdir()
    held.to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    return tmp_path / "set"


def test_a_set_of_hugging_face_on_the_disk(parquet, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    sizes = {"channels": 1, "image_size": (6, 8)}
    found = huggingface(str(parquet), **sizes, image_column="picture", label_column="digit")
    assert found.images.shape == (12, 1, 6, 8)
    assert found.labels.tolist() == [0, 1] * 6
    assert abs(int(found.images[0, 0, 0, 0]) - 40) <= 4
    assert abs(int(found.images[0, 0, -1, -1]) - 250) <= 5
    with pytest.raises(UserError, match="data.dataset.image_column must be picture or digit, got 'image'"):
        huggingface(str(parquet), **sizes)
    with pytest.raises(UserError, match="label_column must be picture, digit or null, got 'kind'"):
        huggingface(str(parquet), **sizes, image_column="picture", label_column="kind")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match="data.root=nobody/nothing, split=train cannot be loaded .*: give the name of a dataset"
    ):
        huggingface("nobody/nothing", **sizes)


def png(number):
    file = BytesIO()
    Image.fromarray(np.full((8, 8), number, np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["bytes", "cells", "paths", "names"])
def test_a_table_is_read_as_a_folder_is(tmp_path, monkeypatch, kind, caplog):
    """Images as bytes, in cells, by their absolute and by their relative paths; missing and damaged ones are left out."""
    from datasets import Dataset

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    cells = []
    for row in range(6):
        content = b"" if row == 1 else png(row)[: 40 if row == 3 else None]
        (tmp_path / "set" / f"{row}.png").write_bytes(content)
        path = f"{row}.png" if kind == "names" else str(tmp_path / "set" / f"{row}.png")
        cells.append(content if kind == "bytes" else {"bytes": content, "path": None} if kind == "cells" else path)
    cells[4] = None
    Dataset.from_dict({"image": cells, "y": list(range(6))}).to_parquet(tmp_path / "set" / "train.parquet")
    options = {"channels": 1, "image_size": (8, 8), "label_column": "y"}
    for path in (tmp_path / "set").glob("*.png"):
        if kind in ("bytes", "cells"):
            path.unlink()
    (tmp_path / "set" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: train.parquet\n---\n"
    )
    found = huggingface(str(tmp_path / "set"), **options, max_damaged=0.5)
    assert found.images[:, 0, 4, 4].tolist() == found.labels.tolist() == [0, 2, 5]
    assert caplog.text.count("is damaged and skipped") == 3
    with pytest.raises(UserError, match=r"3 of 6 images are damaged, such as image 1 of data.root=.*max_damaged=0.01"):
        huggingface(str(tmp_path / "set"), **options)
    with pytest.raises(UserError, match="image_column=y must be a column of image files or their paths, got int"):
        huggingface(str(tmp_path / "set"), **{**options, "image_column": "y"})


def test_what_save_to_disk_wrote(tmp_path):
    from datasets import Dataset, DatasetDict, Features
    from datasets import Image as ImageColumn

    parts = {
        name: Dataset.from_dict(
            {"image": [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in values]},
            features=Features({"image": ImageColumn()}),
        )
        for name, values in {"train": [1, 2, 3], "test": [4, 5]}.items()
    }
    DatasetDict(parts).save_to_disk(tmp_path / "both")
    parts["train"].save_to_disk(tmp_path / "one")
    sizes = {"channels": 1, "image_size": (8, 8)}
    assert huggingface(str(tmp_path / "one"), **sizes).images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert huggingface(str(tmp_path / "both"), **sizes, split="test").images[:, 0, 0, 0].tolist() == [4, 5]
    with pytest.raises(UserError, match="data.dataset.split must be train or test, got 'validation'"):
        huggingface(str(tmp_path / "both"), **sizes, split="validation")
    with pytest.raises(UserError, match="data.dataset.split must be train, got 'test'"):
        huggingface(str(tmp_path / "one"), **sizes, split="test")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(UserError, match="split=train cannot be loaded .*: give the name of a dataset"):
        huggingface(str(tmp_path / "one"), **sizes)


def test_a_picture_is_opened_as_what_it_is_and_not_as_what_it_is_called(pictures, tmp_path, monkeypatch):
    """Pillow would hand PostScript to Ghostscript, whatever the file's ending."""
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: started.append(args))
    code = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "x.png").write_bytes(code)
    for size in ((8, 8), (4, 4)):
        with pytest.raises(ValueError, match="cannot identify image file"):
            read_image(tmp_path / "x.png", 3, Fit(size))
        with pytest.raises(ValueError, match="cannot identify image file"):
            read_image(BytesIO(code), 3, Fit(size))
    assert started == []


def test_a_picture_is_refused_by_its_size_before_it_is_decoded(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((100, 100), np.uint8)).save(tmp_path / "x.png")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 9_999)
    warnings.simplefilter("ignore")  # which is all that Pillow does, up to twice as many
    with pytest.raises(ValueError, match="100 x 100 pixels are more than 9,999"):
        read_image(tmp_path / "x.png", 1, Fit((8, 8)))


def test_a_set_that_does_not_fit_in_memory_is_refused_before_it_is_made():
    images = ImageSet(torch.zeros(1797, 1, 8, 8, dtype=torch.uint8), torch.zeros(1797).long())
    with pytest.raises(
        UserError, match=r"data.image_size must be smaller, got \[8192, 8192\]: the 1,797 .* are 112 GiB as bytes"
    ):
        images.prepared(Form(1, [8192, 8192]))


@pytest.mark.parametrize("name", ["pandas", "csv", "text", "webdataset", "imagefolder"])
def test_a_reader_of_hugging_faces_library_is_no_set(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"data.root={name}, .* the name is one of the library's file readers"):
        huggingface(name, channels=1, image_size=(8, 8))


def test_a_folder_with_the_name_of_a_reader_is_a_folder(parquet, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    parquet.rename(tmp_path / "text")
    monkeypatch.chdir(tmp_path)
    assert len(huggingface("text", channels=1, image_size=(6, 8), image_column="picture").images) == 12


def test_pickles_in_a_folder_of_hugging_face_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.pkl").write_bytes(pickle.dumps({"image": [1]}))
    with pytest.raises(UserError, match="cannot be loaded"):
        huggingface(str(tmp_path / "set"), channels=1, image_size=(8, 8))

"""Sets on the disk in their own formats, written here: every pixel is known."""

import pickle
import warnings
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from ddpm_lightning import runs
from ddpm_lightning.data.datasets import from_torchvision, huggingface, image_folder, read_images, read_picture
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.errors import UserError
from tests.conftest import train_config, write_fashion_mnist

random = np.random.default_rng(0)


@pytest.fixture
def fashion_mnist(tmp_path):
    images, labels = random.integers(0, 256, (40, 28, 28)), np.arange(40) % 10
    write_fashion_mnist(tmp_path, images, labels)
    return tmp_path, images, labels


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """Five batches of eight, rows of 3,072 bytes, channel by channel; torchvision's checksums are of the real files."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images, labels = random.integers(0, 256, (40, 3, 32, 32), dtype=np.uint8), list(np.arange(40) % 10)
    for i in range(5):
        part = slice(8 * i, 8 * i + 8)
        batch = {"data": images[part].reshape(8, -1), "labels": [int(n) for n in labels[part]]}
        (folder / f"data_batch_{i + 1}").write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: True)
    return tmp_path, images, labels


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
        UserError, match="does not hold FashionMNIST, and it cannot be downloaded .*no network.*: download it where"
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


def quadrants(height, width, channels=3):
    """A picture whose four quarters are of four colours."""
    array = np.zeros((height, width, channels), np.uint8)
    array[: height // 2, : width // 2] = 40
    array[: height // 2, width // 2 :] = 90
    array[height // 2 :, : width // 2] = 160
    array[height // 2 :, width // 2 :] = 250
    return array


@pytest.fixture
def pictures(tmp_path):
    """Nested folders, odd sizes, every kind of pixel, and a file that ends too soon."""
    a, b = tmp_path / "a" / "deep" / "er", tmp_path / "b"
    a.mkdir(parents=True)
    b.mkdir()
    Image.fromarray(quadrants(37, 53)).save(a / "rgb.png")
    Image.fromarray(quadrants(40, 40, 1)[..., 0]).save(a / "grey.PNG")
    Image.fromarray(quadrants(24, 91)).quantize(8).save(b / "palette.gif")
    rgba = np.concatenate([quadrants(40, 40), np.full((40, 40, 1), 255, np.uint8)], axis=2)
    rgba[:20, :20, 3] = 0  # see through: becomes white
    Image.fromarray(rgba).save(b / "rgba.png")
    Image.fromarray(quadrants(40, 40, 1)[..., 0].astype(np.uint16) * 257).save(b / "sixteen.png")
    whole = (a / "rgb.png").read_bytes()
    (b / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (b / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_any_pictures(pictures, caplog, channels):
    found = image_folder(pictures, channels=channels, image_size=(8, 8), max_damaged=0.2)
    assert found.images.shape == (5, channels, 8, 8)
    assert found.labels.tolist() == [0, 0, 1, 1, 1]
    assert "truncated.png is damaged and left out" in caplog.text
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


def test_folders_that_will_not_do(pictures, tmp_path):
    with pytest.raises(UserError, match=r"1 of 6 pictures are damaged, among them .*truncated.png: mend or remove"):
        image_folder(pictures, channels=3, image_size=(8, 8))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no pictures"):
        image_folder(tmp_path / "empty", channels=3, image_size=(8, 8))
    with pytest.raises(UserError, match=r"data.image_size=\[100000, 100000\]: the set's 1 images are 28 GiB as bytes"):
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
    with pytest.raises(
        UserError, match="data.dataset.image_column=image is no column of .*: choose one of picture, digit"
    ):
        huggingface(str(parquet), **sizes)
    with pytest.raises(UserError, match="label_column=kind is no column"):
        huggingface(str(parquet), **sizes, image_column="picture", label_column="kind")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match="data.root=nobody/nothing, split=train cannot be loaded .*: give the name of a set"
    ):
        huggingface("nobody/nothing", **sizes)


@pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")
@pytest.mark.parametrize("kind", ["image_folder", "cifar10", "fashion_mnist"])
def test_they_train(kind, tmp_path, request):
    root = {"image_folder": "pictures"}.get(kind, kind)
    root = request.getfixturevalue(root)
    root = root if kind == "image_folder" else root[0]
    options = [
        f"data={kind}",
        f"data.root={root}",
        "data.batch_size=2",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
    ]
    if kind == "image_folder":
        options += [
            "data.dataset.max_damaged=0.2",
            "data.image_size=[16,16]",
            "data.num_classes=2",
            "data.val_fraction=0.2",
        ]
    runs.train(train_config(tmp_path / "run", *options))
    assert (tmp_path / "run" / "samples" / "grid_0000002.png").exists()


def test_a_picture_is_opened_as_what_it_is_and_not_as_what_it_is_called(pictures, tmp_path, monkeypatch):
    """Pillow would hand PostScript to Ghostscript, whatever the file's ending."""
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: started.append(args))
    code = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "x.png").write_bytes(code)
    for size in ((8, 8), (4, 4)):
        with pytest.raises(ValueError, match="cannot identify image file"):
            read_picture(tmp_path / "x.png", 3, size)
        with pytest.raises(ValueError, match="cannot identify image file"):
            read_picture(BytesIO(code), 3, size)
    assert started == []


def test_a_picture_is_refused_by_its_size_before_it_is_decoded(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((100, 100), np.uint8)).save(tmp_path / "x.png")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 9_999)
    warnings.simplefilter("ignore")  # which is all that Pillow does, up to twice as many
    with pytest.raises(ValueError, match="100 x 100 pixels are more than 9,999"):
        read_picture(tmp_path / "x.png", 1, (8, 8))


def test_a_set_that_does_not_fit_in_memory_is_refused_before_it_is_made():
    images = ImageSet(torch.zeros(1797, 1, 8, 8, dtype=torch.uint8), torch.zeros(1797).long())
    with pytest.raises(UserError, match=r"data.image_size=\[8192, 8192\]: the set's 1,797 images are 112 GiB as bytes"):
        images.prepared(1, [8192, 8192], num_classes=None, val_fraction=0.1, seed=0)


@pytest.mark.parametrize("name", ["pandas", "csv", "text", "webdataset", "imagefolder"])
def test_a_reader_of_hugging_faces_library_is_no_set(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"data.root={name} is one of the library's own readers, and no set"):
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

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning.data.arrays import arrays
from ddpm_lightning.data.conditions import load_condition, low_resolution, save_condition
from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.data.datasets import digits, image_folder
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.data.source import in_turn, map_condition
from ddpm_lightning.errors import UserError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (RNG.normal(size=(6, 3, 12)), torch.float32),
        (RNG.normal(size=(6, 4, 5, 7)).astype(np.float16), torch.float32),
        (RNG.integers(0, 65536, (6, 1, 5, 7)).astype(np.uint16), torch.int32),
        (RNG.integers(0, 256, (6, 3, 4, 5, 7)).astype(np.uint8), torch.uint8),
    ],
    ids=["signals", "latents", "16-bit images", "videos"],
)
def test_a_file_or_a_folder(tmp_path, values, dtype):
    np.save(tmp_path / "all.npy", values)
    (tmp_path / "each").mkdir()
    for i, one in enumerate(values):
        np.save(tmp_path / "each" / f"{i}.npy", one)
    form = {"channels": values.shape[1], "image_size": values.shape[2:]}
    for root in ("all.npy", "each"):
        found = arrays(tmp_path / root, **form)
        assert found.images.dtype == dtype
        assert np.allclose(found.images.numpy(), values.astype(np.float64), rtol=1e-6)
        assert found.labels.tolist() == [0] * 6


def test_the_axis_of_one_channel_may_be_missing(tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    found = arrays(tmp_path / "rows.npy", channels=1, image_size=[4])
    assert found.images.tolist() == [[[0, 1, 2, 3]], [[4, 5, 6, 7]], [[8, 9, 10, 11]]]


def test_files_that_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((6, 3, 12)))
    np.save(tmp_path / "objects.npy", np.array([{}, None]), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 1, 4)), b=np.zeros((2, 1, 4)))
    np.save(tmp_path / "complex.npy", np.zeros((2, 1, 4), complex))
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "empty").mkdir()
    for root, words in {
        "a.npy": r"must have shape \(N, 1, 4\) to match data.channels and data.image_size, got \(6, 3, 12\)",
        "objects.npy": "cannot be read",
        "complex.npy": "cannot be read",
        "text.npy": "cannot be read",
        "two.npz": "must hold one array, got several",
        "missing.npy": r"cannot be read \(No such file or directory\)",
        "empty": "must be a .npy file, or a folder of .npy files",
    }.items():
        with pytest.raises(UserError, match=rf"data.root[= ].*{words}"):
            arrays(tmp_path / root, channels=1, image_size=[4])


def test_conditions_from_files(tmp_path):
    np.save(tmp_path / "labels.npy", np.array([3, 1, 2], np.uint8))
    np.save(tmp_path / "tokens.npy", np.array([[3, 1], [2, 7]], ">i4"))
    tokens = load_condition(tmp_path / "tokens.npy")
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [[3, 1], [2, 7]]
    np.save(tmp_path / "text.npy", np.arange(6, dtype=np.float64).reshape(3, 2))
    assert load_condition(tmp_path / "labels.npy").dtype == torch.int64
    assert load_condition(tmp_path / "text.npy").tolist() == [[0, 1], [2, 3], [4, 5]]
    several = {"text": torch.rand(3, 2), "mask": torch.rand(3, 1, 4, 4)}
    for condition, name in ((several["mask"], "one.npy"), (several, "more.npz")):
        save_condition(condition, tmp_path / name)
        assert map_condition(torch.equal, load_condition(tmp_path / name), condition) in (
            True,
            {"text": True, "mask": True},
        )
    np.savez(tmp_path / "uneven.npz", a=np.zeros((3, 2)), b=np.zeros((2, 2)))
    np.save(tmp_path / "nan.npy", np.array([[0, np.nan]]))
    np.save(tmp_path / "none.npy", np.zeros((0, 4)))
    np.save(tmp_path / "number.npy", np.float32(3))
    for name, words in {
        "uneven.npz": "must have the same number of rows in all arrays: a has 3, b has 2",
        "nan.npy": "must hold finite numbers",
        "none.npy": "must have one row per sample",
        "number.npy": "must have one row per sample",
    }.items():
        with pytest.raises(UserError, match=rf"condition=.*{name} {words}"):
            load_condition(tmp_path / name)


def test_conditions_in_turn():
    y = {"a": torch.tensor([[1.0], [2.0], [3.0]]), "b": torch.tensor([4, 5, 6])}
    found = in_turn(y, [0, 2, 3, 7])
    assert found["a"].flatten().tolist() == [1, 3, 1, 2]
    assert found["b"].tolist() == [4, 6, 4, 5]
    assert in_turn(None, [0]) is None


def module(found, **settings):
    channels, *size = found.images.shape[1:]
    made = ImageDataModule(lambda: found, **{"channels": channels, "image_size": size, "batch_size": 8, **settings})
    made.setup()
    return made


def test_low_resolution_is_the_mean_of_pixels_and_stays_beside_its_image():
    found = low_resolution(digits, factor=2)
    first = digits().images[0, 0].double().numpy()
    expected = (first[0:2, 4:6].mean()) / 127.5 - 1
    assert found.labels[0, 0, 0, 2].item() == pytest.approx(expected, abs=1e-6)
    data = module(found, flip=True, val_fraction=0.5)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    small = torch.nn.functional.avg_pool2d(batch.x0, 2)  # mirrored ones, too
    torch.testing.assert_close(small, batch.y, rtol=0, atol=1e-6)
    held_out = data.source.conditions(5)
    assert torch.equal(held_out, found.labels[data.source.val_indices[:5]])
    with pytest.raises(UserError, match=r"data.dataset.factor must divide both sides of the images, \[8, 8\], got 3"):
        low_resolution(digits, factor=3)


def test_a_condition_has_a_row_for_each():
    images = digits().images[:10]
    with pytest.raises(UserError, match=r"condition must have one row for each of the 10 samples, got 9"):
        module(ImageSet(images, torch.rand(9, 3)))
    with pytest.raises(
        UserError, match="data.num_classes must be null, got 10: the dataset has a condition other than labels"
    ):
        module(ImageSet(images, torch.rand(10, 3)), num_classes=10)
    data = module(ImageSet(images, {"a": torch.arange(10.0)[:, None]}), val_fraction=0.2)
    batch = next(iter(data.train_dataloader()))
    assert batch.y["a"].flatten().tolist() == batch.ids.tolist()


def test_only_images_are_mirrored_with_their_conditions():
    signals, videos = torch.rand(10, 1, 4), torch.rand(10, 1, 2, 4, 4)
    for images, condition in ((signals, torch.rand(10, 2, 3)), (videos, videos[:, :, 0])):
        with pytest.raises(UserError, match="data.flip must be false for samples of"):
            module(ImageSet(images, condition), flip=True, dtype="float32")
    module(ImageSet(signals, torch.rand(10, 3)), flip=True, dtype="float32")


def test_big_endian_files(tmp_path):
    for kind in (">f4", ">u2"):
        values = np.arange(12).astype(kind).reshape(3, 1, 4)
        np.save(tmp_path / "big.npy", values)
        assert arrays(tmp_path / "big.npy", channels=1, image_size=[4]).images.flatten().tolist() == list(range(12))
    np.save(tmp_path / "mask.npy", np.zeros((3, 1, 4), bool))
    with pytest.raises(UserError, match=r"the dtype of data.root=.* must be uint8, .*, got 'bool': convert the file"):
        arrays(tmp_path / "mask.npy", channels=1, image_size=[4])


def test_files_with_all_of_their_bits(tmp_path):
    wide = RNG.integers(0, 65536, (3, 6, 6)).astype(np.uint16)
    real = RNG.normal(size=(3, 6, 6)).astype(np.float32)
    for i in range(3):
        for folder, array, ending in (("png", wide, "png"), ("tiff", wide, "tif"), ("real", real, "tif")):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array[i]).save(tmp_path / folder / f"{i}.{ending}")
    form = {"channels": 1, "image_size": [6, 6]}
    (tmp_path / "gray").mkdir()
    Image.fromarray(np.full((6, 6), 3, np.uint8)).save(tmp_path / "gray" / "0.png")
    for folder in ("png", "tiff"):
        assert np.array_equal(image_folder(tmp_path / folder, dtype="uint16", **form).images[:, 0], wide)
        assert np.array_equal(image_folder(tmp_path / folder, dtype="float32", **form).images[:, 0], wide)
        assert np.abs(image_folder(tmp_path / folder, **form).images[:, 0].numpy() - wide / 257.0).max() <= 0.5
    assert np.array_equal(image_folder(tmp_path / "real", dtype="float32", **form).images[:, 0], real)
    with pytest.raises(UserError, match=r"0.tif holds real numbers from .* set data.dtype=float32"):
        image_folder(tmp_path / "real", **form)
    with pytest.raises(UserError, match=r"0.tif holds values from -.*: set data.dtype=float32"):
        image_folder(tmp_path / "real", dtype="uint16", **form)
    (tmp_path / "color").mkdir()
    Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(tmp_path / "color" / "0.png")
    with pytest.raises(UserError, match=r"0.png is a color image \(RGB\), which can only be read with 8 bits"):
        image_folder(tmp_path / "color", dtype="uint16", **form)
    for size in ([8], [2, 6, 6]):
        with pytest.raises(UserError, match=r"data.image_size must be \[height, width\] for a dataset of images, got"):
            image_folder(tmp_path / "gray", channels=1, image_size=size)
        with pytest.raises(UserError, match=r"data.image_size must be \[height, width\] for a dataset of images, got"):
            module(digits(), image_size=size)
    assert image_folder(tmp_path / "gray", dtype="uint16", **form).images.unique().tolist() == [3 * 257]
    with pytest.raises(UserError, match="data.channels must be 1, got 3: color files are read with 8 bits"):
        image_folder(tmp_path / "gray", dtype="uint16", channels=3, image_size=[6, 6])


def test_16_bits_are_resized_with_all_of_them(tmp_path):
    """A ramp stays a ramp, with steps that 8 bits do not have."""
    ramp = np.linspace(0, 2000, 64).astype(np.uint16)[None].repeat(64, 0)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    found = image_folder(tmp_path, dtype="uint16", channels=1, image_size=[8, 8]).images[0, 0, 0].double()
    assert torch.allclose(found[2:-2], torch.from_numpy(ramp[0].reshape(8, 8).mean(1))[2:-2], atol=1)

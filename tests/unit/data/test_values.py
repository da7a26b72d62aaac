import math

import numpy as np
import pytest
import torch

from ddpm_lightning.data.values import Values, kind_of, values_of
from ddpm_lightning.errors import UserError


def described(dtype=None, value_range=None, channels=1, image_size=(8, 8)):
    return {"channels": channels, "image_size": list(image_size), "dtype": dtype, "value_range": value_range}


@pytest.mark.parametrize(
    ("values", "stored", "x"),
    [
        (Values(), [0, 51, 255], [-1, -0.6, 1]),
        (Values("uint16", 0, 65535), [0, 13107, 65535], [-1, -0.6, 1]),
        (Values("uint16", 0, 4095), [0, 819, 4095], [-1, -0.6, 1]),  # 12 bits in 16
        (Values("uint8", 100, 200), [100, 120, 200], [-1, -0.6, 1]),
        (Values("float32", -5, 5), [-5, -3, 5], [-1, -0.6, 1]),
        (Values("float32", -1, 1), [-1, 0.3, 4], [-1, 0.3, 4]),  # floats are not clipped
    ],
)
def test_the_range_becomes_minus_one_to_one_and_comes_back(values, stored, x):
    held = values.check(torch.tensor(stored, dtype=values.memory))
    normalized = values.normalize(held)
    assert normalized.dtype == torch.float32
    torch.testing.assert_close(normalized, torch.tensor(x, dtype=torch.float32), rtol=0, atol=2e-7)
    back = values.denormalize(normalized)
    assert back.dtype == held.dtype
    torch.testing.assert_close(back, held, rtol=0, atol=1e-6 if values.is_float else 0)
    array = values.array(back)
    assert array.dtype == np.dtype(values.dtype)


def test_every_integer_comes_back():
    for values, count in ((Values(), 256), (Values("uint16", 0, 65535), 65536)):
        levels = torch.arange(count).to(values.memory)
        assert torch.equal(values.denormalize(values.normalize(levels)), levels)


def test_integers_are_clipped_and_rounded():
    x = torch.tensor([-9.0, -1 + 1.4 / 127.5, -1 + 1.6 / 127.5, 9.0])
    assert Values().denormalize(x).tolist() == [0, 1, 2, 255]


@pytest.mark.parametrize("values", [Values(), Values("float32", -5, 5)])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_samples_that_are_no_numbers_are_not_made_black(values, wrong):
    with pytest.raises(UserError, match="the samples contain NaN or infinite values: choose another sampler="):
        values.denormalize(torch.tensor([0.0, wrong]))


def test_what_a_config_states():
    assert values_of(described()) == Values("uint8", 0, 255)
    assert values_of(described("uint16")) == Values("uint16", 0, 65535)
    assert values_of(described("float32", [0, 4])) == Values("float32", 0, 4)
    assert values_of(described(channels=2, image_size=(1, 1))) == Values("float32", -1, 1)
    assert [kind_of(described(dtype)) for dtype in (None, "uint8", "uint16", "float32")] == ["images"] * 2 + [
        "arrays"
    ] * 2
    assert kind_of(described(channels=4)) == kind_of(described(image_size=(9,))) == "arrays"
    assert kind_of(described(channels=2, image_size=(1, 1))) == "points"


@pytest.mark.parametrize("given", [[1, 0], [0, 0], [0], [0, 1, 2], "0..1", 3, [None, 1], ["a", "b"]])
def test_ranges_that_are_none(given):
    with pytest.raises(UserError, match=r"data.value_range must be \[low, high\], .* or null, got"):
        values_of(described("float32", given))


def test_types_that_are_none():
    with pytest.raises(UserError, match="data.dtype must be uint8, uint16 or float32, got 'int8'"):
        values_of(described("int8"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_values_that_are_not_finite_are_refused(dtype, value):
    with pytest.raises(UserError, match="the dataset must hold finite numbers"):
        values_of(described(dtype)).check(torch.tensor([0, value]))


@pytest.mark.parametrize(("dtype", "given"), [("uint8", [-10, 255]), ("uint8", [0, 256]), ("uint16", [0, 70000])])
def test_a_range_that_integers_do_not_reach_is_refused(dtype, given):
    with pytest.raises(UserError, match=rf"data.value_range must lie within \[0, \d+\] for data.dtype={dtype}, got"):
        values_of(described(dtype, given))


def test_images_have_the_whole_range():
    assert kind_of(described("uint8", [0, 127])) == "arrays"
    assert kind_of(described("uint8", [0, 255])) == "images"


@pytest.mark.parametrize(
    ("values", "given", "words"),
    [
        (Values(), torch.rand(5), "got uint8: they are float32 from 0"),
        (Values(), torch.tensor([0, 300]), "got uint8: they are int64 from 0 to 300"),
        (Values("uint16", 0, 65535), torch.tensor([-1, 3]), "got uint16: they are int64 from -1 to 3"),
        (Values("uint16", 0, 65535), torch.rand(3), "got uint16: they are float32"),
    ],
)
def test_values_of_another_type_are_refused(values, given, words):
    with pytest.raises(UserError, match=rf"data.dtype must match the dataset's values, {words}"):
        values.check(given)

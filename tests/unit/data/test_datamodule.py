import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm_lightning.data.datamodule import EvalLoader, ImageDataModule, TrainLoader
from ddpm_lightning.data.datasets import ImageSet, digits
from ddpm_lightning.data.source import Batch, Share
from ddpm_lightning.images import from_uint8


def numbered(n):
    """Images whose every pixel is the image's number."""
    return ImageSet(torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 2, 2), torch.arange(n))


def part(n):
    return Batch(*numbered(n)[:2], torch.arange(n))


def stream(n, batch_size, world_size, batches, **options):
    """The images' numbers in the order that all ranks together take them."""
    loaders = [TrainLoader(part(n), Share(batch_size, r, world_size), **options) for r in range(world_size)]
    out = []
    while len(out) < batches * batch_size * world_size:
        for group in zip(*loaders, strict=True):
            for batch in group:
                assert (batch.x0[:, 0, 0, 0] == batch.ids).all()
                out += batch.ids.tolist()
    return out[: batches * batch_size * world_size]


@given(st.integers(1, 40), st.integers(1, 12), st.sampled_from([1, 2, 4]))
def test_every_pass_holds_every_image_once(n, batch_size, world_size):
    order = stream(n, batch_size, world_size, 3 * n // (batch_size * world_size) + 1, seed=1)
    for first in range(0, len(order) - n + 1, n):
        assert sorted(order[first : first + n]) == list(range(n))


def test_the_order_is_the_same_for_every_world_size_at_one_global_batch():
    orders = [stream(50, 8 // w, w, 30, seed=5) for w in (1, 2, 4)]
    assert orders[0] == orders[1] == orders[2]


def test_passes_and_seeds_differ():
    order = stream(40, 8, 1, 10, seed=0)
    assert order[:40] != order[40:]
    assert order != stream(40, 8, 1, 10, seed=1)


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 11])
def test_a_loader_goes_on_where_its_state_says(stop):
    def loader():
        return TrainLoader(part(40), Share(8), seed=0, flip=True)

    def endless(source):
        while True:
            yield from source

    whole, first, second = loader(), loader(), loader()
    expected = [batch.ids.tolist() for batch, _ in zip(endless(whole), range(12), strict=False)]
    for _, _ in zip(range(stop), endless(first), strict=False):
        pass
    second.load_state_dict(first.state_dict())
    assert [b.ids.tolist() for b, _ in zip(endless(second), range(12 - stop), strict=False)] == expected[stop:]


def test_flips_mirror_half_of_the_images_and_differ_from_pass_to_pass():
    images = torch.tensor([0, 255], dtype=torch.uint8).expand(200, 1, 1, 2)
    loader = TrainLoader(Batch(images, None, torch.arange(200)), Share(200), seed=0, flip=True)
    passes = []
    for _ in range(2):
        (batch,) = loader
        mirrored = torch.zeros(200, dtype=torch.bool)
        mirrored[batch.ids] = batch.x0[:, 0, 0, 0] == 255
        passes.append(mirrored)
    assert passes[0].float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert not torch.equal(*passes)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_validation_sees_every_image_once(world_size, batch_size):
    seen, counts = [], set()
    for rank in range(world_size):
        loader = EvalLoader(part(10), Share(batch_size, rank, world_size))
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(len(batch.ids) for batch in batches)
        counts.add(len(batches))
        seen += [i for batch in batches for i in batch.ids.tolist()]
    assert sorted(seen) == list(range(10))
    assert len(counts) == 1


def module(**options):
    defaults = {"channels": 1, "image_size": 2, "batch_size": 8, "val_fraction": 0.2, "seed": 0}
    data = ImageDataModule(lambda: numbered(100), **{**defaults, **options})
    data.setup()
    return data


def test_the_split_is_stated_disjoint_and_a_function_of_the_seed():
    data = module()
    train, val = set(data.source.train_indices.tolist()), set(data.source.val_indices.tolist())
    assert (len(train), len(val), len(train | val)) == (80, 20, 100)
    assert torch.equal(module().source.val_indices, data.source.val_indices)
    assert not torch.equal(module(seed=1).source.val_indices, data.source.val_indices)
    batch = next(iter(data.val_dataloader()))
    assert (batch.x0[:, 0, 0, 0] == batch.ids).all()
    assert batch.y is None


def test_labels_come_along_when_the_model_wants_them():
    batch = next(iter(module(num_classes=100).train_dataloader()))
    assert torch.equal(batch.y, batch.ids)


def test_images_become_floats_on_the_device():
    data = module()
    batch = next(iter(data.train_dataloader()))
    assert batch.x0.dtype == torch.uint8
    assert torch.equal(data.on_after_batch_transfer(batch, 0).x0, from_uint8(batch.x0))


def test_images_are_resized_and_given_their_channels():
    batch = next(iter(module(image_size=(4, 6), channels=3).train_dataloader()))
    assert batch.x0.shape == (8, 3, 4, 6)
    assert (batch.x0 == batch.ids[:, None, None, None]).all()


def test_no_validation_without_images_for_it():
    assert module(val_fraction=0).val_dataloader() == []


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"val_fraction": 1.0}, {"val_fraction": -0.1}])
def test_bad_settings_are_refused(options):
    ((key, value),) = options.items()
    with pytest.raises(ValueError, match=f"{key} must be .*, got {value}"):
        module(**options)


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    images, labels, _ = digits()
    reference = load_digits()
    assert (images.shape, images.dtype) == ((1797, 1, 8, 8), torch.uint8)
    assert (images[:, 0].numpy() / 255 - reference.images / 16).__abs__().max() <= 0.5 / 255 + 1e-9
    assert labels.tolist() == reference.target.tolist()


def test_a_part_of_the_set_is_given_as_bytes():
    data = ImageDataModule(digits, channels=1, image_size=8, batch_size=16, flip=True)
    data.setup()
    whole = digits()
    for name, indices in (
        ("train", data.source.train_indices),
        ("validation", data.source.val_indices),
        ("all", torch.arange(1797)),
    ):
        part = data.split(name)
        assert part.images.equal(whole.images[indices])
        assert part.labels.equal(whole.labels[indices])
        batches = list(data.batches(name, 100))
        assert torch.cat([batch.x0 for batch in batches]).equal(part.images)
        assert torch.cat([batch.ids for batch in batches]).equal(indices)
    some, train = data.split("train", about=900).images, data.split("train").images
    assert len(some) == 809  # of two equal batches
    assert some.equal(train[:809])

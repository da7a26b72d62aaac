"""One flipped bit in a file that is read again is found, or lies in a byte that nothing reads."""

import json
import random
import shutil

import numpy as np
import pytest
import torch

from ddpm_lightning import runs
from ddpm_lightning.errors import UserError
from ddpm_lightning.evaluation.chunks import compute_chunks, missing_chunks, read_chunks
from ddpm_lightning.interop import from_diffusers, to_diffusers
from ddpm_lightning.metrics.features import Classifier
from ddpm_lightning.run_folder import summary_of, write_summary
from ddpm_lightning.runs.loading import load_checkpoint
from ddpm_lightning.runs.process_group import Ranks
from ddpm_lightning.torch_files import load_plain
from tests.conftest import config_of
from tests.runs.test_resuming import assert_equal, assert_same_run, interrupted, whole  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


def flipped(content, chance):
    """The bytes with one bit turned over."""
    held = bytearray(content)
    held[chance.randrange(len(held))] ^= 1 << chance.randrange(8)
    return bytes(held)


def silent(path, read, count, seed=0):
    """Of so many flips those that give other contents without a word, and how many are found; `read` raises, or gives the contents."""
    before, content, chance = read(), path.read_bytes(), random.Random(seed)
    lost, found = [], 0
    for _ in range(count):
        path.write_bytes(flipped(content, chance))
        try:
            after = read()
        except (UserError, ValueError, OSError):
            found += 1
            continue
        try:
            assert_equal(before, after)
        except AssertionError as error:
            lost.append(str(error))
    path.write_bytes(content)
    return lost, found


def test_a_checkpoint(tiny_run, tmp_path):
    path = tmp_path / "last.ckpt"
    shutil.copy(tiny_run / "checkpoints" / "last.ckpt", path)
    lost, found = silent(path, lambda: load_checkpoint(path), 400)
    assert lost == []
    assert found > 300  # the rest are in the padding between the tensors


def test_weights_in_a_folder_of_diffusers(tiny_run, tmp_path):
    to_diffusers(runs.load_denoiser(tiny_run / "checkpoints" / "last.ckpt"), tmp_path / "d")
    path = tmp_path / "d" / "unet" / "diffusion_pytorch_model.safetensors"
    lost, found = silent(path, lambda: from_diffusers(tmp_path / "d").state_dict(), 200)
    assert lost == []
    assert found > 190


def test_shards(tmp_path):
    draw = torch.Generator().manual_seed(0)
    arrays = {
        "images": torch.randint(256, (7, 3, 4, 4), generator=draw).byte(),
        "seconds": torch.rand(7, generator=draw),
    }
    compute_chunks(tmp_path, 7, 7, lambda items: arrays, Ranks())
    (path,) = tmp_path.glob("*.npz")
    lost, found = silent(path, lambda: read_chunks(tmp_path, 7, 7), 250)
    assert lost == []
    assert found > 150


def test_a_shard_with_fewer_rows_than_items_is_computed_again(tmp_path):
    compute_chunks(tmp_path, 20, 10, lambda items: {"x": torch.arange(items.start, items.stop)}, Ranks())
    np.savez(tmp_path / "000000-000009.npz", x=np.arange(3))
    assert missing_chunks(tmp_path, 20, 10) == [range(10)]
    with pytest.raises(UserError, match=r"000000-000009.npz is damaged"):
        read_chunks(tmp_path, 20, 10)
    compute_chunks(tmp_path, 20, 10, lambda items: {"x": torch.arange(items.start, items.stop)}, Ranks())
    assert torch.equal(read_chunks(tmp_path, 20, 10)["x"], torch.arange(20))


def test_a_cached_classifier(tmp_path):
    torch.save({"state_dict": Classifier(1, 3).state_dict(), "test_accuracy": 0.9}, path := tmp_path / "c.pt")
    lost, found = silent(path, lambda: load_plain(path), 100)
    assert lost == []
    assert found > 80


def test_a_damaged_classifier_is_trained_again(tmp_path, caplog, monkeypatch):
    from ddpm_lightning.data.datasets import digits
    from ddpm_lightning.metrics import features

    data = digits()
    first = features.classifier(lambda: data, tmp_path, num_steps=2)
    (path,) = (tmp_path / "classifiers").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    again = features.classifier(lambda: data, tmp_path, num_steps=2)
    assert f"{path} is damaged" in caplog.text
    assert_equal(first.state_dict(), again.state_dict())
    monkeypatch.setattr(features, "_train", None)
    assert_equal(first.state_dict(), features.classifier(lambda: data, tmp_path, num_steps=2).state_dict())


def test_a_summary(tmp_path):
    write_summary(tmp_path, {"status": "finished", "steps": 7, "final": {"val/loss": 0.25}})
    path, content, chance = tmp_path / "summary.json", (tmp_path / "summary.json").read_bytes(), random.Random(0)
    before = summary_of(tmp_path)
    assert before == {"status": "finished", "steps": 7, "final": {"val/loss": 0.25}}
    for _ in range(50):
        path.write_bytes(flipped(content, chance))
        after = summary_of(tmp_path)
        assert after == {} or before.items() <= after.items()  # of the checksum itself, the name was turned over
    path.write_text(json.dumps({"status": "finished", "steps": 7}))  # of an earlier version, which had no checksum
    assert summary_of(tmp_path) == {"status": "finished", "steps": 7}


@pytest.mark.parametrize("seed", range(3))
def test_a_run_goes_on_from_the_checkpoint_before_the_damaged_one(whole, tmp_path, caplog, seed):  # noqa: F811
    folder = interrupted(whole, tmp_path / "run", step=6)
    newest = folder / "checkpoints" / "step_0000006.ckpt"
    content, chance = newest.read_bytes(), random.Random(seed)
    while True:
        newest.write_bytes(flipped(content, chance))
        try:
            load_checkpoint(newest)
        except UserError:
            break
    runs.train(config_of(f"resume={folder}"))
    assert f"{newest} is no checkpoint, or a damaged one" in caplog.text
    assert "(going on from the one before it)" in caplog.text
    assert_same_run(whole, folder)

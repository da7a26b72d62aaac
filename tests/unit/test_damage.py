"""One flipped bit in a file that is read again is found, or lies in a byte that nothing reads."""

import json
import random

import numpy as np
import pytest
import torch

from ddpm_lightning.errors import UserError
from ddpm_lightning.evaluation.chunks import Chunks
from ddpm_lightning.metrics.classifier import Classifier
from ddpm_lightning.records.torch import load_plain
from ddpm_lightning.run_folder import summary_of, write_summary
from ddpm_lightning.runs.process_group import ALONE
from tests.helpers.damage import flipped, silent
from tests.helpers.resuming import assert_equal

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


def test_shards(tmp_path):
    draw = torch.Generator().manual_seed(0)
    arrays = {
        "images": torch.randint(256, (7, 3, 4, 4), generator=draw).byte(),
        "seconds": torch.rand(7, generator=draw),
    }
    chunks = Chunks(tmp_path, 7, 7)
    chunks.compute(lambda items: arrays, ALONE)
    (path,) = tmp_path.glob("*.npz")
    lost, found = silent(path, chunks.read, 250)
    assert lost == []
    assert found > 150


def test_a_shard_with_fewer_rows_than_items_is_computed_again(tmp_path):
    chunks = Chunks(tmp_path, 20, 10)
    chunks.compute(lambda items: {"x": torch.arange(items.start, items.stop)}, ALONE)
    np.savez(tmp_path / "000000-000009.npz", x=np.arange(3))
    assert chunks.missing() == [range(10)]
    with pytest.raises(UserError, match=r"000000-000009.npz is damaged"):
        chunks.read()
    chunks.compute(lambda items: {"x": torch.arange(items.start, items.stop)}, ALONE)
    assert torch.equal(chunks.read()["x"], torch.arange(20))


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
    monkeypatch.setattr(features, "train_classifier", None)
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

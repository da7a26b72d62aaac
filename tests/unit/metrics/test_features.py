"""Feature extractors: what they read, and what they refuse."""

import math
import shutil
from urllib.error import URLError

import pytest
import torch
from torch import nn

from ddpm_lightning.data.datasets import digits
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.errors import UserError
from ddpm_lightning.metrics import features
from ddpm_lightning.metrics.classifier import Classifier


def test_the_classifier_reads_digits_that_it_has_not_seen_and_is_kept(tmp_path, monkeypatch):
    model = features.classifier(digits, tmp_path, num_steps=60)
    assert model.test_accuracy > 0.9
    assert "60 steps" in model.name
    assert f"{model.test_accuracy:.1%}" in model.name
    monkeypatch.setattr(features, "train_classifier", None)  # a second one is not trained
    again = features.classifier(digits, tmp_path, num_steps=60)
    assert again.test_accuracy == model.test_accuracy
    assert features.extract(again, digits().images).equal(features.extract(model, digits().images))
    with pytest.raises(TypeError):
        features.classifier(digits, tmp_path, num_steps=60, seed=1)


def test_another_set_has_another_classifier(tmp_path):
    small = ImageSet(digits().images[:200], digits().labels[:200])
    other = ImageSet(digits().images[:200], digits().labels[:200].flip(0))
    for data in (small, other):
        features.classifier(lambda data=data: data, tmp_path, num_steps=2)
    assert len(list((tmp_path / "classifiers").iterdir())) == 2


def test_features_do_not_depend_on_the_batches(tmp_path):
    model = features.classifier(digits, tmp_path, num_steps=2)
    images = digits().images[:100]
    whole = features.extract(model, images, batch_size=100)
    assert torch.allclose(features.extract(model, images, batch_size=7), whole, atol=1e-5)
    assert features.logits_of(model, whole).shape == (100, 10)
    assert features.logits_of(nn.Flatten(), whole) is None


def test_a_set_without_labels_has_no_classifier(tmp_path):
    data = ImageSet(torch.zeros(9, 1, 8, 8, dtype=torch.uint8), torch.zeros(9, dtype=torch.long))
    with pytest.raises(UserError, match="features=inception"):
        features.classifier(lambda: data, tmp_path)


@pytest.fixture
def inception_weights(tmp_path, monkeypatch):
    """A file in the format of torch-fidelity's, with weights of chance."""
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path / "weights.pth"
    torch.save({}, path)
    with monkeypatch.context() as patch:
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        net = fidelity.FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(net.state_dict(), path)
    return path


def test_inception_takes_grey_and_colour_as_bytes(inception_weights, tmp_path):
    model = features.inception(None, tmp_path, weights=str(inception_weights))
    grey = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    got = features.extract(model, grey)
    assert got.shape == (2, 2048)
    assert got.equal(features.extract(model, grey.repeat(1, 3, 1, 1)))
    assert got.equal(model.net(grey.repeat(1, 3, 1, 1))[0])
    logits = features.logits_of(model, got)
    assert torch.allclose(logits, got @ model.net.fc.weight.T)


def test_inception_offline_says_where_to_put_the_file(tmp_path, monkeypatch):
    def offline(url, path, **options):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=rf"no route to host.*put that file at {tmp_path}/.*\.pth"):
        features.inception(None, tmp_path)


def test_damaged_weights_of_inception_are_downloaded_again(inception_weights, tmp_path, monkeypatch):
    def download(url, path, **options):
        shutil.copy(inception_weights, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / features.INCEPTION_FILE).write_bytes(b"half")
    features.inception(None, tmp_path / "cache")
    assert (tmp_path / "cache" / features.INCEPTION_FILE).read_bytes() == inception_weights.read_bytes()


def test_what_are_no_weights_of_inception(tmp_path):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(UserError, match=r"features.weights must be .*, got .*none.pth \(FileNotFoundError"):
        features.inception(None, tmp_path, weights=str(tmp_path / "none.pth"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="features.weights must be the file of .*, got .*other.pth"):
        features.inception(None, tmp_path, weights=str(tmp_path / "other.pth"))


def test_any_network_gets_normalized_floats(tmp_path):
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            assert x.shape[1:] == (3, 4, 4)
            return x.mean((2, 3)) * self.scale

    images = torch.full((2, 1, 8, 8), 51, dtype=torch.uint8)  # 0.2
    model = features.custom(None, tmp_path, net=Mean(), image_size=[4, 4], mean=[0.1, 0.2, 0.3], std=[0.1, 1, 0.5])
    assert torch.allclose(features.extract(model, images), torch.tensor([[1.0, 0.0, -0.2]] * 2), atol=1e-6)
    torch.save({"scale": torch.tensor([2.0, 1.0, 1.0])}, tmp_path / "w.pth")
    model = features.custom(
        None, tmp_path, net=Mean(), weights=str(tmp_path / "w.pth"), image_size=[4, 4], mean=0, std=1
    )
    assert features.extract(model, images)[0, 0] == pytest.approx(0.4)
    torch.save({"scale": torch.zeros(5)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="features.weights must be a state dict of Mean, got"):
        features.custom(None, tmp_path, net=Mean(), weights=str(tmp_path / "w.pth"))


def test_the_cache_is_where_it_is_asked_to_be(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path))
    assert features.cache_folder() == tmp_path
    assert str(features.cache_folder("elsewhere")) == "elsewhere"
    monkeypatch.delenv("DDPM_CACHE")
    assert features.cache_folder().parts[-2:] == (".cache", "ddpm_lightning")
    assert math.isnan(Classifier(1, 10).test_accuracy)

"""Feature extractors: modules that map uint8 images (N, C, H, W) to features (N, D); `classify` maps features to logits."""

import logging
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypedDict, Unpack
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from ddpm_lightning import environment, terminal
from ddpm_lightning.data.fingerprint import fingerprint
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.data.source import is_labels
from ddpm_lightning.errors import UserError, brief, optional_package
from ddpm_lightning.files import replace_file
from ddpm_lightning.metrics.classifier import Classifier, train_classifier
from ddpm_lightning.ranges import require
from ddpm_lightning.records.torch import load_plain
from ddpm_lightning.seeds import derive

__all__ = [
    "Custom",
    "Inception",
    "cache_folder",
    "classifier",
    "custom",
    "extract",
    "inception",
    "logits_of",
]

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_HASH = "6726825d"  # prefix of its SHA-256
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
_VERSION = 1  # of the classifier and its training; incremented whenever its features change

log = logging.getLogger(__name__)
Load = Callable[[], ImageSet]  # returns the whole dataset, uint8


class Inception(nn.Module):
    """Inception-v3's 2,048 pooled features with the papers' weights and resizing, by torch-fidelity (Heusel et al. 2017).

    Args:
        weights: the weights file.

    Raises:
        UserError: if torch-fidelity is missing or the file is invalid.
    """

    name = "Inception-v3 (2015-12-05, 2048 pooled features, TF1 resizing)"
    num_features = 2048

    def __init__(self, weights: Path):
        super().__init__()
        with optional_package("torch-fidelity", "inception", needed_by="features=inception"):
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        try:
            load_plain(weights, checked=False)  # refuse code, which the next line would run
            self.net = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
            )
        except Exception as error:  # torch.load and load_state_dict raise many types
            raise UserError(
                f"features.weights must be the file of {INCEPTION_URL}, got {weights} ({brief(error)})"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.expand(-1, 3, -1, -1))[0]

    def classify(self, features: Tensor) -> Tensor:
        """The logits without bias, as in the code of Salimans et al. 2016."""
        return features @ self.net.fc.weight.T


class CustomImages(TypedDict, total=False):
    """The image options and name of `Custom`."""

    name: str | None
    channels: int
    image_size: Sequence[int] | None
    mean: float | Sequence[float]
    std: float | Sequence[float]


class Custom(nn.Module):
    """Any network that takes normalized float images.

    Args:
        net: maps (N, channels, H, W) floats to (N, D).
        name: the name in tables; None for its class name.
        channels: its input channels; grayscale images are repeated.
        image_size: (height, width) to resize images to (bilinear, antialiased); None keeps their size.
        mean: subtracted from the images in [0, 1].
        std: divides the result.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str | None = None,
        channels: int = 3,
        image_size: Sequence[int] | None = None,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
    ):
        super().__init__()
        self.net = net
        self.name = f"{name or type(net).__name__}, resized to {image_size or 'no other size'}, mean {mean}, std {std}"
        self._channels = channels
        self._size = None if image_size is None else list(image_size)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.as_tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(std).reshape(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        images = images.expand(-1, self._channels, -1, -1)
        if self._size is not None:
            images = transforms.resize(images, self._size, antialias=True)
        return self.net((images / 255 - self.mean) / self.std).flatten(1)


def classifier(
    load: Load, cache: Path, *, seed: int = 0, num_steps: int = 1500, device: torch.device | None = None
) -> Classifier:
    """A classifier of the dataset's labels, trained unless cached, within minutes on a CPU.

    It trains on 90 % of all images, including validation images, so that runs with different splits share it.

    Args:
        load: returns the dataset.
        cache: the cache folder.
        seed: the seed of its split, weights, order and dropout.
        num_steps: optimizer steps with 128 images each.
        device: the training device.

    Raises:
        UserError: for a dataset without labels, or num_steps or seed out of range.
    """
    require("features.num_steps", num_steps, "1..10000000")
    require("features.seed", seed, "0..")
    data = load()
    num_classes = int(data.labels.max()) + 1 if is_labels(data.labels) else 0
    hint = "features=classifier requires labels (for a stream, set data.num_classes); features=inception does not"
    require("the number of classes of the dataset", num_classes, "2..", hint=hint)
    path = cache / "classifiers" / f"{fingerprint(*data.tensors)}_seed{seed}_{num_steps}steps_v{_VERSION}.pt"
    if path.exists():
        try:
            saved = load_plain(path)
            model = Classifier(data.images.shape[1], num_classes, num_steps=num_steps)
            model.test_accuracy = float(saved["test_accuracy"])
            model.load_state_dict(saved["state_dict"])
            return model.eval()
        except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            log.warning("%s is damaged (%s): the classifier is trained again", path, brief(error))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cache_dir must be a folder that can be written to, got {cache} ({error.strerror})") from error
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(derive(seed, "classifier split")))
    test, train = (
        ImageSet(data.images[part], data.labels[part]) for part in order.tensor_split([-(-len(order) // 10)])
    )
    model = train_classifier(train, num_classes, seed=seed, num_steps=num_steps, device=device or torch.device("cpu"))
    with torch.no_grad(), terminal.Activity("Testing the feature classifier"):
        read = model.cpu().classify(extract(model, test.images)).argmax(1)
    model.test_accuracy = float((read == test.labels).double().mean())
    with replace_file(path, "wb") as file:
        torch.save({"state_dict": model.state_dict(), "test_accuracy": model.test_accuracy}, file)
    return model


def inception(load: Load, cache: Path, *, weights: str | None = None, device: torch.device | None = None) -> Inception:
    """Inception-v3 with weights from a file or the cache, downloaded unless an intact copy is cached.

    Args:
        load: not called.
        cache: the cache folder.
        weights: the weights file; None uses the cache.
        device: not used.

    Raises:
        UserError: if the weights cannot be downloaded, with the path to place them at.
    """
    path = cache / INCEPTION_FILE if weights is None else Path(weights)
    if weights is None and not (path.exists() and sha256(path.read_bytes()).hexdigest().startswith(INCEPTION_HASH)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with terminal.hidden():  # PyTorch shows the download
                torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=INCEPTION_HASH)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"features=inception: {INCEPTION_URL} cannot be downloaded ({brief(error)}): put that file at {path}, or choose "
                "features=classifier"
            ) from error
    return Inception(path).eval()


def custom(
    load: Load,
    cache: Path,
    *,
    net: nn.Module,
    weights: str | None = None,
    device: torch.device | None = None,
    **options: Unpack[CustomImages],
) -> Custom:
    """Any `nn.Module` built by a config, optionally with a state dict from a file.

    Args:
        load: not called.
        cache: not used.
        net: the module.
        weights: the state dict file; None keeps the initial weights.
        device: not used.
        options: see `Custom`.

    Raises:
        UserError: if the weights do not fit.
    """
    if weights is not None:
        try:
            net.load_state_dict(load_plain(Path(weights), checked=False))
        except Exception as error:  # torch.load and load_state_dict raise many types
            raise UserError(
                f"features.weights must be a state dict of {type(net).__name__}, got {weights} ({brief(error)})"
            ) from error
    return Custom(net, **options).eval()


@torch.no_grad()
def extract(model: nn.Module, images: Tensor, *, batch_size: int = 256) -> Tensor:
    """Extract features (N, D), float32 on the CPU, of uint8 images (N, C, H, W) on the model's device."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    found = []
    with terminal.Activity("features", total=len(images), unit="images") as activity:
        for batch in images.split(batch_size):
            found.append(model(batch.to(device)).float().cpu())
            activity.advance(len(batch))
    return torch.cat(found)


@torch.no_grad()
def logits_of(model: Any, features: Tensor) -> Tensor | None:
    """Logits (N, K) on the CPU; None if the model has no `classify`."""
    if not hasattr(model, "classify"):
        return None
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return model.classify(features.to(device)).cpu()


def cache_folder(given: str | None = None) -> Path:
    """The cache folder: the given one, $DDPM_CACHE, or ~/.cache/ddpm_lightning."""
    return Path(given) if given else environment.cache_folder()

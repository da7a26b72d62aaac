"""Modules that turn uint8 images (N, C, H, W) into features (N, D), and by `classify(features)` to logits, which sets are compared by."""

import logging
import math
import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from ddpm_lightning.data.fingerprint import fingerprint
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.errors import UserError, brief
from ddpm_lightning.files import replace_file
from ddpm_lightning.images import from_uint8
from ddpm_lightning.ranges import is_integer
from ddpm_lightning.seeds import derive
from ddpm_lightning.torch_files import load_plain

__all__ = [
    "Classifier",
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
INCEPTION_HASH = "6726825d"  # the begin of its SHA-256
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
_VERSION = 1  # of the classifier and its training: a change that changes its features gets the next number

log = logging.getLogger(__name__)
Whole = Callable[[], ImageSet]  # gives the whole data set, as bytes


class Classifier(nn.Module):
    """A small convolutional classifier; its features are the 64 numbers before the last layer's nonlinearity.

    Args:
        channels: of the images.
        num_classes: the number of labels.
        num_steps: the training's, which is part of the name.
        test_accuracy: the share of held-out images that it reads right.
    """

    num_features = 64

    def __init__(self, channels: int, num_classes: int, *, num_steps: int = 0, test_accuracy: float = math.nan):
        super().__init__()
        widths = (24, 48, 96)
        stages: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), *_norm(widths[0])]
        for narrow, wide in pairwise(widths):
            stages += [nn.MaxPool2d(2, ceil_mode=True)]
            for width in (narrow, wide):
                stages += [nn.Conv2d(width, wide, 3, padding=1, bias=False), *_norm(wide)]
        self.body = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 64))
        self.head = nn.Sequential(nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, num_classes))
        self.num_steps = num_steps
        self.test_accuracy = test_accuracy

    @property
    def name(self) -> str:
        """What a table calls these features."""
        return f"own classifier ({self.num_steps} steps on this data set, test accuracy {self.test_accuracy:.1%})"

    def forward(self, images: Tensor) -> Tensor:
        return self.body(from_uint8(images))

    def classify(self, features: Tensor) -> Tensor:
        """(N, D) to logits (N, classes)."""
        return self.head(features)


class Inception(nn.Module):
    """Inception-v3's 2,048 pooled features, with the papers' weights and resizing, as torch-fidelity has them (Heusel et al. 2017).

    Args:
        weights: the file of weights.

    Raises:
        UserError: where torch-fidelity is missing, or the file is no such file.
    """

    name = "Inception-v3 (2015-12-05, 2048 pooled features, TF1 resizing)"
    num_features = 2048

    def __init__(self, weights: Path):
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise UserError(
                "features=inception needs the package torch-fidelity: pip install 'ddpm_lightning[inception]'"
            ) from error
        try:
            load_plain(weights, checked=False)  # no code in it, which the next line would run
            self.net = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
            )
        except Exception as error:  # torch.load's and load_state_dict's many kinds
            raise UserError(
                f"features.weights={weights} are not Inception's weights ({type(error).__name__}): get {INCEPTION_URL}"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.expand(-1, 3, -1, -1))[0]

    def classify(self, features: Tensor) -> Tensor:
        """The logits without bias (Salimans et al. 2016's code)."""
        return features @ self.net.fc.weight.T


class Custom(nn.Module):
    """Any network that takes normalised float images.

    Args:
        net: (N, channels, H, W) floats to (N, D).
        name: what tables call it; None for its class.
        channels: the channels it wants; grey images are repeated.
        image_size: (height, width) to which images are resized (bilinear, antialiased); None leaves them.
        mean: subtracted from the images in [0, 1].
        std: divided by then.
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
    whole: Whole, cache: Path, *, seed: int = 0, num_steps: int = 1500, device: torch.device | None = None
) -> Classifier:
    """A classifier of the data set's own labels: the cached one, or one that is trained now, in minutes on a CPU.

    It is trained on nine tenths of the set, training and validation images alike, so that runs with another split share it.

    Args:
        whole: gives the data set.
        cache: the folder of what was trained before, by data set, seed and steps.
        seed: of its split, weights, order and dropout.
        num_steps: optimiser steps, of 128 images each.
        device: where it is trained.

    Raises:
        UserError: for a set without labels, or numbers that are none of these.
    """
    if not is_integer(num_steps, "[1, 1e7]"):
        raise UserError(f"features.num_steps={num_steps} will not do: give a whole number, 1 or more")
    if not is_integer(seed, "[0, inf)"):
        raise UserError(f"features.seed={seed} is no seed: give a whole number, 0 or more")
    data = whole()
    num_classes = int(data.labels.max()) + 1
    if num_classes == 1:
        raise UserError(
            "features=classifier needs a data set with labels (a stream gives its own where data.num_classes is set): "
            "choose features=inception or features=custom"
        )
    path = cache / "classifiers" / f"{fingerprint(*data)}_seed{seed}_{num_steps}steps_v{_VERSION}.pt"
    if path.exists():
        try:
            saved = load_plain(path)
            model = Classifier(data.images.shape[1], num_classes, num_steps=num_steps)
            model.test_accuracy = float(saved["test_accuracy"])
            model.load_state_dict(saved["state_dict"])
            return model.eval()
        except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            log.warning("%s is damaged (%s): the classifier is trained again", path, brief(error))
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(derive(seed, "classifier split")))
    test, train = (
        ImageSet(data.images[part], data.labels[part]) for part in order.tensor_split([-(-len(order) // 10)])
    )
    model = _train(train, num_classes, seed=seed, num_steps=num_steps, device=device or torch.device("cpu"))
    with torch.no_grad():
        read = model.cpu().classify(extract(model, test.images)).argmax(1)
    model.test_accuracy = float((read == test.labels).double().mean())
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path, "wb") as file:
        torch.save({"state_dict": model.state_dict(), "test_accuracy": model.test_accuracy}, file)
    return model


def inception(
    whole: Whole, cache: Path, *, weights: str | None = None, device: torch.device | None = None
) -> Inception:
    """Inception-v3 with the weights in a file, or in the cache, to which they are downloaded once.

    Args:
        whole: not asked for.
        cache: the folder for the weights.
        weights: the file; None for the cache's.
        device: not asked for.

    Raises:
        UserError: where they cannot be had, with the place to put them.
    """
    path = cache / INCEPTION_FILE if weights is None else Path(weights)
    if weights is None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=INCEPTION_HASH)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"features=inception: {INCEPTION_URL} cannot be downloaded ({' '.join(str(error).split())}): put that file at "
                f"{path}, or take features=classifier"
            ) from error
    if not path.is_file():
        raise UserError(f"features.weights={path} does not exist: give the file of {INCEPTION_URL}")
    if weights is None and not sha256(path.read_bytes()).hexdigest().startswith(INCEPTION_HASH):
        raise UserError(
            f"{path} is damaged: remove it, and it is downloaded again, or put the file of {INCEPTION_URL} there"
        )
    return Inception(path).eval()


def custom(
    whole: Whole,
    cache: Path,
    *,
    net: nn.Module,
    weights: str | None = None,
    device: torch.device | None = None,
    **options: object,
) -> Custom:
    """Any `nn.Module` that a config builds, with the state dict in a file.

    Args:
        whole: not asked for.
        cache: not asked for.
        net: the module.
        weights: the file of its state dict; None for those that it was built with.
        device: not asked for.
        options: see `Custom`.

    Raises:
        UserError: where the weights do not fit.
    """
    if weights is not None:
        try:
            net.load_state_dict(load_plain(Path(weights), checked=False))
        except Exception as error:  # torch.load's and load_state_dict's many kinds
            raise UserError(
                f"features.weights={weights} do not fit {type(net).__name__} ({' '.join(str(error).split())[:200]}): give another file"
            ) from error
    return Custom(net, **options).eval()  # type: ignore[arg-type]


@torch.no_grad()
def extract(model: nn.Module, images: Tensor, *, batch_size: int = 256, progress: bool = False) -> Tensor:
    """(N, D) float32 features of uint8 images (N, C, H, W), on the CPU; the model computes on its own device."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    silent = None if progress else True
    batches = tqdm(images.split(batch_size), desc="features", unit="batch", disable=silent, dynamic_ncols=True)
    return torch.cat([model(batch.to(device)).float().cpu() for batch in batches])


@torch.no_grad()
def logits_of(model: Any, features: Tensor) -> Tensor | None:
    """(N, K) logits on the CPU, or None of a module that classifies nothing."""
    if not hasattr(model, "classify"):
        return None
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return model.classify(features.to(device)).cpu()


def _norm(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def _train(data: ImageSet, num_classes: int, *, seed: int, num_steps: int, device: torch.device) -> Classifier:
    """AdamW with one cycle of the learning rate, on images shifted by up to a tenth of their side."""
    draw = torch.Generator().manual_seed(derive(seed, "classifier"))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive(seed, "classifier weights"))
        model = Classifier(data.images.shape[1], num_classes, num_steps=num_steps).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=num_steps)
        height, width = data.images.shape[-2:]
        pad = max(1, min(height, width) // 10)
        steps = tqdm(range(num_steps), desc="feature classifier", unit="step", disable=None, dynamic_ncols=True)
        for _ in steps:
            chosen = torch.randint(len(data.images), (128,), generator=draw)
            down, right = torch.randint(2 * pad + 1, (2,), generator=draw).tolist()
            images = functional.pad(data.images[chosen].float(), (pad,) * 4, "replicate")
            images = images[..., down : down + height, right : right + width].to(device)
            loss = functional.cross_entropy(model.classify(model(images)), data.labels[chosen].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    return model.eval()


def cache_folder(given: str | None = None) -> Path:
    """The folder of what is computed once: the one given, $DDPM_CACHE, or ~/.cache/ddpm_lightning."""
    return Path(given or os.environ.get("DDPM_CACHE") or Path.home() / ".cache" / "ddpm_lightning")

"""A small image classifier as feature extractor."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.images import from_uint8
from ddpm_lightning.seeds import derive
from ddpm_lightning.terminal import Activity

__all__ = ["Classifier", "train_classifier"]


class Classifier(nn.Module):
    """A small convolutional classifier; its 64 features precede the last layer's nonlinearity.

    Args:
        channels: channels of the images.
        num_classes: the number of labels.
        num_steps: optimizer steps of its training, part of its name.
        test_accuracy: the fraction of held-out images that it classifies correctly.
    """

    num_features = 64

    def __init__(self, channels: int, num_classes: int, *, num_steps: int = 0, test_accuracy: float = math.nan):
        super().__init__()
        stages = _convolution(channels, 24)
        for narrow, wide in ((24, 48), (48, 96)):
            stages += [nn.MaxPool2d(2, ceil_mode=True), *_convolution(narrow, wide), *_convolution(wide, wide)]
        self.body = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 64))
        self.head = nn.Sequential(nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, num_classes))
        self.num_steps = num_steps
        self.test_accuracy = test_accuracy

    @property
    def name(self) -> str:
        """The name of these features in tables."""
        return f"own classifier ({self.num_steps} steps on this dataset, test accuracy {self.test_accuracy:.1%})"

    def forward(self, images: Tensor) -> Tensor:
        return self.body(from_uint8(images))

    def classify(self, features: Tensor) -> Tensor:
        """Map features (N, D) to logits (N, classes)."""
        return self.head(features)


def train_classifier(
    data: ImageSet, num_classes: int, *, seed: int, num_steps: int, device: torch.device
) -> Classifier:
    """Train with AdamW and a one-cycle learning rate, on images shifted by up to a tenth of their side."""
    draw = torch.Generator().manual_seed(derive(seed, "classifier"))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive(seed, "classifier weights"))
        model = Classifier(data.images.shape[1], num_classes, num_steps=num_steps).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=num_steps)
        height, width = data.images.shape[-2:]
        pad = max(1, min(height, width) // 10)
        with Activity("training the feature classifier", total=num_steps, unit="steps") as activity:
            for _ in range(num_steps):
                chosen = torch.randint(len(data.images), (128,), generator=draw)
                down, right = torch.randint(2 * pad + 1, (2,), generator=draw).tolist()
                images = functional.pad(data.images[chosen].float(), (pad,) * 4, "replicate")
                images = images[..., down : down + height, right : right + width].to(device)
                loss = functional.cross_entropy(model.classify(model(images)), data.labels[chosen].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rate.step()
                activity.advance()
    return model.eval()


def _convolution(narrow: int, wide: int) -> list[nn.Module]:
    return [nn.Conv2d(narrow, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)]

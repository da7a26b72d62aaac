"""The exact optimal denoiser of a dataset, to teach and to test with."""

import torch
from torch import Tensor, nn

from ddpm_lightning.data.source import Condition
from ddpm_lightning.denoiser.denoiser import Denoiser
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["IdealDenoiser"]


class IdealDenoiser(Denoiser):
    """E[x_0 | x_t] for x_0 out of a list of images: Σ_i softmax_i(−‖x_t − a x_i‖²/(2 s²)) x_i (Karras et al. 2022, appendix B.3).

    A teaching tool and a reference: no network has a lower denoising loss on these images, none generalizes less (every
    sample is one of them), and its estimates have no error, so that an error in its samples is the sampler's.

    Args:
        images: (N, ...), N images.
        schedule: the forward process.
        labels: (N,) integers from 0 on; a label y selects its images, and the null label all.
        chunk: images per block of the sum, which is in float64.

    Raises:
        ValueError: unless there is one label per image.
    """

    images: Tensor
    labels: Tensor | None

    def __init__(self, images: Tensor, schedule: NoiseSchedule, *, labels: Tensor | None = None, chunk: int = 4096):
        super().__init__(nn.Identity(), schedule, prediction="x0")
        if labels is not None and labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be {len(images)} integers, one per image, got shape {tuple(labels.shape)}")
        self.register_buffer("images", images, persistent=False)
        self.register_buffer("labels", labels, persistent=False)
        self.chunk = chunk

    @property
    def num_classes(self) -> int | None:
        """The number of labels, which is also the null label; None without labels."""
        return None if self.labels is None else int(self.labels.max()) + 1

    def predict(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Tensor:
        """The mean over the images, as a running softmax.

        Raises:
            ValueError: for a y that is not the label of an image.
        """
        chosen: Tensor | None = None
        if self.labels is not None and isinstance(y, Tensor):
            chosen = (self.labels == y[:, None]) | y.eq(self.num_classes or 0)[:, None]
            if not chosen.any(1).all():
                raise ValueError(f"y must be labels of images, or {self.num_classes} for all, got {y.tolist()}")
        a, s = (scale.double().reshape(-1, 1) for scale in self.schedule.scales(t))
        x = x_t.flatten(1).double()
        mean, total, peak = torch.zeros_like(x), 0 * x[:, :1], torch.full_like(x[:, :1], torch.finfo(x.dtype).min)
        for first in range(0, len(self.images), self.chunk):
            rows = slice(first, first + self.chunk)
            images = self.images[rows].flatten(1).double()
            logits = a / s**2 * (x @ images.T - a / 2 * images.square().sum(1))
            if chosen is not None:
                logits = logits.masked_fill(~chosen[:, rows], -torch.inf)
            previous, peak = peak, torch.maximum(peak, logits.amax(1, keepdim=True))
            kept, weights = torch.exp(previous - peak), torch.exp(logits - peak)
            mean, total = kept * mean + weights @ images, kept * total + weights.sum(1, keepdim=True)
        return (mean / total).reshape(x_t.shape).to(x_t.dtype)

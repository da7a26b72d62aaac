"""Distances between sets of images, as defined in the papers."""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import require
from ddpm_lightning.seeds import derive

__all__ = [
    "KID_SUBSETS",
    "KID_SUBSET_SIZE",
    "PRECISION_NEIGHBORS",
    "Score",
    "closer_share",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "nearest",
    "precision_recall",
]

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
PRECISION_NEIGHBORS = 3
_CHUNK = 1024
_BLOCK = 4096
_BLOCK_NUMBERS = 2**23  # float64 values per block; larger images use smaller blocks


class Score(NamedTuple):
    """A value, and its standard deviation over subsets, or None."""

    value: float
    deviation: float | None = None


class _Features(nn.Identity):
    """Replaces the network, since the inputs are features already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


def frechet_distance(real: Tensor, fake: Tensor) -> Score:
    """‖μ_r − μ_f‖² + tr(Σ_r + Σ_f − 2(Σ_r Σ_f)^½), with unbiased covariances in float64 (Heusel et al. 2017, FID).

    Args:
        real: (N, D) features, N ≥ 2.
        fake: (M, D) features, M ≥ 2.

    Raises:
        UserError: for NaN or infinite features, as in all functions here.
    """
    _require_finite(real, fake)
    with warnings.catch_warnings(action="ignore"):  # torchmetrics warns about memory
        metric = FrechetInceptionDistance(_Features(real.shape[1]), sync_on_compute=False).set_dtype(torch.float64)
        for features, is_real in ((real, True), (fake, False)):
            for part in features.split(_CHUNK):
                metric.update(part.double(), real=is_real)
        return Score(max(0.0, float(metric.compute())))


def kernel_distance(real: Tensor, fake: Tensor, *, seed: int = 0) -> Score:
    """The unbiased squared MMD with kernel (x·y/D + 1)³, mean and deviation over random subsets (Bińkowski et al. 2018, KID).

    Uses 100 subsets of 1,000, or of the smaller set's size if it has fewer.

    Args:
        real: (N, D) features.
        fake: (M, D) features.
        seed: the seed of the subsets.
    """
    _require_finite(real, fake)
    size = min(KID_SUBSET_SIZE, len(real), len(fake))
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "kid"))
        metric = KernelInceptionDistance(
            _Features(real.shape[1]), subsets=KID_SUBSETS, subset_size=size, sync_on_compute=False
        )
        metric.update(real.double(), real=True)
        metric.update(fake.double(), real=False)
        mean, deviation = metric.compute()
    return Score(float(mean), float(deviation))


def inception_score(logits: Tensor, *, seed: int = 0) -> Score:
    """exp E_x KL(p(y|x) ‖ p(y)), mean and deviation over ten parts (Salimans et al. 2016).

    Args:
        logits: (M, K) logits of the samples.
        seed: the seed of the parts.
    """
    _require_finite(logits)
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "inception score"))
        metric = InceptionScore(_Features(logits.shape[1]), sync_on_compute=False)
        metric.update(logits.double())
        mean, deviation = metric.compute()
    return Score(float(mean), float(deviation))


def precision_recall(real: Tensor, fake: Tensor, *, neighbors: int = PRECISION_NEIGHBORS) -> tuple[Score, Score]:
    """The fraction of samples within the manifold of the real images (precision), and vice versa (recall).

    A set's manifold is the union of balls around its points with the distance to the k-th nearest neighbor as radius
    (Kynkäänniemi et al. 2019, Eq. 1-2). The sets should have equal sizes, since larger sets have smaller balls.

    Args:
        real: (N, D) features, N > k.
        fake: (M, D) features, M > k.
        neighbors: k.

    Raises:
        UserError: for a set of at most k points.
    """
    _require_finite(real, fake)
    require("neighbors", neighbors, f"1..{min(len(real), len(fake)) - 1}", hint="each set needs more images than that")
    precision = _share_within(fake, real, _radii(real, neighbors))
    recall = _share_within(real, fake, _radii(fake, neighbors))
    return Score(precision), Score(recall)


def nearest(points: Tensor, others: Tensor, *, count: int = 1, mirrored: bool = False) -> tuple[Tensor, Tensor]:
    """Distances (N, count) from each point to its nearest neighbors, and their indices (N, count), nearest first.

    Args:
        points: (N, ...) features or images.
        others: (M, ...) candidates.
        count: the number of neighbors, at most M.
        mirrored: also compare each point's mirror image along the last axis, and take the smaller distance.
    """
    values, indices = zip(*(_nearest(part, others, count, mirrored) for part in points.split(_CHUNK)), strict=True)
    return torch.cat(values), torch.cat(indices)


def closer_share(samples: Tensor, held_out: Tensor) -> float:
    """P(d(sample) < d(held-out image)), ties counting half (Meehan et al. 2020): 1/2 for new images, 1 for copies.

    Args:
        samples: (N,) distances to the nearest training image.
        held_out: (M,) distances to the nearest training image.
    """
    ordered, samples = held_out.sort().values, samples.contiguous()
    below = torch.searchsorted(ordered, samples, right=False)
    up_to = torch.searchsorted(ordered, samples, right=True)
    return 1 - float((below + up_to).double().mean()) / (2 * len(held_out))


def _nearest(points: Tensor, others: Tensor, count: int, mirrored: bool) -> tuple[Tensor, Tensor]:
    """`nearest` for a block of points, in blocks of the others, since training sets are large."""
    values, indices = torch.empty(len(points), 0).double(), torch.empty(len(points), 0).long()
    ours = [x.flatten(1).double() for x in ((points, points.flip(-1)) if mirrored else (points,))]
    block = max(1, min(_BLOCK, _BLOCK_NUMBERS // max(1, ours[0].shape[1])))
    for first in range(0, len(others), block):
        theirs = others[first : first + block].flatten(1).double()
        distances = torch.stack([torch.cdist(x, theirs) for x in ours]).amin(0)
        new = torch.arange(first, first + len(theirs)).expand_as(distances)
        values, indices = torch.cat([values, distances], 1), torch.cat([indices, new], 1)
        values, best = values.topk(min(count, values.shape[1]), largest=False)
        indices = indices.gather(1, best)
    return values, indices


def _radii(points: Tensor, neighbors: int) -> Tensor:
    # plus one, since the first neighbor is the point itself
    return torch.cat([part.kthvalue(neighbors + 1).values for part in _distances(points, points)])


def _share_within(points: Tensor, centers: Tensor, radii: Tensor) -> float:
    return float(torch.cat([(part <= radii).any(1) for part in _distances(points, centers)]).double().mean())


def _distances(points: Tensor, others: Tensor) -> Iterator[Tensor]:
    """Distances (n, M), in blocks of points."""
    others = others.flatten(1).double()
    for part in points.flatten(1).split(_CHUNK):
        yield torch.cdist(part.double(), others)


def _require_finite(*sets: Tensor) -> None:
    """Refuse NaN and infinity, on which SciPy and MKL crash or return a distance of 0."""
    for features in sets:
        if wrong := int((~features.isfinite()).flatten(1).any(1).sum()):
            raise UserError(
                f"the features of {wrong} of {len(features)} images are NaN or infinite: check the images, or choose other features=..."
            )

"""The numbers of the papers, against closed forms and computations of another kind."""

from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm_lightning.errors import UserError
from ddpm_lightning.metrics import distances


def gaussian(n, d, seed, *, scale=1.0, shift=0.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def frechet(real, fake):
    """Heusel et al. 2017 with scipy's square root."""
    (m1, s1), (m2, s2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (real.double().numpy(), fake.double().numpy()))
    return ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)


@pytest.mark.parametrize(("d", "scale", "shift"), [(4, 1.0, 0.0), (8, 2.0, 0.5), (64, 0.7, -0.1)])
def test_the_frechet_distance_is_that_of_scipy(d, scale, shift):
    real, fake = gaussian(400, d, 0), gaussian(300, d, 1, scale=scale, shift=shift) @ torch.eye(d).roll(1, 0)
    assert distances.frechet_distance(real, fake).value == pytest.approx(frechet(real, fake), rel=1e-6)


def test_the_frechet_distance_of_gaussians_in_closed_form():
    n, d = 4000, 3
    white = torch.linalg.qr(gaussian(n, d, 0).double() - gaussian(n, d, 0).double().mean(0)).Q * (n - 1) ** 0.5
    scales, shift = torch.tensor([0.5, 1.0, 3.0]).double(), torch.tensor([1.0, -2.0, 0.0]).double()
    expected = float((shift**2).sum() + ((1 - scales) ** 2).sum())  # ‖Δμ‖² + Σ(σ_r − σ_f)²
    assert distances.frechet_distance(white, white * scales + shift).value == pytest.approx(expected, rel=1e-9)


def test_equal_sets_are_at_distance_zero():
    x = gaussian(500, 16, 0)
    assert distances.frechet_distance(x, x.flip(0)).value == pytest.approx(0, abs=1e-6)
    # Subsets of one set share images: the unbiased estimator then gives −2(E k(x, x) − E k(x, y))/N.
    many = gaussian(4000, 16, 0).double()
    kernel = (many @ many.T / 16 + 1) ** 3
    overlap = -2 * float(kernel.diagonal().mean() - kernel.mean()) / len(many)
    assert distances.kernel_distance(many, many.flip(0)).value == pytest.approx(overlap, rel=0.15)
    assert distances.precision_recall(x, x) == ((1.0, None), (1.0, None))
    assert distances.closer_share(x[:, 0], x[:, 0]) == 0.5


def mmd(real, fake):
    """The unbiased estimator, sum by sum (Bińkowski et al. 2018, Eq. 4)."""
    x, y = real.double().numpy(), fake.double().numpy()
    n, m, d = len(x), len(y), x.shape[1]
    k = lambda a, b: (a @ b / d + 1) ** 3  # noqa: E731
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_the_kernel_distance_is_the_unbiased_estimator():
    real, fake = gaussian(40, 5, 0), gaussian(40, 5, 1, scale=1.5)
    got = distances.kernel_distance(real, fake)  # each subset is the whole set
    assert got.value == pytest.approx(mmd(real, fake), rel=1e-9)
    assert got.deviation == pytest.approx(0, abs=1e-9)


def test_the_kernel_distance_over_subsets():
    real, fake = gaussian(3000, 4, 0), gaussian(2000, 4, 1, shift=1.0)
    got = distances.kernel_distance(real, fake, seed=3)
    assert distances.kernel_distance(real, fake, seed=3) == got
    assert distances.kernel_distance(real, fake, seed=4) != got
    # E k of N(0, I) and N(1, I) in D = 4 dimensions, by the moments of x·y/D + 1
    x, y = gaussian(200000, 4, 5), gaussian(200000, 4, 6)
    k = lambda a, b: float((((a * b).sum(1) / 4 + 1) ** 3).mean())  # noqa: E731
    expected = k(x, y) + k(x + 1, y + 1) - 2 * k(x, y + 1)
    assert got.value == pytest.approx(expected, rel=0.05)
    assert 0 < got.deviation < 0.2 * got.value


def test_the_inception_score_of_known_predictions():
    sure = 1000.0 * torch.eye(5).repeat(200, 1)  # five classes, each image surely one
    assert distances.inception_score(sure).value == pytest.approx(
        5, rel=0.03
    )  # the ten parts hold about as many of each
    assert distances.inception_score(torch.zeros(1000, 5)).value == pytest.approx(1)
    half = torch.tensor([[0.0, 0.0, -1000.0, -1000.0], [-1000.0, -1000.0, 0.0, 0.0]]).repeat(5000, 1)
    assert distances.inception_score(half).value == pytest.approx(2, rel=1e-3)


def brute_precision(real, fake, k):
    inside = 0
    for f in fake:
        for i, r in enumerate(real):
            radius = sorted(np.linalg.norm(r - other) for j, other in enumerate(real) if j != i)[k - 1]
            if np.linalg.norm(f - r) <= radius:
                inside += 1
                break
    return inside / len(fake)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_point_by_point(k):
    real, fake = gaussian(30, 2, 0), gaussian(25, 2, 1, scale=2.0)
    precision, recall = distances.precision_recall(real, fake, neighbors=k)
    r, f = real.double().numpy(), fake.double().numpy()
    assert precision.value == brute_precision(r, f, k)
    assert recall.value == brute_precision(f, r, k)
    assert precision.value < recall.value  # the samples are wider


def test_precision_falls_with_strange_samples_and_recall_with_missing_ones():
    real = torch.cat([gaussian(300, 2, 0), gaussian(300, 2, 1, shift=50)])
    one_mode = gaussian(600, 2, 2)
    precision, recall = distances.precision_recall(real, one_mode)
    assert precision.value > 0.9
    assert recall.value == pytest.approx(0.5, abs=0.05)
    precision, recall = distances.precision_recall(one_mode, real)
    assert precision.value == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match="neighbors must be .* got 3: each set needs more images"):
        distances.precision_recall(real[:3], real)


@given(st.integers(1, 5), st.integers(5, 40), st.integers(0, 100))
def test_the_nearest_are_numpys(count, others, seed):
    points, others = gaussian(7, 3, seed), gaussian(others, 3, seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "_BLOCK", 4)  # several blocks
        found, numbers = distances.nearest(points, others, count=count)
    full = np.linalg.norm(points.double().numpy()[:, None] - others.double().numpy()[None], axis=2)
    assert (numbers.numpy() == full.argsort(1, kind="stable")[:, :count]).all()
    assert np.allclose(found.numpy(), np.sort(full, 1)[:, :count], atol=1e-6)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_the_share_that_is_closer_is_mann_whitneys(samples, held_out):
    pairs = [(s < h) + (s == h) / 2 for s in samples for h in held_out]
    got = distances.closer_share(torch.tensor(samples).double(), torch.tensor(held_out).double())
    assert got == pytest.approx(sum(pairs) / len(pairs))


def test_copies_are_seen():
    train, unseen = gaussian(500, 8, 0), gaussian(300, 8, 1)
    d = lambda x: distances.nearest(x, train)[0][:, 0]  # noqa: E731
    assert distances.closer_share(d(train[:200] + 1e-3), d(unseen)) == 1
    assert distances.closer_share(d(gaussian(300, 8, 2)), d(unseen)) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_have_no_distance(wrong):
    good, bad = torch.randn(20, 4), torch.randn(20, 4)
    bad[3, 2] = bad[5, 1] = wrong
    measures = [
        partial(measure, good)
        for measure in (distances.frechet_distance, distances.kernel_distance, distances.precision_recall)
    ]
    for measure in [*measures, distances.inception_score]:
        with pytest.raises(UserError, match="the features of 2 of 20 images are NaN or infinite"):
            measure(bad)

import math

import numpy as np
import pytest
import torch

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import PREDICTIONS, Denoiser
from ddpm_lightning.likelihood import vlb_term
from ddpm_lightning.losses import (
    P2,
    SNR,
    VLB,
    Bound,
    Huber,
    Hybrid,
    Loss,
    MinSNR,
    Simple,
    TruncatedSNR,
)
from tests.helpers.recorder import Recorder

TIMES = torch.tensor([1, 2, 50, 300, 700, 999, 1000]).reshape(-1, 1, 1, 1)

MATCHED = [SNR(), TruncatedSNR(), MinSNR(), MinSNR(1.0), P2(), P2(0.5, k=2.0), Bound(), Bound("large")]


def denoiser_of(prediction, schedule=None, output=None, **options):
    return Denoiser(Recorder(output), schedule or schedules.linear().double(), prediction=prediction, **options)


def snr_and_betas():
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)
    t = TIMES.flatten().numpy()
    return (abar / (1 - abar))[t - 1], betas, abar, t


@pytest.mark.parametrize(
    ("weighting", "formulas"),
    [
        (Simple(), dict.fromkeys(PREDICTIONS, np.ones_like)),
        (
            SNR(),
            {
                "epsilon": np.ones_like,
                "x0": lambda snr: snr,
                "v": lambda snr: snr / (snr + 1),
                "flow": lambda snr: snr / (1 + snr**0.5) ** 2,  # x̂_0 is off by s/(a+s) of the velocity's error
                "edm": lambda snr: snr / (4 + snr),  # 1/(4 + SNR) is c_out² at σ_data = ½
            },
        ),
        (
            TruncatedSNR(),
            {
                "epsilon": lambda snr: np.maximum(snr, 1) / snr,
                "x0": lambda snr: np.maximum(snr, 1),
                "v": lambda snr: np.maximum(snr, 1) / (snr + 1),
                "flow": lambda snr: np.maximum(snr, 1) / (1 + snr**0.5) ** 2,
                "edm": lambda snr: np.maximum(snr, 1) / (4 + snr),
            },
        ),
        (
            MinSNR(),
            {
                "epsilon": lambda snr: np.minimum(snr, 5) / snr,
                "x0": lambda snr: np.minimum(snr, 5),
                "v": lambda snr: np.minimum(snr, 5) / (snr + 1),
                "flow": lambda snr: np.minimum(snr, 5) / (1 + snr**0.5) ** 2,
                "edm": lambda snr: np.minimum(snr, 5) / (4 + snr),
            },
        ),
        (
            P2(0.5, k=2.0),
            {
                "epsilon": lambda snr: (2 + snr) ** -0.5,
                "x0": lambda snr: snr * (2 + snr) ** -0.5,
                "v": lambda snr: snr / (snr + 1) * (2 + snr) ** -0.5,
                "flow": lambda snr: snr / (1 + snr**0.5) ** 2 * (2 + snr) ** -0.5,
                "edm": lambda snr: snr / (4 + snr) * (2 + snr) ** -0.5,
            },
        ),
    ],
)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weightings_are_the_papers(weighting, formulas, prediction):
    snr, *_ = snr_and_betas()
    got = weighting(denoiser_of(prediction), TIMES)
    assert got.shape == TIMES.shape
    np.testing.assert_allclose(got.flatten().numpy(), formulas[prediction](snr), rtol=1e-9)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_bound_is_equation_12(variance):
    _, betas, abar, t = snr_and_betas()
    before = np.concatenate([[1.0], abar])[t - 1]
    beta = betas[t - 1]
    small = (1 - before) / (1 - abar[t - 1]) * beta
    small[0] = (1 - abar[0]) / (1 - abar[1]) * betas[1]
    sigma2 = small if variance == "small" else np.concatenate([small[:1], beta[1:]])
    expected = beta**2 / (2 * sigma2 * (1 - beta) * (1 - abar[t - 1]))
    got = Bound(variance)(denoiser_of("epsilon"), TIMES)
    np.testing.assert_allclose(got.flatten().numpy(), expected, rtol=1e-9)


def test_bound_is_the_vlb_term():
    torch.manual_seed(0)
    t = TIMES[1:]
    x0, noise, wrong = torch.randn(3, len(t), 1, 4, 4, dtype=torch.float64)
    denoiser = denoiser_of("v")
    x_t = denoiser.schedule.q_sample(x0, t, noise)
    denoiser.model.output = denoiser.target(x0, noise, t) + wrong
    nats = math.log(2) * vlb_term(denoiser, denoiser.model.output, x0, x_t, t)
    torch.testing.assert_close(Loss(Bound())(denoiser, x0, x_t, t, noise), nats, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weighting", MATCHED, ids=lambda w: type(w).__name__)
def test_losses_of_all_predictions_are_one_number(weighting):
    torch.manual_seed(0)
    x0, noise, wrong = torch.randn(3, len(TIMES), 1, 4, 4, dtype=torch.float64)
    losses = {}
    for prediction in PREDICTIONS:
        denoiser = denoiser_of(prediction)
        x_t = denoiser.schedule.q_sample(x0, TIMES, noise)
        # One and the same wrong estimate of x_0, told in each network's language: Δout = (a·q − s·p)/s · Δx_0
        change = wrong / denoiser.error_scale(TIMES).sqrt()
        denoiser.model.output = denoiser.target(x0, noise, TIMES) + change
        torch.testing.assert_close((denoiser(x_t, TIMES) - x0).abs(), wrong.abs())
        losses[prediction] = Loss(weighting)(denoiser, x0, x_t, TIMES, noise)
    for loss in losses.values():
        torch.testing.assert_close(losses["epsilon"], loss, rtol=1e-9, atol=0)


@pytest.mark.parametrize("weighting", [Simple(), *MATCHED], ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_of_an_oracle_is_zero(weighting, prediction):
    x0, noise = torch.randn(2, len(TIMES), 1, 4, 4, dtype=torch.float64)
    denoiser = denoiser_of(prediction)
    denoiser.model.output = denoiser.target(x0, noise, TIMES)
    x_t = denoiser.schedule.q_sample(x0, TIMES, noise)
    assert Loss(weighting)(denoiser, x0, x_t, TIMES, noise).tolist() == [0] * len(TIMES)
    at_two = torch.full_like(TIMES, 2)  # t ≥ 2: at 1 the decoder has its bins
    denoiser.model.output = denoiser.target(x0, noise, at_two)
    x_t = denoiser.schedule.q_sample(x0, at_two, noise)
    assert VLB()(denoiser, x0, x_t, at_two, noise).abs().max() < 1e-9


@pytest.mark.parametrize("weighting", [Simple(), *MATCHED], ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
def test_weights_are_finite_to_zero_terminal_snr(weighting, prediction):
    schedule = schedules.from_betas([*np.linspace(1e-4, 0.5, 20), 1.0])
    t = torch.arange(1, 22).reshape(-1, 1, 1, 1)
    weights = weighting(denoiser_of(prediction, schedule), t)
    assert weights.isfinite().all()
    assert (weights >= 0).all()


def test_huber():
    error = torch.tensor([-3.0, -0.5, 0.0, 0.2, 0.5, 2.0])
    expected = torch.tensor([0.5 * (3 - 0.25), 0.125, 0.0, 0.02, 0.125, 0.5 * (2 - 0.25)])
    torch.testing.assert_close(Huber(0.5)(error), expected)
    x0 = torch.zeros(1, 1, 2, 3)
    denoiser = denoiser_of("x0", schedules.linear(), error.reshape(1, 1, 2, 3))
    loss = Loss(distance=Huber(0.5))(denoiser, x0, x0, TIMES[:1], x0)
    torch.testing.assert_close(loss, expected.mean()[None])


def test_the_second_half_of_a_learned_variance_is_no_part_of_the_simple_loss():
    x0, noise = torch.randn(2, 7, 2, 4, 4, dtype=torch.float64)
    raw = torch.randn(7, 4, 4, 4, dtype=torch.float64)
    denoiser = denoiser_of("epsilon", output=raw, learned_variance=True)
    got = Loss()(denoiser, x0, x0, TIMES, noise)
    torch.testing.assert_close(got, ((raw[:, :2] - noise) ** 2).mean((1, 2, 3)))


def hybrid_inputs():
    torch.manual_seed(0)
    x0 = (torch.randint(0, 256, (7, 2, 4, 4)).double() / 127.5) - 1
    noise = torch.randn_like(x0)
    raw = (0.5 * torch.randn(7, 4, 4, 4, dtype=torch.float64)).requires_grad_()
    denoiser = denoiser_of("epsilon", output=raw, learned_variance=True)
    return denoiser, x0, denoiser.schedule.q_sample(x0, TIMES, noise), noise, raw


def test_hybrid_is_the_sum_of_its_terms():
    denoiser, x0, x_t, noise, raw = hybrid_inputs()
    simple = ((raw[:, :2] - noise) ** 2).mean((1, 2, 3))
    vlb = 1000 * vlb_term(denoiser, raw, x0, x_t, TIMES)
    torch.testing.assert_close(VLB()(denoiser, x0, x_t, TIMES, noise), vlb)
    torch.testing.assert_close(Hybrid()(denoiser, x0, x_t, TIMES, noise), simple + 0.001 * vlb)


def test_a_sum_over_pixels_is_their_number_times_the_mean():
    x0, noise, output = torch.randn(3, 7, 3, 4, 4, dtype=torch.float64)
    denoiser = denoiser_of("epsilon", output=output)
    given = x0, denoiser.schedule.q_sample(x0, TIMES, noise), TIMES, noise
    summed, averaged = (Loss(reduction=how)(denoiser, *given) for how in ("sum", "mean"))
    torch.testing.assert_close(summed, torch.stack([((o - n) ** 2).sum() for o, n in zip(output, noise, strict=True)]))
    torch.testing.assert_close(summed, 48 * averaged)
    with pytest.raises(ValueError, match="reduction must be mean or sum, got 'max'"):
        Loss(reduction="max")


def test_the_bound_does_not_train_the_mean_of_a_hybrid():
    denoiser, x0, x_t, noise, raw = hybrid_inputs()
    Hybrid()(denoiser, x0, x_t, TIMES, noise).sum().backward()
    mean, v = raw.grad.clone().chunk(2, dim=1)
    raw.grad = None
    Loss()(denoiser, x0, x_t, TIMES, noise).sum().backward()
    assert torch.equal(mean, raw.grad[:, :2])
    raw.grad = None
    VLB()(denoiser, x0, x_t, TIMES, noise).sum().backward()
    torch.testing.assert_close(v, 0.001 * raw.grad[:, 2:])
    assert (v != 0).all()
    assert (raw.grad[:, :2] != 0).all()  # the bound by itself trains both


def test_hybrid_refuses_a_fixed_variance():
    with pytest.raises(ValueError, match="learned_variance=true"):
        Hybrid().check(denoiser_of("epsilon"))


def test_losses_are_float32_under_narrow_networks():
    x = torch.rand(7, 1, 2, 2)
    narrow = torch.rand(7, 2, 2, 2).bfloat16()
    denoiser = denoiser_of("epsilon", schedules.linear(), narrow, learned_variance=True)
    for loss in (Loss(), VLB(), Hybrid()):
        assert loss(denoiser, x, x, TIMES, x).dtype == torch.float32


def test_offset_noise_is_shared_within_a_channel():
    torch.manual_seed(0)
    x0 = torch.zeros(2000, 2, 8, 8)
    noise = Loss(offset_noise=0.5).noise(x0)
    assert noise.var().item() == pytest.approx(1 + 0.25, rel=0.03)
    # The mean of 64 pixels has variance 1/64 of their own and o² of what they share.
    assert noise.mean((2, 3)).var().item() == pytest.approx(1 / 64 + 0.25, rel=0.06)
    assert abs((noise.mean((2, 3))[:, 0] * noise.mean((2, 3))[:, 1]).mean()) < 0.03


def test_without_options_the_noise_is_plain():
    x0 = torch.zeros(3, 1, 4, 4)
    torch.manual_seed(5)
    noise = Loss().noise(x0)
    torch.manual_seed(5)
    assert torch.equal(noise, torch.randn_like(x0))
    assert Loss().noise.perturbed(noise) is noise


def test_input_perturbation_widens_the_noise_of_x_t():
    torch.manual_seed(0)
    noise = torch.randn(200_000)
    added = Loss(input_perturbation=0.3).noise.perturbed(noise) - noise
    assert added.std().item() == pytest.approx(0.3, rel=0.02)
    assert abs((added * noise).mean()) < 0.005

import inspect
import math
from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ddpm_lightning import schedules
from ddpm_lightning.ranges import shown

FAMILIES = {
    "linear": schedules.linear,
    "quadratic": schedules.quadratic,
    "cosine": schedules.cosine,
    "sigmoid": schedules.sigmoid,
    "sigmoid_beta": schedules.sigmoid_beta,
    "laplace": schedules.laplace,
    "flow": schedules.flow,
    "edm": schedules.edm,
    "constant": schedules.constant,
    "shifted_cosine": partial(schedules.shifted_cosine, image_size=256),
    "linear_zero_snr": lambda *T: schedules.rescale_zero_terminal_snr(schedules.linear(*T)),
}

some_betas = st.lists(st.floats(1e-5, 0.5), min_size=1, max_size=30)


def index(t, ndim=4):
    return torch.as_tensor(t).reshape(-1, *[1] * (ndim - 1))


@pytest.mark.parametrize("name", FAMILIES)
def test_marginals_equal_step_by_step_noising(name):
    # x_t = √(1−β_t) x_{t−1} + √β_t z: the moments of T small steps are those of the one big step, Eq. 25.3
    schedule = FAMILIES[name]().double()
    gain, variance = 1.0, 0.0
    for t, beta in enumerate(schedule.betas.tolist(), start=1):
        gain, variance = gain * math.sqrt(1 - beta), variance * (1 - beta) + beta
        assert schedule.sqrt_alpha_bar[t].item() == pytest.approx(gain, rel=1e-10)
        assert schedule.sqrt_one_minus_alpha_bar[t].item() == pytest.approx(math.sqrt(variance), rel=1e-10)


def test_linear_is_that_of_ho_et_al():
    betas = schedules.linear().betas
    assert betas[0].item() == pytest.approx(1e-4, rel=1e-9)
    assert betas[-1].item() == pytest.approx(0.02, rel=1e-9)
    assert betas[499].item() == pytest.approx(1e-4 + 499 / 999 * (0.02 - 1e-4), rel=1e-9)


# ᾱ at T/4, T/2 and T: the papers' formulas written out again in mpmath at 40 digits (products of 1 − β_t, or ᾱ_t itself),
# away from this package's code and from float64, and rounded to 12 digits.
GOLDEN = [
    (schedules.linear(), (0.524085373825, 0.0785872428818, 4.03582976538e-5)),
    (schedules.linear(100), (0.939029444596, 0.777180082661, 0.363563248055)),
    (schedules.linear(100, rescale=True), (0.527916384238, 0.0741969967174, 2.03900897556e-5)),
    (schedules.linear(4000, rescale=True), (0.523780770276, 0.0789448733246, 4.2466522758e-5)),
    (schedules.quadratic(), (0.675432413725, 0.277669650456, 0.00466009851308)),
    (schedules.cosine(), (0.847012161327, 0.493843590441, 2.42876690703e-9)),
    (schedules.cosine(100), (0.847012161327, 0.493843590441, 2.42857227935e-7)),
    (schedules.sigmoid(), (0.85085354793, 0.5, 1e-9)),
    (schedules.sigmoid(tau=0.9), (0.866370287605, 0.5, 1e-9)),
    (schedules.sigmoid_beta(), (0.903744665401, 0.301931056602, 3.96818199053e-5)),
    (schedules.laplace(), (0.585786437627, 0.5, 0.000999000999001)),
    (schedules.laplace(mu=1, b=2), (0.915776191599, 0.73105857863, 2.71828182845e-12)),
    (schedules.constant(), (0.0810585161622, 0.00657048304241, 4.31712474107e-5)),
    (schedules.shifted_cosine(image_size=256), (0.266704887235, 0.0588235294118, 1.91188946658e-8)),
    (schedules.shifted_cosine(image_size=[32, 32]), (0.958809217435, 0.8, 1.22360778479e-6)),
    (schedules.flow(), (0.9, 0.5, 0)),  # (1−τ)²/((1−τ)² + τ²) at τ = 1/4, 1/2 and 1
    (schedules.flow(shift=3), (0.5, 0.1, 0)),  # at τ = 1/2, 3/4 and 1
    (schedules.edm(), (0.972524187009, 0.137553708745, 0.000156225589752)),
    (schedules.rescale_zero_terminal_snr(schedules.linear()), (0.521533340699, 0.0760287505471, 0)),
    (schedules.rescale_zero_terminal_snr(schedules.quadratic()), (0.654189006539, 0.242359166556, 0)),
]


@pytest.mark.parametrize(("schedule", "golden"), GOLDEN)
def test_golden_values(schedule, golden):
    schedule.double()
    T = schedule.num_steps
    for t, expected in zip((T // 4, T // 2, T), golden, strict=True):
        assert schedule.alpha_bar[t].item() == pytest.approx(expected, rel=1e-10, abs=0)


def test_every_family_is_in_the_tests():
    families = {
        name
        for name in schedules.__all__
        if inspect.isfunction(family := getattr(schedules, name))
        and "num_steps" in inspect.signature(family).parameters
    }
    assert families == FAMILIES.keys() - {"linear_zero_snr"}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("T", [2, 3, 10, 1000, 4000])
def test_families_fall_from_one_to_little(name, T):
    schedule = FAMILIES[name](T).double()
    assert schedule.num_steps == T
    assert schedule.alpha_bar[0] == 1
    assert (schedule.alpha_bar.diff() < 0).all()
    assert ((schedule.betas > 0) & (schedule.betas <= 1)).all()
    ends_in_noise = name in ("linear_zero_snr", "flow")
    assert schedule.log_snr[1:T].isfinite().all()
    assert schedule.log_snr[T].item() == -math.inf if ends_in_noise else schedule.log_snr[T].isfinite()
    if T >= 1000:
        assert schedule.alpha_bar[T] < 0.01


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (schedules.linear(), {"beta_schedule": "linear"}),
        (schedules.quadratic(), {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        (schedules.cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
        (schedules.sigmoid_beta(), {"beta_schedule": "sigmoid"}),
    ],
)
def test_betas_of_diffusers(ours, theirs):
    from diffusers import DDPMScheduler

    reference = DDPMScheduler(num_train_timesteps=1000, **theirs)
    # float32 on their side: 1 − ᾱ_t/ᾱ_{t−1} and √β² are off by some 1e-7; the cosine is float64 but for the last rounding
    torch.testing.assert_close(ours.betas.float(), reference.betas, rtol=1e-5, atol=2e-8)


def test_laplace_is_the_square_of_diffusers():
    # diffusers takes √σ(λ), which is √ᾱ, for ᾱ, and divides by its value at t = 0, where it has λ = −½ log(1e-6).
    # It adds 1e-6 under every logarithm, we only stop there: hence the tolerance
    from diffusers import DDPMScheduler

    reference = DDPMScheduler(num_train_timesteps=1000, beta_schedule="laplace")
    at_zero = 1 / (1 + 1e-3)
    theirs = torch.cumprod(1 - reference.betas.double(), 0) ** 2 * at_zero
    torch.testing.assert_close(schedules.laplace().double().alpha_bar[1:], theirs, rtol=3e-4, atol=0)


@pytest.mark.parametrize("name", ["linear", "quadratic", "cosine", "sigmoid", "laplace"])
def test_zero_terminal_snr(name):
    from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

    before = FAMILIES[name]().double()
    schedule = schedules.rescale_zero_terminal_snr(FAMILIES[name]()).double()
    assert schedule.alpha_bar[-1] == 0
    assert schedule.log_snr[-1] == -math.inf
    assert schedule.betas[-1] == 1
    assert schedule.alpha_bar[1] == before.alpha_bar[1]
    torch.testing.assert_close(schedule.betas, rescale_zero_terminal_snr(before.betas), rtol=1e-6, atol=1e-12)
    again = schedules.rescale_zero_terminal_snr(schedule).double()
    torch.testing.assert_close(again.alpha_bar, schedule.alpha_bar, rtol=1e-14, atol=0)


@given(some_betas)
def test_zero_terminal_snr_of_any_betas(betas):
    # √ᾱ' is an affine map of √ᾱ: the ratios of its differences stay
    assume(len(betas) > 2)
    before = schedules.from_betas(betas).double()
    schedule = schedules.rescale_zero_terminal_snr(before).double()
    assert schedule.alpha_bar[-1] == 0
    assert schedule.alpha_bar[1] == before.alpha_bar[1]
    old, new = before.sqrt_alpha_bar[1:].diff(), schedule.sqrt_alpha_bar[1:].diff()
    torch.testing.assert_close(new / new.sum(), old / old.sum(), rtol=1e-8, atol=1e-10)


@given(st.integers(1, 200), st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_betas_begin_and_end_where_they_are_told(T, start, end):
    assume(T * math.log1p(-max(start, end) * (1 - 1e-12)) > -700)  # ᾱ stays a number of float64
    for family in (schedules.linear, schedules.quadratic):
        betas = family(T, beta_start=start, beta_end=end).betas
        assert betas[0].item() == pytest.approx(start, rel=1e-8)
        assert betas[-1].item() == pytest.approx(end if T > 1 else start, rel=1e-8)


@given(st.integers(20, 5000))
def test_linear_rescaled_ends_in_noise_at_every_number_of_steps(T):
    # Σ β_t = 1000 (β_start + β_end)/2 = 10.05 whatever T is, and log(1 − β) ≤ −β
    schedule = schedules.linear(T, rescale=True).double()
    assert schedule.betas.sum().item() == pytest.approx(10.05, rel=1e-9)
    assert schedule.alpha_bar[-1] <= math.exp(-10.05)


@given(st.integers(1, 300), st.floats(-2, 2), st.floats(0.1, 2))
def test_log_snr_of_laplace_has_the_laplace_distribution(T, mu, b):
    # P(λ > λ_t) = t/T, which is the upper tail of Laplace(μ, b)
    from scipy.stats import laplace

    log_snr = schedules.laplace(T, mu=mu, b=b).double().log_snr[1:T]
    expected = torch.arange(1, T).double() / T
    torch.testing.assert_close(torch.as_tensor(laplace.sf(log_snr, mu, b)), expected, rtol=1e-6, atol=1e-9)


@given(st.integers(1, 300), st.integers(4, 1024))
def test_the_shift_is_that_of_an_average_over_pixels(T, side):
    # (side/noise_d)² pixels that are averaged into one raise SNR by that factor: the average has the unshifted SNR
    here = schedules.shifted_cosine(T, image_size=side).double().log_snr[1:]
    base = schedules.shifted_cosine(T, image_size=64).double().log_snr[1:]
    expected = base - 2 * math.log(side / 64)
    torch.testing.assert_close(here, expected, rtol=1e-7, atol=1e-7)
    oblong = schedules.shifted_cosine(T, image_size=[2 * side, 2 * side * 4]).double().log_snr[1:]
    square = schedules.shifted_cosine(T, image_size=4 * side).double().log_snr[1:]
    torch.testing.assert_close(oblong, square, rtol=0, atol=0)


def test_unshifted_cosine_is_the_cosine_of_salimans_and_ho():
    # without a shift, and over the whole range of log SNR, ᾱ_t = cos²(π/2 · t/T)
    schedule = schedules.shifted_cosine(image_size=64, min_log_snr=-40, max_log_snr=40).double()
    t = torch.arange(1, 1000).double()
    torch.testing.assert_close(schedule.alpha_bar[1:-1], torch.cos(math.pi / 2 * t / 1000) ** 2, rtol=1e-5, atol=1e-9)


@given(st.integers(1, 500), st.floats(-6, 0), st.floats(0.5, 6), st.floats(0.3, 1.5))
def test_sigmoid_lies_between_its_ends(T, start, end, tau):
    schedule = schedules.sigmoid(T, start=start, end=end, tau=tau).double()
    assert schedule.alpha_bar[-1].item() == pytest.approx(1e-9)
    mirrored = schedules.sigmoid(T, start=-end, end=-start, tau=tau).double()  # σ(−x) = 1 − σ(x)
    expected = 1 - schedule.alpha_bar.flip(0)[1:-1]
    torch.testing.assert_close(mirrored.alpha_bar[1:-1], expected, rtol=1e-6, atol=1e-8)


@given(some_betas)
def test_tables_of_any_betas(betas):
    schedule = schedules.from_betas(betas).double()
    assert schedule.num_steps == len(betas)
    assert schedule.alpha_bar[0] == 1
    assert schedule.log_snr[0] == math.inf
    assert (schedule.alpha_bar[1:] < schedule.alpha_bar[:-1]).all()
    torch.testing.assert_close(schedule.betas, torch.tensor(betas, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    total = schedule.sqrt_alpha_bar**2 + schedule.sqrt_one_minus_alpha_bar**2
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-14, atol=0)


@given(some_betas, st.floats(-2, 2), st.floats(-2, 2))
def test_posterior_is_bayes_rule(betas, x0, x_t):
    # q(x_{t−1}|x_t, x_0) ∝ q(x_t|x_{t−1}) q(x_{t−1}|x_0), a product of two Gaussians in x_{t−1}
    schedule = schedules.from_betas(betas).double()
    for t in range(1, len(betas) + 1):
        beta, before = schedule.betas[t - 1].item(), schedule.alpha_bar[t - 1].item()
        mean, variance = schedule.posterior(torch.tensor(x0).double(), torch.tensor(x_t).double(), torch.tensor(t))
        if t == 1:
            assert (mean.item(), variance.item()) == (pytest.approx(x0), 0)
            continue
        precision = (1 - beta) / beta + 1 / (1 - before)
        expected = (math.sqrt(1 - beta) * x_t / beta + math.sqrt(before) * x0 / (1 - before)) / precision
        assert variance.item() == pytest.approx(1 / precision, rel=1e-7)
        assert mean.item() == pytest.approx(
            expected, rel=1e-7, abs=2e-7
        )  # of two terms that may cancel, in float32 tables


@given(some_betas)
def test_posterior_marginalises_back(betas):
    # ∫ q(x_{t−1}|x_t, x_0) q(x_t|x_0) dx_t = q(x_{t−1}|x_0)
    schedule = schedules.from_betas(betas).double()
    one, zero = torch.ones(()).double(), torch.zeros(()).double()
    for t in range(1, len(betas) + 1):
        of_x0, variance = schedule.posterior(one, zero, torch.tensor(t))
        of_x_t, _ = schedule.posterior(zero, one, torch.tensor(t))
        torch.testing.assert_close(of_x0 + of_x_t * schedule.sqrt_alpha_bar[t], schedule.sqrt_alpha_bar[t - 1])
        total = of_x_t**2 * schedule.sqrt_one_minus_alpha_bar[t] ** 2 + variance
        torch.testing.assert_close(total, schedule.sqrt_one_minus_alpha_bar[t - 1] ** 2)


def test_beta_tilde_of_ho_et_al():
    schedule = schedules.linear().double()
    a = schedule.alpha_bar
    x = torch.zeros(1, 1, 1, 1).double()
    for t in (1, 2, 500, 1000):
        _, variance = schedule.posterior(x, x, index(t))
        expected = (1 - a[t - 1]) / (1 - a[t]) * schedule.betas[t - 1]  # Ho et al. 2020, Eq. 7
        assert variance.item() == pytest.approx(expected.item(), rel=1e-9)


def test_q_sample_mixes_signal_and_noise():
    schedule = schedules.linear()
    x0, noise = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    x_t = schedule.q_sample(x0, index([1, 500, 1000]), noise)
    for i, t in enumerate((1, 500, 1000)):
        a = math.prod((1 - schedule.betas[:t]).tolist())
        torch.testing.assert_close(x_t[i], math.sqrt(a) * x0[i] + math.sqrt(1 - a) * noise[i])
    torch.testing.assert_close(schedule.q_sample(x0, torch.tensor(0), noise), x0)


def test_tables_stay_float32_in_low_precision_and_can_be_float64():
    schedule = schedules.linear()
    narrow = torch.nn.Sequential(torch.nn.Linear(2, 2), schedules.linear()).to(torch.bfloat16)
    assert narrow[0].weight.dtype == torch.bfloat16
    assert narrow[1].alpha_bar.dtype == torch.float32
    torch.testing.assert_close(narrow[1].log_snr, schedule.log_snr, rtol=0, atol=0)
    exact = schedules.linear().double()
    assert exact.alpha_bar.dtype == torch.float64
    assert (exact.alpha_bar.diff() < 0).all()
    torch.testing.assert_close(1 - exact.alpha_bar[1:] / exact.alpha_bar[:-1], exact.betas, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.from_betas([0.1, -0.1]),
        lambda: schedules.from_betas([0.1, 1.1]),
        lambda: schedules.from_betas([0.1, math.nan]),
        lambda: schedules.from_alpha_bar([0.9, 0.9]),
        lambda: schedules.from_alpha_bar([0.9, 1.1]),
    ],
)
def test_lists_with_betas_outside_their_range_are_refused(make):
    with pytest.raises(ValueError, match=r"^beta_2 = 1 - alpha_bar_2/alpha_bar_1 must be in \(0, 1\], got "):
        make()


@pytest.mark.parametrize("name", ["linear", "quadratic", "sigmoid_beta"])
@pytest.mark.parametrize("key", ["beta_start", "beta_end"])
@pytest.mark.parametrize("value", [0, -0.1, 1.5, math.nan, math.inf])
def test_ends_outside_their_range_are_refused(name, key, value):
    with pytest.raises(ValueError, match=rf"^{key} must be a number in \(0, 1\], got {value}$"):
        FAMILIES[name](**{key: value})


shifted = FAMILIES["shifted_cosine"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(schedules.from_betas, []), r"betas must be a list of numbers, .*, got \[\]"),
        (partial(schedules.from_betas, 0.1), "betas must be a list of numbers, .*, got 0.1"),
        (partial(schedules.from_betas, ["a"]), r"betas must be a list of numbers, .*, got \['a'\]"),
        (partial(schedules.from_betas, [[0.1]]), r"betas must be a list of numbers, .*, got \[\[0.1\]\]"),
        (
            partial(schedules.from_betas, [0.1, 1.0, 0.1]),
            "beta_3 .* got nan: alpha_bar must .* reach 0 at the last step only",
        ),
        (partial(schedules.from_alpha_bar, []), r"alpha_bar must be a list of numbers, .*, got \[\]"),
        (partial(schedules.linear, 10, rescale=True), "num_steps must be an integer of at least 20, got 10: .*rescale"),
        (partial(schedules.constant, beta=0), r"beta must be a number in \(0, 1\], got 0"),
        (partial(schedules.constant, beta=0.9), "got nan: alpha_bar must .* up to T=1000, and reach 0 at the last"),
        (partial(schedules.cosine, max_beta=1.5), r"max_beta must be a number in \(0, 1\], got 1.5"),
        (partial(schedules.cosine, s=-0.1), r"s must be a number in \[0, 1\], got -0.1"),
        (partial(schedules.cosine, s=math.nan), r"s must be a number in \[0, 1\], got nan"),
        (partial(schedules.sigmoid, start=3), r"start must be a number in \[-100, 3.0\), got 3"),
        (partial(schedules.sigmoid, tau=0), "tau must be a positive number, got 0"),
        (partial(schedules.sigmoid, clip_min=1), r"clip_min must be a number in \[0, 1\), got 1"),
        (partial(schedules.sigmoid, tau=0.1), "beta_847 .* got 0: alpha_bar must fall at every step"),
        (partial(schedules.laplace, b=0), "b must be a positive number, got 0"),
        (partial(schedules.laplace, mu=math.inf), r"mu must be a number in \(-inf, inf\), got inf"),
        (partial(schedules.laplace, b=20), "beta_1 .* got 0: alpha_bar must fall at every step"),
        (
            partial(schedules.shifted_cosine, image_size=0),
            r"image_size must be an integer from 1 to 65536 or \[height, width\], got 0",
        ),
        (partial(schedules.shifted_cosine, image_size=[8]), r"image_size must be .*, got \[8\]"),
        (partial(shifted, noise_d=0), "noise_d must be an integer from 1 to 65536, got 0"),
        (partial(shifted, min_log_snr=20), r"min_log_snr must be a number in \[-100, 15.0\), got 20"),
        (partial(shifted, max_log_snr=math.inf), r"max_log_snr must be a number in \[-100, 100\], got inf"),
        (
            lambda: schedules.rescale_zero_terminal_snr(schedules.linear(1)),
            "num_steps must be an integer of at least 2, got 1",
        ),
    ],
)
def test_settings_that_make_no_schedule_are_refused(make, message):
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("T", [0, -3, 1.5, None])
def test_bad_numbers_of_steps_are_refused(name, T):
    with pytest.raises(ValueError, match=f"num_steps must be an integer from 1 to 1000000, got {shown(T)}"):
        FAMILIES[name](T)


@pytest.mark.parametrize(("method", "name"), [("q_sample", "x0"), ("step", "x")])
@pytest.mark.parametrize(("t", "noise"), [((4,), (4, 1, 4, 4)), ((), (1, 1, 4, 4)), ((4, 1), (4, 1, 4, 4))])
def test_shapes_that_would_broadcast_along_the_wrong_axis_are_refused(method, name, t, noise):
    forward = getattr(schedules.linear(), method)
    with pytest.raises(ValueError, match=f"noise must be shaped like {name} .* and t"):
        forward(torch.zeros(4, 1, 4, 4), torch.ones(t, dtype=torch.long), torch.zeros(noise))


def test_a_forward_step_keeps_four_fifths_of_x_and_adds_three_fifths_of_noise():
    # β = 0.36 by hand: √(1−β) = 0.8 and √β = 0.6; another t of the batch has β = 0.64, the other way round
    schedule = schedules.from_betas([0.36, 0.64])
    x, noise = torch.full((2, 1, 2, 2), 10.0), torch.full((2, 1, 2, 2), 1.0)
    stepped = schedule.step(x, index([1, 2]), noise)
    torch.testing.assert_close(stepped[0], torch.full((1, 2, 2), 8.6), rtol=1e-5, atol=0)
    torch.testing.assert_close(stepped[1], torch.full((1, 2, 2), 6.8), rtol=1e-5, atol=0)
    assert torch.equal(schedule.step(x[:1], torch.tensor(1), noise[:1]), stepped[:1])


@pytest.mark.parametrize("T", [1, 10, 1000])
def test_all_forward_steps_together_are_the_one_big_step(T):
    """Eq. 25.1 T times over gives Eq. 25.3: a Gaussian of mean √ᾱ_T x_0 and variance 1 − ᾱ_T, ᾱ_T multiplied in fractions."""
    first, last = Fraction(1, 10_000), Fraction(2, 100)
    alpha_bar = Fraction(1)
    for t in range(T):
        alpha_bar *= 1 - first - (last - first) * t / max(T - 1, 1)
    schedule = schedules.linear(T).double()
    # A step is affine in x_{t−1} and ε, and each step's noise is independent: a 1 in x_0, and a 1 in each ε, go through all
    # steps side by side, so that entry 0 becomes the factor of x_0 and entry s that of the noise of step s.
    x = torch.zeros(T + 1, dtype=torch.float64)
    x[0] = 1
    for t in range(1, T + 1):
        noise = torch.zeros_like(x)
        noise[t] = 1
        x = schedule.step(x, torch.tensor(t), noise)
    assert x[0].item() == pytest.approx(math.sqrt(alpha_bar), rel=1e-10)
    assert x[1:].square().sum().item() == pytest.approx(float(1 - alpha_bar), rel=1e-10)


def test_a_forward_step_to_zero_terminal_snr_is_noise_alone():
    schedule = schedules.rescale_zero_terminal_snr(schedules.linear(10))
    x, noise = torch.randn(2, 4, 1, 8, 8)
    assert torch.equal(schedule.step(x, torch.tensor(10), noise), noise)


def test_the_posterior_undoes_a_forward_step():
    # Bayes' rule for Gaussians, with x_0 = 0: E[x_{t−1} | x_t] = cov(x_{t−1}, x_t)/var(x_t) · x_t
    schedule = schedules.linear().double()
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for t in (2, 300, 1000):
        kept = schedule.step(one, torch.tensor(t), zero)
        added = schedule.step(zero, torch.tensor(t), one)
        before = 1 - schedule.alpha_bar[t - 1]
        mean, variance = schedule.posterior(zero, one, torch.tensor(t))
        assert mean.item() == pytest.approx((before * kept / (before * kept**2 + added**2)).item(), rel=1e-9)
        assert variance.item() == pytest.approx((before * added**2 / (before * kept**2 + added**2)).item(), rel=1e-9)

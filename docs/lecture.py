# %% [markdown]
# # The lecture as a notebook
#
# AIL 862, lecture 25, line by line: the forward process, training and sampling, each written out in plain PyTorch
# first and then done by `ddpm_lightning`, with an assertion that both agree to $10^{-5}$. Equation numbers are those
# of Murphy, [*Probabilistic Machine Learning: Advanced Topics*](https://probml.github.io/pml-book/book2.html),
# section 25.2. The code fragments of the slides come from tsmatz's notebook
# [`02-ddpm.ipynb`](https://github.com/tsmatz/diffusion-tutorials/blob/master/02-ddpm.ipynb); the lines below are our
# own.
#
# Everything runs on a CPU in about two minutes and downloads nothing. Models are small and trained briefly: they show
# what happens, not how good it can get.

# %%
import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

from ddpm_lightning import DDPM, MLP, Ancestral, Denoiser, Loss, UNet, schedules
from ddpm_lightning.data.datasets import digits
from ddpm_lightning.data.points import two_moons
from ddpm_lightning.images import SeededNoise, from_uint8, grid, to_uint8
from ddpm_lightning.models.layers import ResBlock

torch.manual_seed(0)
images = from_uint8(digits().images)  # (1797, 1, 8, 8) in [−1, 1]
T = 1000


def show(sheet, title="", size=6.0):
    """A contact sheet of images in [−1, 1], or a row of them."""
    _, axes = plt.subplots(figsize=(size, size * sheet.shape[1] / sheet.shape[2]), dpi=80)
    axes.imshow(sheet[0], cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, fontsize=9)
    axes.axis("off")
    plt.show()


def agree(plain, framework, tolerance=1e-5):
    """Assert that two tensors are equal to 1e-5, and print by how much they differ."""
    difference = (plain - framework).abs().max().item()
    assert difference <= tolerance, difference
    print(f"largest difference: {difference:.1e}")


# %% [markdown]
# ## The forward process
#
# **Eq. 25.4.** $\alpha_t = 1 - \beta_t$ and $\bar\alpha_t = \prod_{s \le t} \alpha_s$, with $\beta_t$ in equal steps
# from $10^{-4}$ to $0.02$. In the plain lines index 0 is $t = 1$. The framework's table has $T + 1$ entries, and
# index 0 is clean data, $\bar\alpha_0 = 1$.

# %%
beta = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
alpha = 1 - beta
alpha_bar = torch.cumprod(alpha, dim=0)

schedule = schedules.linear(T)
agree(beta, schedule.betas)
agree(alpha_bar, schedule.alpha_bar[1:])

# %% [markdown]
# **Eq. 25.1.** One step, $x_t = \sqrt{1-\beta_t}\, x_{t-1} + \sqrt{\beta_t}\, \epsilon$.

# %%
t = 300
x_before, noise = torch.randn(2, 16, 1, 8, 8)
plain = (1 - beta[t - 1]).sqrt().float() * x_before + beta[t - 1].sqrt().float() * noise
agree(plain, schedule.step(x_before, torch.tensor(t), noise))

# %% [markdown]
# **Eq. 25.2.** $q(x_{1:T} \mid x_0) = \prod_t q(x_t \mid x_{t-1})$: the steps one after the other, each with noise of
# its own. Rows: four digits. Columns: $t = 0, 100, 200, \dots, 1000$.

# %%
x = images[:4]
columns = [x]
for t in range(1, T + 1):
    x = schedule.step(x, torch.tensor(t), torch.randn_like(x))
    if t % 100 == 0:
        columns.append(x)
show(grid(to_uint8(torch.stack(columns, dim=1).flatten(0, 1)), columns=11), "Eq. 25.1, step by step")

# %% [markdown]
# **Eq. 25.3.** The same distribution in one step from $x_0$: $x_t = \sqrt{\bar\alpha_t}\, x_0 +
# \sqrt{1-\bar\alpha_t}\, \epsilon$. The noise below is the same in all columns, so a digit fades smoothly.

# %%
x0, noise = images[:4], torch.randn(4, 1, 8, 8)
t = torch.randint(1, T + 1, (4, 1, 1, 1))
plain = alpha_bar[t - 1].sqrt().float() * x0 + (1 - alpha_bar[t - 1]).sqrt().float() * noise
agree(plain, schedule.q_sample(x0, t, noise))

columns = [schedule.q_sample(x0, torch.tensor(t), noise) for t in range(0, T + 1, 100)]
show(grid(to_uint8(torch.stack(columns, dim=1).flatten(0, 1)), columns=11), "Eq. 25.3, in one step")

# %% [markdown]
# Do both have the same mean and variance? Twenty thousand copies of one pixel, $x_0 = 0.5$, take 1,000 steps.

# %%
x = torch.full((20_000, 1, 1, 1), 0.5)
print("   t     mean  (Eq. 25.3)    std  (Eq. 25.3)")
for t in range(1, T + 1):
    x = schedule.step(x, torch.tensor(t), torch.randn_like(x))
    if t in (10, 100, 300, 1000):
        mean, std = 0.5 * schedule.sqrt_alpha_bar[t], schedule.sqrt_one_minus_alpha_bar[t]
        print(f"{t:4d} {x.mean():8.3f} {mean:11.3f} {x.std():7.3f} {std:10.3f}")
        assert abs(x.mean() - mean) < 0.03
        assert abs(x.std() - std) < 0.03

# %% [markdown]
# ## Why T = 1000
#
# Sampling starts from $\mathcal{N}(0, I)$, so that $x_T$ must have forgotten $x_0$: $\bar\alpha_T \approx 0$. With
# $\beta$ from $10^{-4}$ to $0.02$, a hundred steps are far from it.

# %%
rows = []
print("   T    alpha_bar_T    of x_0 remains")
for steps in (100, 500, 1000):
    short = schedules.linear(steps)
    print(f"{steps:4d} {short.alpha_bar[-1]:14.3g} {short.sqrt_alpha_bar[-1]:14.1%}")
    rows.append(short.q_sample(images[:10], torch.tensor(steps), torch.randn(10, 1, 8, 8)))
show(grid(to_uint8(torch.cat(rows)), columns=10), "x_T for T = 100, 500 and 1000: one row each")

# %% [markdown]
# ## The residual block
#
# Norm, SiLU, convolution; plus the time embedding; norm, SiLU, dropout, convolution; plus the input. The network is a
# U-Net of such blocks.

# %%
block = ResBlock(8, 16, emb_dim=32, dropout=0.1, norm=lambda channels: torch.nn.GroupNorm(4, channels)).eval()
x, emb = torch.randn(2, 8, 8, 8), torch.randn(2, 32)

h = block.conv1(F.silu(block.norm1(x)))
h = h + block.emb(emb)[:, :, None, None]  # the time, as a shift of each channel
h = block.conv2(F.silu(block.norm2(h)))  # dropout is off in evaluation
plain = h + block.skip(x)  # a 1×1 convolution where the numbers of channels differ
agree(plain, block(x, emb))

# %% [markdown]
# ## Algorithm 25.1: training
#
# Five plain lines, and the same numbers from the framework's training step. It samples $t$ first and then $\epsilon$;
# from the same seed both see the same.


# %%
def digits_network():
    return UNet(
        1,
        1,
        base_channels=16,
        channel_multipliers=[1, 2],
        num_res_blocks=1,
        attention_levels=[],
        dropout=0.0,
        norm_groups=8,
    )


def loss_of(network, x0, schedule):
    """Algorithm 25.1: the loss whose gradient is taken."""
    t = torch.randint(1, schedule.num_steps + 1, (len(x0), 1, 1, 1))  # t ~ U{1, …, T}
    noise = torch.randn_like(x0)  # ε ~ N(0, I)
    x_t = schedule.sqrt_alpha_bar[t] * x0 + schedule.sqrt_one_minus_alpha_bar[t] * noise  # Eq. 25.3
    predicted = network(x_t, t.flatten() - 1)  # ε_θ(x_t, t), told 0..T−1
    return (noise - predicted).square().mean()  # L_simple


network = digits_network()
for parameter in network.parameters():  # its last layers begin at zero, where much would agree by accident
    torch.nn.init.normal_(parameter, std=0.1)
module = DDPM(Denoiser(network, schedule), Loss(), torch.optim.Adam)

torch.manual_seed(1)
plain = loss_of(network, images[:64], schedule)
torch.manual_seed(1)
framework = module.training_step(images[:64], 0)["loss"]
agree(plain, framework)
both = [torch.autograd.grad(loss, network.conv_in.weight)[0] for loss in (plain, framework)]
agree(both[0] / both[1].abs().max(), both[1] / both[1].abs().max())

# %% [markdown]
# Now train. `Loss` is the framework's `L_simple` for any prediction type; the exercises change the schedule and the
# prediction.


# %%
def train(network, data, *, steps, num_steps=T, prediction="epsilon", rate=2e-3, batch_size=32):
    """Algorithm 25.1 with Adam and a linear warm-up."""
    denoiser, loss = Denoiser(network, schedules.linear(num_steps), prediction=prediction), Loss()
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=50)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    torch.manual_seed(0)
    losses = []
    for _ in range(steps):
        x0 = data[torch.randint(len(data), (batch_size,))]
        t, weight = loss.times(batch_size, denoiser.schedule)
        noise = torch.randn_like(x0)
        losses.append((weight * loss(denoiser, x0, denoiser.schedule.q_sample(x0, t, noise), t, noise)).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
        warm_up.step()
        decay.step()
    return denoiser.eval(), torch.stack(losses).detach()


torch.manual_seed(0)
denoiser, losses = train(digits_network(), images, steps=900)
_, axes = plt.subplots(figsize=(5, 2), dpi=80)
axes.plot(losses.unfold(0, 25, 25).mean(1))
axes.set(xlabel="training steps / 25", ylabel="L_simple", ylim=(0, 0.5))
plt.show()

# %% [markdown]
# ## Algorithm 25.2: sampling
#
# The printed line, with the bar that the slides lost and the fresh noise called $z$:
#
# $$x_{t-1} = \frac{1}{\sqrt{\alpha_t}} \left( x_t - \frac{1-\alpha_t}{\sqrt{1-\bar\alpha_t}}\, \epsilon_\theta(x_t, t) \right) + \sigma_t z,
# \qquad \sigma_t^2 = \tilde\beta_t = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\, \beta_t$$
#
# The framework writes it another way. It estimates $x_0$, takes the mean of $q(x_{t-1} \mid x_t, \hat x_0)$, and may
# clip the estimate in between. Both are compared over all 1,000 steps in float64.


# %%
def algorithm_25_2(network, x, randn, *, lost_bar=False, one_letter=False):
    """Algorithm 25.2 line by line; the two options are slips of the slides."""
    for t in range(T, 0, -1):
        a, ab, ab_before = alpha[t - 1], alpha_bar[t - 1], alpha_bar[t - 2] if t > 1 else torch.tensor(1.0)
        sigma = ((1 - ab_before) / (1 - ab) * (1 - a)).sqrt()  # 0 at t = 1
        eps = network(x, torch.full((len(x),), t - 1))
        z = eps if one_letter else randn(x)
        x = (x - (1 - a) / (1 - (a if lost_bar else ab)).sqrt() * eps) / a.sqrt() + sigma * z
    return x


def clipped(network, x, randn, *, clip):
    """The same by way of x̂_0, which is kept within ±clip."""
    for t in range(T, 0, -1):
        b, ab, ab_before = beta[t - 1], alpha_bar[t - 1], alpha_bar[t - 2] if t > 1 else torch.tensor(1.0)
        eps = network(x, torch.full((len(x),), t - 1))
        x0 = ((x - (1 - ab).sqrt() * eps) / ab.sqrt()).clamp(-clip, clip)
        mean = ab_before.sqrt() * b / (1 - ab) * x0 + (1 - b).sqrt() * (1 - ab_before) / (1 - ab) * x
        x = mean + ((1 - ab_before) / (1 - ab) * b).sqrt() * randn(x)
    return x


def seeded(count):
    """Noise of `count` images, the same for whoever asks: image i's depends on i and on how often it was asked for."""
    return SeededNoise(0, range(count))


x_T = torch.randn(2, 1, 8, 8, dtype=torch.float64)
_ = denoiser.double()
with torch.no_grad():
    agree(algorithm_25_2(denoiser.model, x_T, seeded(2)), Ancestral(clip=None)(denoiser, x_T, randn=seeded(2)))
    agree(clipped(denoiser.model, x_T, seeded(2), clip=1), Ancestral(clip=1)(denoiser, x_T, randn=seeded(2)))
_ = denoiser.float()

# %% [markdown]
# A grid of 10 × 10 samples by Algorithm 25.2 as printed, all 1,000 steps, no clipping of $\hat x_0$.

# %%
x_T = torch.randn(100, 1, 8, 8)
outside = {}
for step in Ancestral(clip=None).trajectory(denoiser, x_T, randn=seeded(100)):
    if step.t in (999, 799, 599, 399, 199, 0):  # estimated at t = step.t + 1
        outside[step.t + 1] = (step.x0.abs() > 1).float().mean().item()
unclipped = step.x
show(grid(to_uint8(unclipped), columns=10, cell=16), "Algorithm 25.2, as printed", size=5.0)

# %% [markdown]
# ### What clipping changes
#
# The share of the pixels of $\hat x_0$ outside $[-1, 1]$ along that trajectory; then twenty samples from the same
# noise with and without `clip=1`. "Nearest" is the mean distance of a sample to the real digit nearest to it, per
# pixel (lower is closer), and that of real digits to the nearest other one.


# %%
def nearest(samples, real=images):
    """The mean over samples of min_i ‖x − x_i‖/√D, an image's own copy left out."""
    distances = torch.cdist(samples.clamp(-1, 1).flatten(1), real.flatten(1)) / 8
    return distances.masked_fill(distances == 0, torch.inf).min(1).values.mean().item()


for t, share in sorted(outside.items(), reverse=True):
    print(f"t = {t:4d}: {share:6.1%} of the pixels of x_0's estimate lie outside [−1, 1]")
pair = {None: unclipped[:20], 1: Ancestral(clip=1)(denoiser, x_T[:20], randn=seeded(20))}
for clip, samples in pair.items():
    print(
        f"clip={clip}: {(samples.abs() > 1).float().mean():.1%} of the samples' pixels outside, nearest {nearest(samples):.3f}"
    )
print(
    f"real digits: nearest {nearest(images[:200]):.3f}; mean change of a pixel by clipping: {(pair[None] - pair[1]).abs().mean():.3f}"
)
show(
    grid(to_uint8(torch.cat([*pair.values()])), columns=20),
    "above without clipping, below with it, from the same noise",
    size=9.0,
)

# %% [markdown]
# ## Three slips in the slides
#
# 1. **A lost bar**: $\sqrt{1-\alpha_t}$ in place of $\sqrt{1-\bar\alpha_t}$ is up to ten times too small, so each
#    step subtracts too much. The samples still look like digits, but much alike: variety is lost.
# 2. **One letter for two things**: $\epsilon$ is both the network's prediction and the fresh noise. Read literally,
#    the step adds part of the prediction back and no fresh noise, and diverges.
# 3. **Two names for one thing**: `alpha_bars` and `alphaBars` are both $\bar\alpha$.
#
# The first row is right, the second lacks the bar, the third takes the prediction for the fresh noise.

# %%
with torch.no_grad():
    lost_bar = algorithm_25_2(denoiser.model, x_T[:8], seeded(8), lost_bar=True)
    one_letter = algorithm_25_2(denoiser.model, x_T[:8], seeded(8), one_letter=True)
rows = {"right": unclipped[:8], "lost bar": lost_bar, "one letter": one_letter}
print("              std of a pixel   std over samples")
for name, samples in {**rows, "real digits": images}.items():
    print(f"{name:<12} {samples.std():14.2f} {samples.std(0).mean():18.2f}")
show(grid(to_uint8(torch.cat([*rows.values()])), columns=8), "right, lost bar, one letter", size=4.0)

alphaBars = alpha_bars = alpha_bar  # slip 3
assert alphaBars is alpha_bars

# %% [markdown]
# ## Exercises
#
# Each changes one thing, on digits and on two moons: points in the plane, where a sample's error is easy to see.
# First the moons' own model, and the function that shows an answer. All sample with `clip=1` but for the last
# exercise. "Nearest" is as above; the moons have the energy distance $2E|X-Y| - E|X-X'| - E|Y-Y'|$ to real points
# (lower is better).

# %%
moons = two_moons(4000).images  # (4000, 2, 1, 1)
torch.manual_seed(0)
moons_T = torch.randn(500, 2, 1, 1)
moons_denoiser, _ = train(MLP(2, 2, hidden_size=64), moons, steps=700, batch_size=256)


def energy(samples, real=moons[:1000]):
    x, y = samples.flatten(1), real.flatten(1)
    return (2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()).item()


def answer(title, figures, points):
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 2.2), width_ratios=[4, 1], dpi=80)
    left.imshow(grid(to_uint8(figures), columns=10, cell=16)[0], cmap="gray", vmin=0, vmax=255)
    left.axis("off")
    left.set_title(f"{title}: nearest {nearest(figures):.3f}", fontsize=9)
    right.scatter(*moons[:500].flatten(1).T, s=1, color="lightgray")
    right.scatter(*points.flatten(1).T, s=1)
    right.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), xticks=[], yticks=[])
    right.set_title(f"energy distance {energy(points):.4f}", fontsize=9)
    plt.show()


def sampled(denoiser, noise, *, clip=1, variance="small"):
    return Ancestral(clip=clip, variance=variance)(denoiser, noise, randn=seeded(len(noise)))


answer("T = 1000, ε, small variance, clip=1", pair[1], sampled(moons_denoiser, moons_T))

# %% [markdown]
# **1. What happens with T = 100 and the same $\beta$?** Train and sample again.
#
# *Answer.* $\bar\alpha_{100} = 0.36$: 60 % of $x_0$ is still in $x_T$, but sampling starts from noise alone, which
# the network has never seen at $t = T$. The digits keep gray remains of that noise; on the moons little shows.
# `schedules.linear(100, rescale=True)`, with betas ten times as large, is the remedy.

# %%
torch.manual_seed(0)
short_digits, _ = train(digits_network(), images, steps=300, num_steps=100)
short_moons, _ = train(MLP(2, 2, hidden_size=64), moons, steps=700, num_steps=100, batch_size=256)
answer("T = 100", sampled(short_digits, x_T[:20]), sampled(short_moons, moons_T))

# %% [markdown]
# **2. What does `variance="large"`, $\sigma_t^2 = \beta_t$, change?** Nothing has to be trained anew.
#
# *Answer.* Next to nothing with all 1,000 steps: $\tilde\beta_t/\beta_t = (1-\bar\alpha_{t-1})/(1-\bar\alpha_t)$
# differs from 1 at the first few $t$ only, where both variances are small, and the last step adds no noise either
# way. With few steps the large variance is much the worse (Song et al. 2021, Table 1).

# %%
print("   t   small/large variance")
for t in (2, 3, 10, 100, 1000):
    small, large = schedule.step_variances(torch.tensor(t), torch.tensor(t - 1))
    print(f"{t:4d} {small / large:14.4f}")
answer(
    "variance=large",
    sampled(denoiser, x_T[:20], variance="large"),
    sampled(moons_denoiser, moons_T, variance="large"),
)

# %% [markdown]
# **3. What if the network predicts $x_0$ and not $\epsilon$?**
#
# *Answer.* The sampler is the same, since it asks for $\hat x_0$ only. What changes is the weight of the timesteps:
# the squared error of $\epsilon$ is $\bar\alpha_t/(1-\bar\alpha_t)$ times that of $x_0$, so that $L_{simple}$ on
# $x_0$ cares more about noisy timesteps, which decide the shape, and less about clean ones, which decide the details.
# The digits come out smooth after a third of the training steps; the moons get too thin.

# %%
torch.manual_seed(0)
x0_digits, _ = train(digits_network(), images, steps=300, prediction="x0")
x0_moons, _ = train(MLP(2, 2, hidden_size=64), moons, steps=700, prediction="x0", batch_size=256)
answer("prediction=x0", sampled(x0_digits, x_T[:20]), sampled(x0_moons, moons_T))

# %% [markdown]
# **4. What does `clip=null` change?**
#
# *Answer.* At large $t$ the estimate $\hat x_0$ divides the error of $\epsilon_\theta$ by $\sqrt{\bar\alpha_t}$, 0.006 at
# $t = 1000$: most pixels of it lie far outside $[-1, 1]$, as counted above. Yet the digits hardly change, since the mean
# of $q(x_{t-1} \mid x_t, \hat x_0)$ gives $\hat x_0$ little weight at such $t$, and the 1,000 steps correct each other. Of the
# moons' points a few end far outside, and their energy distance doubles.

# %%
answer("clip=null", pair[None], sampled(moons_denoiser, moons_T, clip=None))

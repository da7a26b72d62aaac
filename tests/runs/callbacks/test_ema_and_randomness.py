import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from ddpm_lightning import UserError
from ddpm_lightning.callbacks import EMA, PostHocEMA, Randomness
from ddpm_lightning.callbacks.ema import averaged_weights
from ddpm_lightning.runs.post_hoc import reconstruct_ema
from tests.helpers.walk import Walk


@pytest.fixture
def fit(tmp_path):
    def run(callbacks, steps, accumulate=1, **options):
        module = Walk()
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            accumulate_grad_batches=accumulate,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **options,
        )
        trainer.fit(module, DataLoader(torch.zeros(6, 1)), DataLoader(torch.zeros(2, 1)))
        return module, trainer

    return run


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
]


def averages(decay, steps):
    average, path = 0.0, [0.0]
    for n in range(steps):
        d = min(decay, (1 + n) / (10 + n))
        average = d * average + (1 - d) * -(n + 1)
        path.append(average)
    return path


@pytest.mark.parametrize("accumulate", [1, 3])
def test_ema_follows_its_recursion_once_per_optimiser_step(fit, accumulate):
    ema = EMA(0.5)
    module, trainer = fit([ema], 8, accumulate=accumulate)
    checkpoint = {}
    ema.on_save_checkpoint(trainer, module, checkpoint)
    assert module.w.item() == pytest.approx(-8)
    assert checkpoint["ema_state_dict"]["w"].item() == pytest.approx(averages(0.5, 8)[-1], rel=1e-6)
    assert ema.current_decay == min(0.5, 9 / 18)
    assert ema._steps == 8


def test_a_constant_decay_weighs_the_first_weights_by_its_power(fit):
    ema = EMA(0.5, warmup=False)
    fit([ema], 5)
    assert ema.average["w"].item() == pytest.approx(-(5 - 1 + 0.5**5))  # of 0, -1, ..., -5


@pytest.mark.parametrize("accumulate", [1, 2])
def test_any_width_is_reconstructed_from_snapshots(fit, tmp_path, accumulate):
    direct = EMA(std=0.07)
    post_hoc = PostHocEMA(tmp_path / "ema", every_n_steps=5, max_snapshots=10)
    fit([direct, post_hoc], 40, accumulate=accumulate)
    exact = {s: average.average["w"].item() for s, average in post_hoc._averages.items()}
    for std, value in {**exact, 0.07: direct.average["w"].item()}.items():
        found, distance = reconstruct_ema(tmp_path, std=std)
        assert found["w"].item() == pytest.approx(value, rel=1e-3)
        assert distance < (0.02 if std == 0.07 else 1e-6)
    # At an earlier snapshot: an average of 0.05 of the way there, for weights that are -n at step n.
    early, _ = reconstruct_ema(tmp_path, std=0.05, step=20)
    g = 16.972
    assert early["w"].item() == pytest.approx(
        -sum(n * ((n / 20) ** (g + 1) - ((n - 1) / 20) ** (g + 1)) for n in range(21)), rel=1e-3
    )
    for wrong, says in (
        ({"std": 0.05, "step": 21}, "step must be 5, 10"),
        ({"std": 0}, r"std must be a number in \(0, 0.28\]"),
    ):
        with pytest.raises(UserError, match=says):
            reconstruct_ema(tmp_path, **wrong)
    snapshot = tmp_path / "ema" / "step_20.ckpt"
    content = bytearray(snapshot.read_bytes())
    content[len(content) // 3] ^= 1
    snapshot.write_bytes(content)
    with pytest.raises(UserError, match=r"step_20.ckpt cannot be used \(.*remove it; the other snapshots"):
        reconstruct_ema(tmp_path, std=0.07)


def test_snapshots_stay_few_and_end_with_the_last_step(fit, tmp_path):
    folder = tmp_path / "ema"
    folder.mkdir()
    (folder / "step_900.ckpt").touch()  # left by a run that went further
    fit([PostHocEMA(folder, every_n_steps=1, max_snapshots=4)], 21)
    # Every step to 4, every second one to 8, every fourth one to 16, every eighth one to 32.
    assert sorted(path.name for path in folder.iterdir()) == ["step_16.ckpt", "step_21.ckpt", "step_8.ckpt"]


def test_validation_sees_the_average_and_training_goes_on_with_the_raw_weights(fit):
    module, _ = fit([EMA(0.9)], 6, val_check_interval=3, check_val_every_n_epoch=None, num_sanity_val_steps=0)
    path = averages(0.9, 6)
    assert module.seen_in_validation == pytest.approx([path[3]] * 2 + [path[6]] * 2, rel=1e-6)
    assert module.w_after == [-3, -6]


def test_averaged_weights_come_and_go(fit):
    ema = EMA(0.9)
    module, _ = fit([ema], 4)
    with averaged_weights(module, ema):
        assert module.w.item() == pytest.approx(averages(0.9, 4)[-1], rel=1e-6)
        assert not module.training
        assert not torch.is_grad_enabled()
    assert module.w.item() == -4
    with pytest.raises(RuntimeError), averaged_weights(module, ema):
        raise RuntimeError
    with averaged_weights(module, None):
        assert module.w.item() == -4
    assert module.w.item() == -4
    assert module.training


def test_a_resumed_average_goes_on(fit):
    ema = EMA(0.9)
    ema.on_load_checkpoint(None, None, {"ema_state_dict": {"w": torch.tensor([5.0])}, "global_step": 100})
    module = Walk()
    ema.on_fit_start(None, module)
    assert ema._average["w"].item() == 5
    assert ema.current_decay == min(0.9, 101 / 110)


def test_randomness_is_a_function_of_seed_and_step(fit):
    first, again, other = (fit([Randomness(seed)], 4, accumulate=2)[0].draws for seed in (0, 0, 1))
    assert first == again
    assert first[::2] == first[1::2]  # alike in both batches of a step
    assert len(set(first)) == len(first) / 2 >= 4
    assert not set(first) & set(other)


def test_randomness_goes_on_where_its_state_says(fit):
    whole = fit([Randomness(0)], 5)[0].draws
    rest = Randomness(0)
    rest.load_state_dict({"steps": 3})
    assert fit([rest], 2)[0].draws == whole[3:]

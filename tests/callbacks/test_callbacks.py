import csv

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from ddpm_lightning.callbacks import EMA, Randomness
from ddpm_lightning.callbacks.ema import averaged_weights
from ddpm_lightning.loggers import CSVLogger


class Walk(LightningModule):
    """One weight that takes a known path: w = 0, then one less for every optimiser step."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.shared_generator = torch.Generator()
        self.draws, self.seen_in_validation, self.w_after = [], [], []

    def training_step(self, batch, batch_idx):
        self.draws.append(torch.rand(()).item())
        return self.w.sum()

    def validation_step(self, batch, batch_idx):
        self.seen_in_validation.append(self.w.item())

    def on_validation_end(self):
        self.w_after.append(self.w.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


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


def test_validation_sees_the_average_and_training_goes_on_with_the_raw_weights(fit):
    module, _ = fit([EMA(0.9)], 6, val_check_interval=3, check_val_every_n_epoch=None, num_sanity_val_steps=0)
    path = averages(0.9, 6)
    assert module.seen_in_validation == pytest.approx([path[3]] * 2 + [path[6]] * 2, rel=1e-6)
    assert module.w_after == [-3, -6]


def test_averaged_weights_come_and_go(fit):
    module, trainer = fit([EMA(0.9)], 4)
    with averaged_weights(trainer, module):
        assert module.w.item() == pytest.approx(averages(0.9, 4)[-1], rel=1e-6)
        assert not module.training
        assert not torch.is_grad_enabled()
    assert module.w.item() == -4
    with pytest.raises(RuntimeError), averaged_weights(trainer, module):
        raise RuntimeError
    assert module.w.item() == -4


def test_a_resumed_average_goes_on(fit):
    ema = EMA(0.9)
    ema.on_load_checkpoint(None, None, {"ema_state_dict": {"w": torch.tensor([5.0])}, "global_step": 100})
    module = Walk()
    ema.on_fit_start(None, module)
    assert ema._average["w"].item() == 5
    assert ema.current_decay == min(0.9, 101 / 110)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_impossible_decays_are_refused(decay):
    with pytest.raises(ValueError, match=f"decay={decay}"):
        EMA(decay)


def test_randomness_is_a_function_of_seed_and_micro_batch(fit):
    first, again, other = (fit([Randomness(seed)], 4, accumulate=2)[0].draws for seed in (0, 0, 1))
    assert first == again
    assert len(set(first)) == len(first) >= 8
    assert not set(first) & set(other)


def test_randomness_goes_on_where_its_state_says(fit):
    whole = fit([Randomness(0)], 5)[0].draws
    rest = Randomness(0)
    rest.load_state_dict({"batches": 3})
    assert fit([rest], 2)[0].draws == whole[3:]


def test_ranks_draw_different_noise_and_share_what_they_must():
    draws, shared = [], []
    for rank in (0, 1):
        trainer, module = type("Fake", (), {"global_rank": rank})(), Walk()
        Randomness(0).on_train_batch_start(trainer, module, None, 0)
        draws.append(torch.rand(()).item())
        shared.append(torch.rand((), generator=module.shared_generator).item())
    assert draws[0] != draws[1]
    assert shared[0] == shared[1]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_rows_are_on_disk_at_once_and_new_metrics_get_columns(tmp_path):
    logger = CSVLogger(tmp_path / "run")
    logger.log_metrics({"a": 1.5}, step=1)
    assert rows(logger.path) == [{"step": "1", "a": "1.5"}]
    logger.log_metrics({"b": torch.tensor(2.0)}, step=2)
    logger.log_metrics({"a": 3.0}, step=3)
    assert rows(logger.path) == [
        {"step": "1", "a": "1.5", "b": ""},
        {"step": "2", "a": "", "b": "2.0"},
        {"step": "3", "a": "3.0", "b": ""},
    ]


def test_csv_goes_on_in_the_same_file(tmp_path):
    CSVLogger(tmp_path).log_metrics({"a": 1.0}, step=1)
    CSVLogger(tmp_path).log_metrics({"b": 2.0}, step=2)
    assert [row["step"] for row in rows(tmp_path / "metrics.csv")] == ["1", "2"]

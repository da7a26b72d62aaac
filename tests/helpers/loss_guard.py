"""Runs without pictures whose losses are spoiled."""

from tests.helpers.configs import NO_FIGURES
from tests.helpers.resuming import state

EACH = (
    *NO_FIGURES,
    "callbacks.checkpoint.every_n_train_steps=2",
    "trainer.max_steps=8",
    "trainer.val_check_interval=4",
)

ROLLBACK = (*EACH, "callbacks.loss_guard.rollback=3")


def final(folder):
    held = state(folder)
    return {key: held[key] for key in ("state_dict", "ema_state_dict", "optimizer_states", "global_step", "rollbacks")}

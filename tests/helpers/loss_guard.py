"""Runs without pictures whose losses are spoiled."""

from tests.helpers.resuming import state

PLAIN = tuple(  # without pictures, of which nothing here depends
    f"callbacks.{name}=null"
    for name in ("sample_grid", "raw_grid", "trajectory", "neighbours", "log_snr", "schedule_curves")
)

EACH = (*PLAIN, "callbacks.checkpoint.every_n_train_steps=2", "trainer.max_steps=8", "trainer.val_check_interval=4")

ROLLBACK = (*EACH, "callbacks.loss_guard.rollback=3")


def final(folder):
    held = state(folder)
    return {key: held[key] for key in ("state_dict", "ema_state_dict", "optimizer_states", "global_step", "rollbacks")}

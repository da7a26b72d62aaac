"""Where in an optimiser step a batch ends."""

from lightning.pytorch import Trainer

__all__ = ["at_log_step", "has_stepped"]


def has_stepped(trainer: Trainer) -> bool:
    """Whether this batch ended with the optimiser's step, and did not only add to its gradients."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def at_log_step(trainer: Trainer) -> bool:
    """Whether the step that has just been taken is one that is logged."""
    return has_stepped(trainer) and trainer.global_step % trainer.log_every_n_steps == 0

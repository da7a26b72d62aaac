"""The position of a batch within an optimizer step."""

from lightning.pytorch import Trainer

__all__ = ["at_log_step", "has_stepped"]


def has_stepped(trainer: Trainer) -> bool:
    """Whether this batch completed an optimizer step rather than only accumulating gradients."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def at_log_step(trainer: Trainer) -> bool:
    """Whether the optimizer step just completed is logged."""
    return has_stepped(trainer) and trainer.global_step % trainer.log_every_n_steps == 0

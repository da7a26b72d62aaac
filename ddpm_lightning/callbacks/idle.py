"""How much of the time a GPU has nothing to do."""

import logging
import subprocess
from contextlib import suppress

import torch

__all__ = ["IdleWatch"]

log = logging.getLogger(__name__)


class IdleWatch:
    """Asks the driver what share of the last second the GPU was busy, and warns once where it idles more than a third of the time.

    The answer is read when it is asked next, so that nothing waits for it.

    Args:
        device: the GPU.
        first_step: optimizer steps before training begins.
        after: steps after which is warned.
    """

    def __init__(self, device: torch.device, first_step: int, *, after: int = 200):
        self._command = [
            "nvidia-smi",
            "--query-gpu=utilization.gpu",
            "--format=csv,noheader,nounits",
            "-i",
            _id(device),
        ]
        self._after = first_step + after
        self._busy: list[float] = []
        self._asked: subprocess.Popen[str] | None = None
        self.done = False

    def look(self, step: int) -> None:
        """Ask, after this optimizer step, and warn when it is time."""
        if self.done:
            return
        self.close()
        if step >= self._after and len(self._busy) > 1:
            self.done = True
            idle = 1 - sum(self._busy) / len(self._busy) / 100
            if idle > 1 / 3:
                log.warning(
                    "the GPU idles %.0f%% of the time: try a larger data.batch_size (auto finds one), compile=graphs or compile=true, "
                    "and where images are read from files more data.dataset.workers",
                    100 * idle,
                )
            return
        with suppress(OSError):  # no such program
            self._asked = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True
            )

    def close(self) -> None:
        """Read the answer to what was asked last."""
        if self._asked is not None:
            with suppress(ValueError):  # parts of a GPU, of which it says [N/A]
                self._busy.append(float(self._asked.communicate()[0]))
            self._asked = None


def _id(device: torch.device) -> str:
    """The driver's name of a GPU, whatever CUDA_VISIBLE_DEVICES says."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"

"""GPU idle time."""

import logging
import subprocess
from contextlib import suppress

import torch

__all__ = ["IdleWatch"]

log = logging.getLogger(__name__)


class IdleWatch:
    """Reads the GPU's utilization from the driver, and warns once if the GPU idles more than a third of the time.

    Each answer is read at the next query, so nothing waits for it.

    Args:
        device: the GPU.
        first_step: the optimizer step at which training begins.
        after: steps before the warning.
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
        """Query after this optimizer step, and warn when due."""
        if self.done:
            return
        self.close()
        if step >= self._after and len(self._busy) > 1:
            self.done = True
            idle = 1 - sum(self._busy) / len(self._busy) / 100
            if idle > 1 / 3:
                log.warning(
                    "the GPU idles %.0f%% of the time: try a larger data.batch_size (auto finds one), compile=graphs, compile=true, or, "
                    "for images read from files, more data.dataset.workers",
                    100 * idle,
                )
            return
        with suppress(OSError):  # nvidia-smi is not installed
            self._asked = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True
            )

    def close(self) -> None:
        """Read the answer to the last query."""
        if self._asked is not None:
            with suppress(ValueError):  # a MIG slice reports [N/A]
                self._busy.append(float(self._asked.communicate()[0]))
            self._asked = None


def _id(device: torch.device) -> str:
    """The driver's ID of a GPU, independent of CUDA_VISIBLE_DEVICES."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"

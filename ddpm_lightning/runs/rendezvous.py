"""The address at which the processes of a run meet, looked at before any of them waits for the others."""

import socket
import sys
import time
from threading import Timer

import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, TorchElasticEnvironment

from ddpm_lightning.errors import UserError

__all__ = ["check_rendezvous"]

_SILENT = 60.0  # seconds that the first node may take to answer at all
_PATIENCE = 10.0  # seconds until it is said what is waited for


def check_rendezvous(environment: ClusterEnvironment | None, world_size: int) -> None:
    """Refuse an address that does not exist or does not answer, and a port that another program has.

    Nothing is looked at for one process, and for those of torchrun, which have met already.

    Args:
        environment: how the processes were started; None for one process.
        world_size: the number of processes.

    Raises:
        UserError: that names MASTER_ADDR or MASTER_PORT.
    """
    if environment is None or world_size == 1 or isinstance(environment, TorchElasticEnvironment):
        return
    address, port = environment.main_address, environment.main_port
    try:
        socket.getaddrinfo(address, port)
    except OSError as error:
        raise UserError(
            f"MASTER_ADDR must be a host name or an address of the first node, got {address}, which this node cannot resolve ({error.strerror})"
        ) from error
    if environment.global_rank() == 0:
        _check_free(port)
    else:
        _wait_for_answer(address, port)
    if environment.local_rank() == 0 and environment.creates_processes_externally:
        others = "the first process" if environment.node_rank() else f"{world_size - 1} more process(es)"
        timer = Timer(_PATIENCE, _tell, (f"Waiting for {others} at {address}:{port}",))
        timer.daemon = True
        timer.start()


def _check_free(port: int) -> None:
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            raise UserError(
                f"MASTER_PORT must be a free port on the first node, got {port} ({error.strerror}): choose the same other port on all nodes"
            ) from error


def _wait_for_answer(address: str, port: int) -> None:
    """Wait until the first node answers, if only that nothing listens there yet."""
    deadline = time.monotonic() + _SILENT
    while True:
        try:
            socket.create_connection((address, port), timeout=max(0.1, deadline - time.monotonic())).close()
            return
        except ConnectionRefusedError:
            return
        except OSError as error:
            if time.monotonic() > deadline - 1:
                raise UserError(
                    f"MASTER_ADDR must be the address of the first node, got {address}, where nothing has answered for "
                    f"{_SILENT:.0f} seconds ({error})"
                ) from error
            time.sleep(1)


def _tell(text: str) -> None:
    if not dist.is_initialized():
        print(text, file=sys.stderr, flush=True)

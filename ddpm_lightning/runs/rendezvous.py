"""Check the address of a multi-process run before its processes wait for each other."""

import socket
import sys
import time
from threading import Timer

import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, TorchElasticEnvironment

from ddpm_lightning.errors import UserError

__all__ = ["check_rendezvous"]

_SILENT = 60.0  # timeout in seconds for the first node to respond
_PATIENCE = 10.0  # seconds before a message on what is being waited for


def check_rendezvous(environment: ClusterEnvironment | None, world_size: int) -> None:
    """Refuse an address that does not exist or respond, and a port in use.

    Skipped for a single process, and for torchrun, whose processes are already connected.

    Args:
        environment: how the processes were started; None for one process.
        world_size: the number of processes.

    Raises:
        UserError: naming MASTER_ADDR or MASTER_PORT.
    """
    if environment is None or world_size == 1 or isinstance(environment, TorchElasticEnvironment):
        return
    address, port = environment.main_address, environment.main_port
    try:
        socket.getaddrinfo(address, port)
    except OSError as error:
        raise UserError(
            f"MASTER_ADDR must be the first node's name or address, got {address}, which this machine cannot resolve "
            f"({error.strerror}): give its IP address"
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
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            raise UserError(
                f"MASTER_PORT must be a free port on the first node, got {port} ({error.strerror}): choose another port on all nodes"
            ) from error


def _wait_for_answer(address: str, port: int) -> None:
    """Wait until the first node responds, even if only by refusing the connection."""
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
                    f"MASTER_ADDR must be the address of the first node, got {address}, which has not responded for "
                    f"{_SILENT:.0f} seconds ({error})"
                ) from error
            time.sleep(1)


def _tell(text: str) -> None:
    if not dist.is_initialized():
        print(text, file=sys.stderr, flush=True)

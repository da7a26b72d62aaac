"""Where the processes of a run meet: an address that does not exist, one that is silent, and a port that is taken."""

import socket
from types import SimpleNamespace

import pytest

from ddpm_lightning.errors import UserError
from ddpm_lightning.runs import rendezvous
from ddpm_lightning.runs.rendezvous import check_rendezvous


def started(address, port, rank):
    return SimpleNamespace(
        main_address=address,
        main_port=port,
        global_rank=lambda: rank,
        node_rank=lambda: rank,
        local_rank=lambda: 0,
        creates_processes_externally=True,
    )


@pytest.fixture
def port():
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_name_that_does_not_exist_is_refused():
    with pytest.raises(
        UserError, match=r"MASTER_ADDR must be .*, got nowhere.invalid, which this machine cannot resolve \("
    ):
        check_rendezvous(started("nowhere.invalid", 29500, 1), 2)


def test_a_port_that_another_program_has_is_refused(port):
    with pytest.raises(UserError, match=f"MASTER_PORT must be a free port on the first node, got {port} "):
        check_rendezvous(started("127.0.0.1", port, 0), 2)


def test_a_silent_address_is_refused_in_time(monkeypatch):
    asked = []

    def silent(where, timeout):
        asked.append((where, timeout))
        raise TimeoutError("timed out")

    monkeypatch.setattr(rendezvous, "_SILENT", 0.3)
    monkeypatch.setattr(socket, "create_connection", silent)
    with pytest.raises(UserError, match=r"got 127.0.0.1, which has not responded for .* \(timed out\)"):
        check_rendezvous(started("127.0.0.1", 29500, 1), 2)
    assert asked[0][0] == ("127.0.0.1", 29500)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_address_that_answers_is_waited_for_and_that_is_said(port, rank, monkeypatch, capsys):
    monkeypatch.setattr(rendezvous, "_PATIENCE", 0.0)
    with socket.socket() as free:
        free.bind(("", 0))
        nobody = free.getsockname()[1]
    timers, kept = [], rendezvous.Timer
    monkeypatch.setattr(rendezvous, "Timer", lambda *given: timers.append(kept(*given)) or timers[-1])
    check_rendezvous(started("127.0.0.1", nobody, rank), 3)  # nothing listens, and the machine says so
    timers[0].join(10)
    others = "the first process" if rank else "2 more process(es)"
    assert capsys.readouterr().err == f"Waiting for {others} at 127.0.0.1:{nobody}\n"
    if rank:
        check_rendezvous(started("127.0.0.1", port, rank), 3)


def test_one_process_meets_nobody():
    check_rendezvous(started("nowhere.invalid", 29500, 0), 1)
    check_rendezvous(None, 1)

"""What Ctrl-C does at each press."""

import signal

import pytest

from ddpm_lightning.callbacks import StopSignals


@pytest.mark.parametrize(
    ("has_saver", "saved", "says"),
    [
        (
            True,
            [False, False, False],
            ["Stopping after this step: the checkpoint is", "The checkpoint is not saved yet", ""],
        ),
        (True, [False, True, True], ["Stopping after this step: the checkpoint is", "", ""]),
        (True, [True, True, True], ["Training is complete, and its checkpoint is saved.", "", ""]),
        (False, [False, False, False], ["Stopping after this step, without a checkpoint.", "", ""]),
    ],
)
def test_each_press(has_saver, saved, says, capfd):
    signals = StopSignals()
    signals.has_saver = has_saver
    for signals.is_saved, said in zip(saved, says, strict=True):
        if said:
            signals._receive(signal.SIGINT, None)
        else:
            with pytest.raises(KeyboardInterrupt):
                signals._receive(signal.SIGINT, None)
        assert capfd.readouterr().err.strip().startswith(said)


def test_other_signals_say_nothing(capfd):
    signals = StopSignals()
    signals._receive(signal.SIGTERM, None)
    assert capfd.readouterr().err == ""
    assert signals.presses == 0

"""A network that keeps what it was given."""

from torch import nn


class Recorder(nn.Module):
    """A network that gives what it is told to, and keeps what it was asked."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x, t, y=None):
        self.asked = (x, t, y)
        return self.output

"""Fingerprints of tensors."""

import torch

from ddpm_lightning.data.fingerprint import fingerprint


def test_tensors_are_told_apart_by_shape_type_and_value():
    x = torch.arange(6)
    others = [x, x.reshape(2, 3), x.int(), x.flip(0), torch.arange(7), x.double()]
    assert len({fingerprint(y) for y in others}) == len(others)
    assert fingerprint(x) == fingerprint(torch.arange(6))
    assert fingerprint(x.reshape(2, 3).T) == fingerprint(x.reshape(2, 3).T.contiguous())

"""CUDA graphs, of which a CPU has none: what is around them, with a recorder that runs the function at each replay."""

import logging

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddpm_lightning.data.source import Batch
from ddpm_lightning.runs import graphs
from ddpm_lightning.runs.build import build_module, build_run
from ddpm_lightning.runs.graphs import GraphedDDPM, graph_evaluations, graph_training
from tests.helpers.configs import ROOT, TINY, config_of, train_config

NO_FIGURES = [
    f"callbacks.{name}=null"
    for name in ("sample_grid", "raw_grid", "trajectory", "neighbors", "log_snr", "schedule_curves", "forward_strip")
]


def replayed(run):
    """As a graph does: the same memory is written at each replay, and nothing else is returned."""
    for _ in range(graphs.WARM_UPS):
        run()
    found = run()
    static = found if isinstance(found, dict) else {"": found}

    def replay():
        again = run()
        for name, value in (again if isinstance(again, dict) else {"": again}).items():
            static[name].copy_(value.clone())

    return replay, found


def train(folder, graphed, *overrides, record=replayed):
    run = build_run(train_config(folder, "trainer.max_steps=6", *NO_FIGURES, *overrides), None)
    if graphed:
        graph_training(run.module, run.trainer)
        if isinstance(run.module, GraphedDDPM):
            type(run.module).record = staticmethod(record)
    run.trainer.loggers = [run.csv]
    run.trainer.fit(run.module, datamodule=run.data)
    return run, {name: value.clone() for name, value in run.module.state_dict().items()}


@pytest.fixture(autouse=True)
def _no_record_left():
    yield
    GraphedDDPM.record = None


@pytest.mark.parametrize(
    "overrides",
    [
        ("experiment=digits_super_resolution", "trainer.precision=bf16-mixed"),
        ("loss=hybrid", "learned_variance=true", "model.dropout=0.2", "data.num_classes=10"),
        ("trainer.accumulate_grad_batches=3", "model.dropout=0.2", "loss/times=importance"),
        ("loss/times=stratified", "loss.offset_noise=0.1", "loss.input_perturbation=0.1"),
        ("trainer.accumulate_grad_batches=3", "trainer.limit_train_batches=4", "trainer.gradient_clip_val=null"),
    ],
    ids=[
        "images as conditions in bfloat16",
        "labels, dropout and learned variance",
        "accumulated, and times that learn",
        "stratified",
        "a step cut short",
    ],
)
def test_training_is_the_same_bit_by_bit(tmp_path, overrides):
    run, weights = train(tmp_path / "graphs", True, *overrides)
    assert type(run.module) is GraphedDDPM
    assert len(run.module._graphs) == 1
    assert not run.module._cannot_be_recorded
    _, expected = train(tmp_path / "plain", False, *overrides)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_a_step_that_cannot_be_recorded_runs_without_a_graph(tmp_path, caplog):
    def fails(run):
        raise RuntimeError("operation not permitted when stream is capturing")

    with caplog.at_level(logging.WARNING):
        _, weights = train(tmp_path / "graphs", True, record=fails)
    assert [r.message for r in caplog.records if "CUDA graph" in r.message] == [
        "this training step cannot be captured as a CUDA graph and runs without one (RuntimeError: operation not permitted when stream is capturing)"
    ]
    _, expected = train(tmp_path / "plain", False)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_gradients_are_of_the_scaled_loss(tmp_path):
    run = build_run(train_config(tmp_path / "run", "model.dropout=0"), None)
    module = run.module
    batch = Batch(torch.randn(4, 1, 8, 8), None, torch.arange(4))
    torch.manual_seed(0)
    module.training_step(batch, 0)["loss"].backward()
    expected = [p.grad.clone() for p in module.parameters()]
    graph_training(module, run.trainer)
    module.record, module.scaler = replayed, torch.amp.GradScaler("cpu", init_scale=1024.0)
    for scale in (1024.0, 512.0):  # as it is at the time of the replay
        module.scaler.scale(torch.zeros(()))
        module.scaler._scale.fill_(scale)
        torch.manual_seed(0)
        loss = module.training_step(batch, 0)["loss"]
        module.backward(loss)
        for p, gradient in zip(module.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, scale * gradient)


def test_a_networks_evaluations():
    torch.manual_seed(0)
    model = torch.nn.Conv2d(1, 1, 3, padding=1)
    calls = []

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = model

        def forward(self, x, t, y=None):
            calls.append(x.shape)
            return self.conv(x) * t.reshape(-1, 1, 1, 1) + (0 if y is None else y.reshape(-1, 1, 1, 1))

    network = Network().eval()
    names = [*network.state_dict()]
    graph_evaluations(network, replayed, strangers=True)
    assert [*network.state_dict()] == names
    with torch.no_grad():
        for size in (2, 3, 2):
            x, t, y = torch.randn(size, 1, 4, 4), torch.arange(size), torch.randn(size)
            first = network(x, t, y)
            torch.testing.assert_close(first, network.forward(x, t, y), rtol=0, atol=0)
            kept = first.clone()
            network(2 * x, t, y)
            assert torch.equal(first, kept)  # what was returned is not written again
    assert len(network._compiled_call_impl._graphs) == 2
    x.requires_grad_()
    network(x, t, y).sum().backward()  # with gradients as without graphs
    assert x.grad is not None


def test_a_stranger_is_only_recorded_where_it_is_asked_for(tmp_path):
    class Strange(torch.nn.Identity):
        pass

    for strangers in (False, True):
        run = build_run(train_config(tmp_path / f"{strangers}"), None)
        run.module.denoiser.model.extra = Strange()
        graph_training(run.module, run.trainer, strangers=strangers)
        assert (type(run.module) is GraphedDDPM) is strangers


class Host(TorchDispatchMode):
    """Notes what computes on the CPU: a graph would do it once, or could not be recorded."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.found.append(str(func))
        return out


def on_a_gpu(module):
    """The module with weights and tables as of a GPU, of which there is none: shapes and devices without values."""
    for part in module.modules():
        for held, kind in ((part._parameters, torch.nn.Parameter), (part._buffers, lambda value: value)):
            for name, value in held.items():
                if value is not None:
                    held[name] = kind(torch.empty(value.shape, dtype=value.dtype, device="cuda"))
    return module


LOSSES = sorted(path.stem for path in (ROOT / "conf" / "loss").glob("*.yaml"))


@pytest.mark.parametrize(
    "overrides",
    [
        *[
            (f"loss={name}", f"learned_variance={str(name in ('hybrid', 'vlb')).lower()}")
            for name in LOSSES
            if name != "vdm"
        ],
        ("loss=vdm", "schedule=learned"),
        ("loss/times=log_normal",),
        ("data.num_classes=10", "model.dropout=0.1"),
        ("experiment=digits_super_resolution",),
        ("model=dit_tiny", "data.num_classes=10"),
        ("prediction=v", "schedule=cosine"),
    ],
    ids=str,
)
def test_a_training_step_of_ours_stays_on_the_device(tmp_path, overrides):
    tiny = [o for o in TINY if not (o.startswith("model.") and "model=dit_tiny" in overrides)]
    module = build_module(config_of(*tiny, "run_dir=unused", *overrides))
    config = config_of(*tiny, "run_dir=unused", *overrides)
    with FakeTensorMode():
        on_a_gpu(module)
        x0, ids = torch.zeros(4, 1, 8, 8, device="cuda"), torch.arange(4)
        y = None if config.data.num_classes is None else torch.zeros(4, dtype=torch.long, device="cuda")
        if "experiment=digits_super_resolution" in overrides:
            y = torch.zeros(4, 1, 4, 4, device="cuda")
        with Host() as host:
            outputs = module.training_step(Batch(x0, y, ids), 0)
    assert host.found == []
    assert outputs["loss"].device.type == "cuda"


def test_the_watch_sees_what_is_drawn_on_the_host():
    with Host() as host:
        torch.randint(4, ())
    assert host.found

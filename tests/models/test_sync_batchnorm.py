"""BatchNorm over ranks: with two processes against torch's own layer on the joined batch."""

import copy
import socket

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import multiprocessing, nn

from skincancer.models.sync_batchnorm import SyncBatchNorm, SyncedBatchNorm

SHARES = (slice(0, 3), slice(3, 5))  # ranks may differ by one image


def make_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Conv2d(4, 5, 3), BatchNormAct2d(5, act_layer=nn.SiLU),
        nn.Flatten(), nn.Linear(5 * 4 * 4, 6), nn.BatchNorm1d(6, momentum=None), nn.BatchNorm1d(6, affine=False),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-1, 1)
    return network


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    # far from zero, where a variance of sums of squares would cancel
    return 5 + torch.randn(5, 3, 8, 8, generator=generator), torch.randn(5, 6, generator=generator)


def train(network: nn.Module, images: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two steps forward, one back; return what a step leaves."""
    images = images.clone().requires_grad_()
    network.train()(images.detach())
    output = network(images)
    (output * weights).sum().backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in network.named_parameters()}
    return {"output": output.detach(), "gradient": images.grad, **gradients, **dict(network.named_buffers())}


def one_rank(rank: int, port: int, queue: "multiprocessing.Queue") -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    network, plugin = make_network(), SyncedBatchNorm()
    plugin.apply(network)
    assert sum(isinstance(layer, SyncBatchNorm) for layer in network) == 4
    images, weights = make_batch()
    found = train(network, images[SHARES[rank]], weights[SHARES[rank]])
    torch.distributed.destroy_process_group()
    queue.put((rank, {name: value.numpy() for name, value in found.items()}))


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, torch.Tensor]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = multiprocessing.get_context("fork")  # imports take longer than all the rest
    queue = context.Queue()
    processes = [context.Process(target=one_rank, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [{name: torch.from_numpy(value) for name, value in found[rank].items()} for rank in range(2)]


def test_two_ranks_are_one_batch(ranks):
    whole = train(make_network(), *make_batch())
    torch.testing.assert_close(torch.cat([rank["output"] for rank in ranks]), whole["output"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat([rank["gradient"] for rank in ranks]), whole["gradient"], rtol=1e-3, atol=1e-4)
    for name, value in whole.items():
        if name.startswith("gradient of"):  # DDP adds them up
            torch.testing.assert_close(ranks[0][name] + ranks[1][name], value, rtol=1e-3, atol=1e-3, msg=name)
        elif name not in ("output", "gradient"):
            for rank in ranks:
                torch.testing.assert_close(rank[name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_layers_are_put_back_with_what_they_learned():
    network, plugin = make_network(), SyncedBatchNorm()
    before = copy.deepcopy(network)
    layers = list(network)
    images, weights = make_batch()
    plugin.apply(network)
    assert list(network.state_dict()) == list(before.state_dict())
    train(network, images, weights)  # alone: as torch's own layers
    expected = train(before, images, weights)
    assert torch.equal(network[3].running_mean, expected["3.running_mean"])
    network.load_state_dict({name: value + 1 for name, value in network.state_dict().items()})
    network.double().eval()
    plugin.revert(network)
    assert all(now is then for now, then in zip(network, layers, strict=True))
    assert all(not layer.training for layer in network)
    assert network[3].running_mean.dtype == torch.float64
    torch.testing.assert_close(network[3].running_mean, expected["3.running_mean"].double() + 1, rtol=0, atol=1e-6)


def test_a_layer_in_two_places_stays_one():
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.ReLU()))
    network[1].append(network[0])
    plugin = SyncedBatchNorm()
    plugin.apply(network)
    assert isinstance(network[0], SyncBatchNorm)
    assert network[0] is network[1][1]

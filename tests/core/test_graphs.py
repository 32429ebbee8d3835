"""GraphedLoss: the same training with and without CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mambakit.core.auxiliary import auxiliary_loss
from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.training import GraphedLoss


class _Loss(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.net(x)[:, 0] - y).square().mean()


def _train(device: str, *, graphed: bool) -> tuple[list[float], list[Tensor]]:
    loss = _Loss().to(device)
    call = GraphedLoss(loss) if graphed else loss
    optimizer = torch.optim.AdamW(loss.parameters(), lr=0.01)
    draw = torch.Generator().manual_seed(1)
    seen = []
    for step in range(12):
        n = 5 if step % 4 == 3 else 16  # a smaller batch in between
        x = torch.randn(n, 3, generator=draw).to(device)
        value = call(x, x.sum(1))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        seen.append(value.item())
    return seen, [p.detach().cpu() for p in loss.parameters()]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_trains_as_the_plain_loss_does(device: str) -> None:
    plain, weights = _train(device, graphed=False)
    recorded, same = _train(device, graphed=True)
    torch.testing.assert_close(torch.tensor(recorded), torch.tensor(plain), rtol=1e-4, atol=1e-6)
    for got, want in zip(same, weights, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
def test_records_the_shapes_that_come_often_and_draws_new_dropout() -> None:
    loss = _Loss(dropout=0.5).cuda()
    graphed = GraphedLoss(loss)
    x = torch.randn(64, 3, device="cuda")
    values = {graphed(x, x.sum(1)).item() for _ in range(8)}
    assert len(values) == 8
    assert len(graphed._graphs) == 1
    with torch.no_grad():
        graphed(x[:7], x[:7].sum(1))
    assert len(graphed._graphs) == 1


@pytest.mark.gpu
def test_graphs_of_several_shapes_share_memory_and_nothing_else() -> None:
    loss = _Loss().cuda()
    graphed = GraphedLoss(loss, most=2)
    draw = torch.Generator(device="cuda").manual_seed(0)
    for n in (16, 16, 16, 9, 9, 9, 5, 5, 5, 16, 9, 5, 9, 16):
        x = torch.randn(n, 3, device="cuda", generator=draw)
        got, want = (torch.autograd.grad(of(x, x.sum(1)), list(loss.parameters())) for of in (graphed, loss))
        for mine, plain in zip(got, want, strict=True):
            torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)
    assert len(graphed._graphs) == 2


@pytest.mark.gpu
def test_under_autocast_a_replay_reads_the_weights_of_the_moment() -> None:
    loss, x = _Loss().cuda(), torch.randn(64, 3, device="cuda")
    graphed = GraphedLoss(loss)
    for _ in range(6):
        with torch.autocast("cuda", torch.bfloat16):
            got, want = graphed(x, x.sum(1)), loss(x, x.sum(1))
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-3)
        gradients = [torch.autograd.grad(one, list(loss.parameters())) for one in (got, want)]
        for mine, plain in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, plain, rtol=2e-2, atol=1e-2)
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert [one is not None for one in graphed._graphs.values()] == [True]


class _Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        options = {"moe": {"n_experts": 3, "d_hidden": 8}}
        self.net = Backbone(BackboneConfig(d_model=8, layers=["mlp", "moe"], block_options=options))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[0][..., 0].square().mean() + auxiliary_loss(self.net)


@pytest.mark.gpu
def test_a_loss_that_reads_values_back_is_called_as_it_is() -> None:
    """Experts get slices whose sizes the CPU must know."""
    loss = _Experts().cuda()
    graphed = GraphedLoss(loss)
    x = torch.randn(2, 6, 8, device="cuda")
    for _ in range(6):
        got, expected = graphed(x), loss(x)
        torch.testing.assert_close(got, expected)
        got.backward()
    assert list(graphed._graphs.values()) == [None]
    assert torch.cuda.get_sync_debug_mode() == 0

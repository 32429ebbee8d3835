"""Learning on: the reservoir, the weights' importance, and runs that go on from others."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mambakit.core.adapters import TokenBatch
from mambakit.core.continual import ContinualConfig, Memory, Stream, elastic_penalty, fisher_information
from mambakit.core.continual.fisher import add_elastic_gradient
from mambakit.core.errors import DataError, UsageError
from mambakit.core.hub import HubModel
from mambakit.core.training import RunFolder, TrainConfig, configure_optimizer, fit, seed_everything


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class Held:
    def __init__(self, x: Tensor) -> None:
        self.x = x


# --- the memory


def test_every_batch_of_the_stream_is_kept_with_the_same_probability() -> None:
    runs, capacity, n = 4000, 3, 12
    kept: Counter[int] = Counter()
    for seed in range(runs):
        first = Memory(capacity, seed)
        for i in range(n // 2):
            first.offer(i)
        second = Memory(capacity, seed + runs)  # another run goes on with the same stream
        second.go_on(first)
        for i in range(n // 2, n):
            second.offer(i)
        assert len(second) == capacity
        assert second.seen == n
        kept.update(second.batches)
    p = capacity / n
    deviation = np.sqrt(runs * p * (1 - p))
    assert all(abs(kept[i] - runs * p) < 4 * deviation for i in range(n)), kept


def test_a_smaller_memory_begins_with_an_even_draw() -> None:
    large = Memory(10)
    for i in range(10):
        large.offer(i)
    counts: Counter[int] = Counter()
    for seed in range(2000):
        small = Memory(2, seed)
        small.go_on(large)
        counts.update(small.batches)
    assert all(abs(counts[i] - 400) < 4 * np.sqrt(2000 * 0.2 * 0.8) for i in range(10)), counts


def test_batches_come_back_from_disk(tmp_path: Path) -> None:
    memory = Memory(4)
    tokens = TokenBatch(torch.tensor([[1, 2, 0]]), torch.tensor([2]))
    memory.offer([tokens, Pair(torch.ones(2), torch.zeros(1, dtype=torch.int64)), None, 3])
    memory.save(tmp_path / "batches.pt")
    found = Memory.load(tmp_path / "batches.pt", package=__name__.partition(".")[0])
    tokens_back, pair, nothing, three = found.batches[0]
    assert torch.equal(tokens_back.values, tokens.values)
    assert torch.equal(tokens_back.lengths, tokens.lengths)
    assert type(pair) is Pair
    assert torch.equal(pair.x, torch.ones(2))
    assert (nothing, three, found.seen) == (None, 3, 1)


def test_foreign_classes_are_not_unpickled(tmp_path: Path) -> None:
    memory = Memory(1)
    memory.offer(Held(torch.ones(1)))
    memory.save(tmp_path / "batches.pt")
    with pytest.raises(DataError, match="which is no batch of mambakit"):
        Memory.load(tmp_path / "batches.pt")
    (tmp_path / "batches.pt").write_bytes(b"no archive")
    with pytest.raises(DataError, match="damaged or no memory"):
        Memory.load(tmp_path / "batches.pt")


# --- importance


def logistic(n: int = 60) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(1)
    model = nn.Linear(3, 1).double()
    return model, torch.randn(n, 3, dtype=torch.float64), torch.randint(2, (n, 1)).double()


def test_importance_of_single_samples_is_their_mean_squared_gradient() -> None:
    model, x, y = logistic()
    nll = nn.functional.binary_cross_entropy_with_logits
    pairs = [((lambda i=i: nll(model(x[i : i + 1]), y[i : i + 1])), 1) for i in range(len(x))]
    found = fisher_information(model, pairs)
    error = torch.sigmoid(model(x)) - y  # d loss / d logit
    torch.testing.assert_close(found["weight"][0], (error * x).square().mean(0).float().detach())
    torch.testing.assert_close(found["bias"], error.square().mean(0).float().detach())


def test_importance_of_batches_agrees_at_the_optimum() -> None:
    model, x, y = logistic(4096)
    nll = nn.functional.binary_cross_entropy_with_logits
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, tolerance_grad=1e-10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nll(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    n = 8
    pairs = [((lambda i=i: nll(model(x[i : i + n]), y[i : i + n])), n) for i in range(0, len(x), n)]
    found = fisher_information(model, pairs)["weight"][0]
    exact = ((torch.sigmoid(model(x)) - y) * x).square().mean(0).float().detach()
    # the mean of 512 squares of near-normal numbers: a relative deviation of root(2 / 512)
    assert ((found - exact).abs() < 4 * (2 / 512) ** 0.5 * exact).all()


def test_the_gradient_added_is_that_of_the_penalty() -> None:
    model, x, y = logistic()
    anchor = {name: one.detach() + torch.randn_like(one) for name, one in model.named_parameters()}
    fisher = {"weight": torch.rand(1, 3, dtype=torch.float64)}  # the bias is free
    loss = (model(x) - y).square().mean()
    wanted = torch.autograd.grad(loss + elastic_penalty(model, fisher, anchor, 7.0), list(model.parameters()))
    (model(x) - y).square().mean().backward()
    add_elastic_gradient(model, fisher, anchor, 7.0)
    for one, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(one.grad, gradient)


def test_holding_weights_of_a_gaussian_problem_is_learning_both_at_once() -> None:
    """With orthogonal inputs and residuals of one, the diagonal of F is all of the curvature."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    x = torch.cat([signs, signs])
    residual = torch.tensor([1.0] * 4 + [-1.0] * 4, dtype=torch.float64)
    first = x @ torch.tensor([2.0, -1.0], dtype=torch.float64) + residual
    second = x @ torch.tensor([-4.0, 3.0], dtype=torch.float64) + residual
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, -1.0]]))  # the optimum of the first
    pairs = [((lambda i=i: 0.5 * (model(x[i]) - first[i]).square().mean()), 1) for i in range(8)]
    fisher = fisher_information(model, pairs)
    anchor = {"weight": model.weight.detach().clone()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(300):
        optimizer.zero_grad()
        (0.5 * (model(x)[:, 0] - second).square().mean()).backward()
        add_elastic_gradient(model, fisher, anchor, 1.0)
        optimizer.step()
    joint = torch.linalg.lstsq(torch.cat([x, x]), torch.cat([first, second])[:, None]).solution[:, 0]
    torch.testing.assert_close(model.weight[0].detach(), joint)


# --- measures


def test_measures_of_a_stream_by_hand() -> None:
    found = Stream.of([[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.5, 0.9, 0.6]], untrained=[0.1, 0.1, 0.1])
    assert found.average == pytest.approx((0.5 + 0.9 + 0.6) / 3)
    assert found.backward_transfer == pytest.approx(((0.5 - 0.9) + (0.9 - 0.8)) / 2)
    assert found.forward_transfer == pytest.approx(((0.2 - 0.1) + (0.3 - 0.1)) / 2)
    assert found.forgetting == pytest.approx(((0.9 - 0.5) + (0.8 - 0.9)) / 2)
    with pytest.raises(ValueError, match=r"expected \(tasks, tasks\) of two tasks or more, got \(1, 1\)"):
        Stream.of([[1.0]])


# --- runs


@dataclass
class NetConfig:
    outputs: int = 1


class Net(nn.Module, HubModel):
    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        self.net = nn.Linear(2, config.outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Task(pl.LightningModule):
    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.train_config = Net(NetConfig()), config

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.model(x), y)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val/loss", nn.functional.mse_loss(self.model(x), y))

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        return configure_optimizer(self.model, self.train_config, steps)


class Replayable(Task):
    def remembered(self, batch: Any) -> Any:
        return batch


def lines(first: bool) -> DataLoader[Any]:
    """y = a along one axis, or y = 3 a along the diagonal; [1, 2] serves both, [2, 1] is near [1, 0]."""
    generator = torch.Generator().manual_seed(int(first))
    a, noise = (torch.randn(256, 1, generator=generator) for _ in range(2))
    x = torch.cat([a, torch.zeros_like(a) if first else a], 1)
    return DataLoader(TensorDataset(x, (1 if first else 3) * a + 0.1 * noise), 16, shuffle=True)


def train(path: Path, first: bool, of: type[Task] = Replayable, **continual: Any) -> Task:
    config = TrainConfig(
        max_epochs=10, batch_size=16, lr=0.05, weight_decay=0.0, device="cpu", patience=0,
        continual=ContinualConfig(**continual),
    )  # fmt: skip
    seed_everything(0)
    task = of(config)
    fit(task, lines(first), DataLoader(lines(first).dataset, 256), config, RunFolder(path))
    task.model.save_pretrained(path)
    return task


@torch.no_grad()
def error(task: Task, first: bool) -> float:
    x, y = next(iter(DataLoader(lines(first).dataset, 256)))
    return float(nn.functional.mse_loss(task.model(x), y))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("continual") / "base"
    task = train(path, True, keep=4)
    assert error(task, True) < 0.05
    return path


@pytest.mark.slow
def test_replay_and_held_weights_forget_less_than_fine_tuning(base: Path, tmp_path: Path) -> None:
    runs = {
        name: train(tmp_path / name, False, base=str(base), **options)
        for name, options in {
            "finetune": {"kind": "finetune"},
            "replay": {"kind": "replay"},
            "ewc": {"kind": "ewc"},
            "both": {"kind": "both", "strength": 1.0},
        }.items()
    }
    old, new = ({name: error(task, first) for name, task in runs.items()} for first in (True, False))
    assert old["finetune"] > 0.5, old
    assert max(old["replay"], old["ewc"], old["both"]) < 0.05, old
    assert max(new.values()) < 0.05, new


def test_holding_with_no_strength_is_fine_tuning_and_with_all_is_the_base(base: Path, tmp_path: Path) -> None:
    free = train(tmp_path / "free", False, base=str(base), kind="ewc", strength=0.0)
    tuned = train(tmp_path / "tuned", False, base=str(base), kind="finetune")
    for one, other in zip(free.parameters(), tuned.parameters(), strict=True):
        assert torch.equal(one, other)
    firm = train(tmp_path / "firm", False, base=str(base), kind="ewc", strength=1e9)
    before = Net.from_pretrained(base)
    moved = max(
        (a - b).abs().max().item() for a, b in zip(firm.model.parameters(), before.parameters(), strict=True)
    )
    most = max(
        (a - b).abs().max().item() for a, b in zip(tuned.model.parameters(), before.parameters(), strict=True)
    )
    assert moved < 0.3 * most


def test_a_run_that_goes_on_keeps_a_draw_of_the_whole_stream(base: Path, tmp_path: Path) -> None:
    train(tmp_path / "next", False, base=str(base), kind="finetune", keep=6)
    first, second = (Memory.load(one / "memory" / "batches.pt") for one in (base, tmp_path / "next"))
    assert (first.seen, second.seen) == (16, 32)
    assert (len(first), len(second)) == (4, 6)
    sides = [bool(x[0, 1]) for x, _ in second.batches]  # the first's lie on the axis
    assert any(sides)
    assert not all(sides)


def test_a_finished_run_is_taken_up_without_its_base(base: Path, tmp_path: Path) -> None:
    options = {"kind": "replay", "base": str(base)}
    once, again = (train(tmp_path / "run", False, **options) for _ in range(2))
    for one, other in zip(once.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_cannot_be_gone_on_from_is_said(base: Path, tmp_path: Path) -> None:
    train(tmp_path / "plain", True)
    with pytest.raises(
        DataError, match=r"fisher\.safetensors is missing.*train the base with --train\.contin"
    ):
        train(tmp_path / "a", False, base=str(tmp_path / "plain"), kind="ewc")
    with pytest.raises(UsageError, match="Task's batches mean nothing without its data"):
        train(tmp_path / "b", False, Task, base=str(base), kind="replay")
    with pytest.raises(DataError, match=r"continual\.base: no saved model at"):
        train(tmp_path / "c", False, base=str(tmp_path / "none"), kind="finetune")
    with pytest.raises(UsageError, match="name the folder of the run that replay goes on from"):
        ContinualConfig("replay")
    with pytest.raises(UsageError, match="without effect while"):
        ContinualConfig(base="runs/a")
    with pytest.raises(UsageError, match="either adapts few parameters or trains all further"):
        dataclasses.replace(
            TrainConfig(continual=ContinualConfig(keep=1)),
            adapt=dataclasses.replace(TrainConfig().adapt, kind="state"),
        )


def test_a_task_that_cannot_replay_still_keeps_importance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", True, Task, keep=4)
    assert "none are kept to replay" in capsys.readouterr().err
    assert sorted(one.name for one in (tmp_path / "run" / "memory").iterdir()) == ["fisher.safetensors"]

"""DP-SGD: gradients of single cases, clipped, summed, and noise added (Abadi et al. 2016, arXiv:1607.00133).

Each case's gradient is computed by itself, one after the other. Vectorised ways do not hold over these
blocks: opacus' hooks (1.6) want a tensor for every argument of a module that owns parameters, and both its
functorch mode and torch.func.vmap want functions of autograd that the blocks' norms and kernels are not. What
it has cost is counted by opacus' accountant.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from mambakit.core.errors import UsageError
from mambakit.core.trust.private_config import PrivateConfig

if TYPE_CHECKING:
    import lightning.pytorch as pl


class PrivateTraining:
    """Turns a task's training into DP-SGD.

    A batch is drawn by Poisson sampling: every case is in it with the same probability, whatever else is, as
    the accountant takes for granted. Draws and noise are from the system's entropy, not from the run's seed:
    who knew that could take the noise away. So a private run can't be repeated to the digit.

    Covered are the gradient steps alone: not what a model fits to its data beside them, not the choice of
    weights on validation data, and not the training loss in ``metrics.csv``.

    Args:
        task: Its ``private_unit`` says what a single case is; its training step's loss is a mean over cases.
        loader: Of single cases from a data set of known length.
        config: How private.

    Raises:
        UsageError: If the task has no such unit, batches are not of single cases, normalisation is over
            batches, delta is too large, or opacus is not installed.
    """

    def __init__(self, task: pl.LightningModule, loader: DataLoader[Any], config: PrivateConfig) -> None:
        self.task, self.config = task, config
        self.unit = getattr(task, "private_unit", None)
        if self.unit is None:
            raise UsageError(
                f"train.private: {type(task).__name__} has no single cases whose gradients are apart"
            )
        if any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in task.modules()):
            raise UsageError("train.private: a normalisation over the batch mixes the cases of a batch")
        dataset = loader.dataset
        plain = isinstance(loader.batch_sampler, BatchSampler) and isinstance(
            loader.sampler, (RandomSampler, SequentialSampler)
        )
        if isinstance(dataset, IterableDataset) or not plain or loader.batch_size is None:
            raise UsageError("train.private: the training's batches are not drawn from single cases")
        self.n_cases = len(dataset)  # type: ignore[arg-type]
        self.batch_size = min(loader.batch_size, self.n_cases)
        if config.delta * self.n_cases >= 1:
            raise UsageError(
                f"train.private.delta: expected less than 1/{self.n_cases}, one over the number of cases, "
                f"got {config.delta:g}"
            )
        _accountant()
        generator = torch.Generator().manual_seed(secrets.randbits(63))
        self.loader: DataLoader[Any] = DataLoader(
            _Single(dataset, loader.collate_fn),
            batch_sampler=PoissonBatches(self.n_cases, self.batch_size, generator),
            collate_fn=list,
            num_workers=loader.num_workers,
        )

    @property
    def sample_rate(self) -> float:
        """The probability of a case to be in a batch."""
        return self.batch_size / self.n_cases

    def __enter__(self) -> PrivateTraining:
        step = self.task.training_step
        generators: dict[torch.device, torch.Generator] = {}

        def private_step(cases: Sequence[Any], batch_idx: int) -> Tensor:
            device = self.task.device
            if device not in generators:
                generators[device] = torch.Generator(device).manual_seed(secrets.randbits(63))
            parameters = [one for one in self.task.parameters() if one.requires_grad]
            losses = (cast(Tensor, step(case, batch_idx)) for case in cases)
            return private_loss(
                losses, parameters, self.config, batch_size=self.batch_size, generator=generators[device]
            )

        self.task.training_step = private_step  # type: ignore[method-assign]
        return self

    def __exit__(self, *exception: object) -> None:
        del self.task.__dict__["training_step"]

    def spent(self, steps: int) -> dict[str, Any]:
        """What so many steps have cost, and all that it follows from."""
        config = self.config
        return {
            "epsilon": epsilon_of(steps, config.noise_multiplier, self.sample_rate, config.delta),
            "delta": config.delta,
            "noise_multiplier": config.noise_multiplier,
            "max_grad_norm": config.max_grad_norm,
            "sample_rate": self.sample_rate,
            "steps": steps,
            "unit": self.unit,
            "not_covered": getattr(self.task, "private_leaves_out", ""),
        }


def private_loss(
    losses: Iterator[Tensor],
    parameters: Sequence[nn.Parameter],
    config: PrivateConfig,
    *,
    batch_size: float,
    generator: torch.Generator,
) -> Tensor:
    """A scalar with DP-SGD's gradient, ``(sum of clip(g_i) + noise) / batch_size`` (Abadi et al., alg. 1).

    Its value is the mean of the losses, 0 of none; its gradient is noise alone then.

    Args:
        losses: Of one case each; asked for one by one, so that one graph is held at once.
        parameters: What learns.
        config: Clipping norm and noise.
        batch_size: Expected cases of a batch, by which the sum is divided, however many there are.
        generator: Of the noise, on the parameters' device.
    """
    total = [torch.zeros_like(one) for one in parameters]
    value, n = parameters[0].new_zeros(()), 0
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        there = [(i, one) for i, one in enumerate(gradients) if one is not None]
        norm = torch.stack([one.double().square().sum() for _, one in there]).sum().sqrt()
        scale = (config.max_grad_norm / norm.clamp(min=1e-12)).clamp(max=1.0)
        for i, one in there:
            total[i] += one * scale.to(one.dtype)
        value, n = value + loss.detach().to(value), n + 1
    deviation = config.noise_multiplier * config.max_grad_norm
    linear = parameters[0].new_zeros(())
    for parameter, gradient in zip(parameters, total, strict=True):
        noise = torch.randn(gradient.shape, generator=generator, device=gradient.device, dtype=gradient.dtype)
        linear = linear + (parameter * ((gradient + deviation * noise) / batch_size)).sum()
    return linear - linear.detach() + value / max(n, 1)


class PoissonBatches(Sampler[list[int]]):
    """An epoch of batches, each of every case with probability ``batch_size / n``; some are empty.

    Args:
        n: Cases.
        batch_size: Of a batch, on average.
        generator: Of the draws.
    """

    def __init__(self, n: int, batch_size: int, generator: torch.Generator) -> None:
        self.n, self.batch_size, self.generator = n, batch_size, generator

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(len(self)):
            drawn = torch.rand(self.n, generator=self.generator, dtype=torch.float64)
            yield (drawn < self.batch_size / self.n).nonzero()[:, 0].tolist()


class _Single(Dataset[Any]):
    """Every case as a batch of its own."""

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitem__(self, index: int) -> Any:
        return self.collate([self.dataset[index]])


def epsilon_of(steps: int, noise_multiplier: float, sample_rate: float, delta: float) -> float:
    """What so many steps have spent, by Renyi differential privacy (Mironov et al. 2019, arXiv:1908.10530).

    Args:
        steps: Of the optimizer.
        noise_multiplier: More than 0.
        sample_rate: Probability of a case to be in a batch.
        delta: At which epsilon is told.

    Raises:
        UsageError: If opacus is not installed.
    """
    accountant = _accountant()()
    if not steps:
        return 0.0
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    return float(accountant.get_epsilon(delta))


def _accountant() -> Any:
    try:
        from opacus.accountants import RDPAccountant
    except ImportError as error:
        raise UsageError(
            "train.private: what it costs is counted by opacus; pip install 'mambakit[private]'"
        ) from error
    return RDPAccountant

"""Heads that read chunks of actions out of a vector: Gaussian, mixture, flow and categorical.

All work on actions scaled to mean 0 and deviation 1 (numbered ones apart). ``forward`` gives what ``loss``,
``point`` and ``drawn`` take; a chunk is the action of this step and of those after it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.heads import masked_mean
from mambakit.domains.robotics.policy.config import HeadKind

_LOG_DEVIATION = (-4.0, 1.0)
_BETA = 0.5
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class GaussianHead(nn.Module):
    """A mean and a deviation for each number of each action.

    The loss is the beta-NLL of Seitzer et al. 2022 (arXiv:2203.09168, eq. 4, beta 0.5): the plain likelihood
    lets states whose actions are hard to tell go unlearned.

    Args:
        d_model: Width of the input.
        chunk: Actions.
        width: Numbers of an action.
    """

    def __init__(self, *, d_model: int, chunk: int, width: int) -> None:
        super().__init__()
        self.chunk, self.width = chunk, width
        self.proj = nn.Linear(d_model, chunk * 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., d_model)`` to ``(..., chunk, 2 * action_dim)``: means, then log-deviations."""
        return self.proj(x).unflatten(-1, (self.chunk, 2 * self.width))

    def loss(self, output: Tensor, target: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean over what ``mask`` ``(..., chunk)`` counts of ``target`` ``(..., chunk, action_dim)``.

        ``weight`` ``(...)`` is how much each step counts; 1 without.
        """
        mean, raw = output.chunk(2, dim=-1)
        log_deviation = _bounded(raw)
        nll = _gaussian_nll(target, mean, log_deviation)
        return _mean(nll * (2 * _BETA * log_deviation.detach()).exp(), mask, weight)

    def point(self, output: Tensor) -> Tensor:
        """The means, ``(..., chunk, action_dim)``."""
        return output[..., : self.width]

    def drawn(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A sample, shaped as the means."""
        mean, raw = output.chunk(2, dim=-1)
        return mean + _bounded(raw).exp() * _normal_like(mean, generator)


class MixtureHead(nn.Module):
    """A mixture of Gaussians over an action's numbers, for data that act in several ways.

    Args:
        d_model: Width of the input.
        chunk: Actions.
        width: Numbers of an action.
        n_components: Gaussians.
    """

    def __init__(self, *, d_model: int, chunk: int, width: int, n_components: int) -> None:
        super().__init__()
        self.chunk, self.width, self.n_components = chunk, width, n_components
        self.proj = nn.Linear(d_model, chunk * n_components * (1 + 2 * width))
        nn.init.normal_(self.proj.bias)  # components that begin alike stay alike

    def forward(self, x: Tensor) -> Tensor:
        """``(..., d_model)`` to ``(..., chunk, n_components, 1 + 2 * action_dim)``."""
        return self.proj(x).unflatten(-1, (self.chunk, self.n_components, 1 + 2 * self.width))

    def _parts(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, mean, raw = output.split([1, self.width, self.width], dim=-1)
        return logits.squeeze(-1), mean, _bounded(raw)

    def loss(self, output: Tensor, target: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean negative log-likelihood of a number, as ``GaussianHead.loss``."""
        logits, mean, log_deviation = self._parts(output)
        of_each = -_gaussian_nll(target[..., None, :], mean, log_deviation).sum(-1)
        nll = -torch.logsumexp(logits.log_softmax(-1) + of_each, dim=-1) / self.width
        return _mean(nll, mask, weight)

    def point(self, output: Tensor) -> Tensor:
        """The mean of the likeliest component: the mean over all may lie where nobody acts."""
        logits, mean, _ = self._parts(output)
        return _pick(mean, logits.argmax(-1))

    def drawn(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A sample."""
        logits, mean, log_deviation = self._parts(output)
        chosen = _categorical(logits, generator)
        mean, deviation = _pick(mean, chosen), _pick(log_deviation, chosen).exp()
        return mean + deviation * _normal_like(mean, generator)


class FlowHead(nn.Module):
    """Conditional flow matching: a velocity that carries noise to a chunk of actions.

    Lipman et al. 2023 (arXiv:2210.02747) with straight paths ``(1 - t) noise + t action``, whose velocity is
    ``action - noise``; sampled by Euler steps.

    Args:
        d_model: Width of the input.
        chunk: Actions.
        width: Numbers of an action.
        n_steps: Euler steps.
    """

    def __init__(self, *, d_model: int, chunk: int, width: int, n_steps: int) -> None:
        super().__init__()
        self.chunk, self.width, self.n_steps = chunk, width, n_steps
        self.condition = nn.Linear(d_model, 2 * d_model)
        self.noised = nn.Linear(chunk * width + 2, 2 * d_model, bias=False)
        self.hidden = nn.Linear(2 * d_model, 2 * d_model)
        self.velocity = nn.Linear(2 * d_model, chunk * width)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., d_model)`` to what the velocity depends on, ``(..., 2 * d_model)``."""
        return self.condition(x)

    def _velocity(self, output: Tensor, at: Tensor, time: Tensor) -> Tensor:
        clock = torch.cat([time, time * time], dim=-1)
        inner = F.silu(output + self.noised(torch.cat([at, clock], dim=-1)))
        return self.velocity(F.silu(self.hidden(inner)) + inner)

    def loss(self, output: Tensor, target: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean squared error of the velocity at random times, as ``GaussianHead.loss``."""
        goal = target.flatten(-2)
        noise = torch.randn_like(goal)
        time = torch.rand_like(goal[..., :1])
        found = self._velocity(output, (1 - time) * noise + time * goal, time)
        errors = F.mse_loss(found, goal - noise, reduction="none").view_as(target)
        return _mean(errors, mask, weight)

    def point(self, output: Tensor) -> Tensor:
        """Where the middle of the noise is carried to."""
        return self._carried(output, output.new_zeros(*output.shape[:-1], self.chunk * self.width))

    def drawn(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A sample."""
        start = output.new_empty(*output.shape[:-1], self.chunk * self.width)
        return self._carried(output, _normal_like(start, generator))

    def _carried(self, output: Tensor, at: Tensor) -> Tensor:
        for i in range(self.n_steps):
            time = torch.full_like(at[..., :1], i / self.n_steps)
            at = at + self._velocity(output, at, time) / self.n_steps
        return at.unflatten(-1, (self.chunk, self.width))


class CategoricalHead(nn.Module):
    """A probability for each numbered action.

    Args:
        d_model: Width of the input.
        chunk: Actions.
        width: Numbered actions.
    """

    def __init__(self, *, d_model: int, chunk: int, width: int) -> None:
        super().__init__()
        self.chunk, self.width = chunk, width
        self.proj = nn.Linear(d_model, chunk * width)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., d_model)`` to logits ``(..., chunk, n_actions)``."""
        return self.proj(x).unflatten(-1, (self.chunk, self.width))

    def loss(self, output: Tensor, target: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of ``target`` ``(..., chunk)`` int64."""
        losses = F.cross_entropy(output.flatten(0, -2), target.flatten(), reduction="none")
        return _mean(losses.view_as(mask), mask, weight)

    def point(self, output: Tensor) -> Tensor:
        """The probabilities, ``(..., chunk, n_actions)``."""
        return output.softmax(-1)

    def drawn(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A sample, one-hot."""
        return F.one_hot(_categorical(output, generator), self.width).to(output.dtype)


ActionHead = GaussianHead | MixtureHead | FlowHead | CategoricalHead


def build_head(
    kind: HeadKind, *, d_model: int, chunk: int, width: int, n_components: int, flow_steps: int
) -> ActionHead:
    """The head called ``kind``."""
    if kind == "mixture":
        return MixtureHead(d_model=d_model, chunk=chunk, width=width, n_components=n_components)
    if kind == "flow":
        return FlowHead(d_model=d_model, chunk=chunk, width=width, n_steps=flow_steps)
    one = GaussianHead if kind == "gaussian" else CategoricalHead
    return one(d_model=d_model, chunk=chunk, width=width)


def _mean(values: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
    if weight is not None:
        values = values * weight.view(*weight.shape, *(1,) * (values.dim() - weight.dim()))
    return masked_mean(values, mask)


def _bounded(raw: Tensor) -> Tensor:
    """Log-deviations inside their range, smoothly, so that gradients never end."""
    low, high = _LOG_DEVIATION
    return low + (high - low) * torch.sigmoid(raw)


def _gaussian_nll(target: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    scaled = (target - mean) * (-log_deviation).exp()
    return 0.5 * scaled.square() + log_deviation + _HALF_LOG_TWO_PI


def _pick(values: Tensor, component: Tensor) -> Tensor:
    """``values`` ``(..., n_components, width)`` of one component each, ``(..., width)``."""
    index = component[..., None, None].expand(*component.shape, 1, values.shape[-1])
    return values.gather(-2, index).squeeze(-2)


def _categorical(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    flat = logits.softmax(-1).flatten(0, -2)
    return torch.multinomial(flat, 1, generator=generator).view(logits.shape[:-1])


def _normal_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)

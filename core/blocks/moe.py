"""Mixture of experts: a token goes to a few of many SwiGLU layers (Shazeer et al. 2017, arXiv:1701.06538).

chosen    the top_k experts of largest router logit
gates     softmax over the chosen (Mixtral: Jiang et al. 2024, arXiv:2401.04088, section 2.1)
          or their probability among all (Switch, Jamba)
balance   n_experts * sum_e f_e P_e, with f_e the share of choices that e gets and P_e its mean
          probability: 1 where both are uniform (Fedus et al. 2021, arXiv:2101.03961, equations 4-6)
z         mean of logsumexp(logits)^2 (Zoph et al. 2022, arXiv:2202.08906, equation 5)
capacity  an expert takes capacity_factor * top_k * tokens / n_experts choices, first choices before
          second ones (Lepikhin et al. 2020, arXiv:2006.16668, algorithm 1), and earlier tokens first
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.blocks.base import Block, Context, padding_mask
from mambakit.core.blocks.mlp import MLP, activation_of
from mambakit.core.blocks.registry import register_block
from mambakit.core.state import State


@register_block("moe")
class MoE(Block):
    """Sparse mixture of gated feed-forward layers, each token on its own; its state is empty.

    No token is dropped, unless ``capacity_factor`` is given, and then only while training: a dropped choice
    adds nothing, so that the token passes by on the residual. Which choices are dropped depends on the whole
    batch, so the streaming law could not hold with a capacity: in evaluation and in ``step`` there is none.

    Tokens are sorted by expert and each expert computes its slice, whose size the CPU reads: it waits for a
    GPU there, and no CUDA graph can hold that. Inside a traced graph sizes may not depend on data: there
    every expert computes every token. A step elsewhere than on the CPU reads nothing back either.

    Args:
        d_model: Width of input and output.
        n_experts: Experts.
        top_k: Experts that a token goes to.
        d_hidden: Inner width of an expert; ``8/3 d_model`` rounded up to a multiple of 8 by default.
        normalize_gates: Gates are a softmax over the chosen experts and sum to one; otherwise their
            probabilities among all experts.
        d_shared: Inner width of one more expert that every token goes to (DeepSeekMoE: Dai et al. 2024,
            arXiv:2401.06066, section 3.2); 0 for none.
        balance_weight: Weight of the load-balance loss in what training minimises.
        z_weight: Weight of the router's z-loss.
        capacity_factor: Choices that an expert takes while training, over its even share; None for all.
        activation: As in ``mlp``.

    Raises:
        ValueError: On a size below 1, ``top_k`` above ``n_experts``, a weight below 0, a capacity factor of
            0 or less, or ``normalize_gates`` with a ``top_k`` of 1.
    """

    mixes_time = False
    uses_context = True

    def __init__(
        self,
        *,
        d_model: int,
        n_experts: int = 8,
        top_k: int = 2,
        d_hidden: int | None = None,
        normalize_gates: bool = True,
        d_shared: int = 0,
        balance_weight: float = 0.01,
        z_weight: float = 0.0,
        capacity_factor: float | None = None,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        if d_hidden is None:
            d_hidden = 8 * -(-d_model // 3)
        if min(d_model, d_hidden, n_experts) < 1:
            raise ValueError(
                "d_model, d_hidden, n_experts: expected at least 1, "
                f"got {d_model}, {d_hidden} and {n_experts}"
            )
        if not 1 <= top_k <= n_experts:
            raise ValueError(f"top_k: expected 1 <= top_k <= n_experts={n_experts}, got {top_k}")
        if normalize_gates and top_k == 1 and n_experts > 1:
            raise ValueError(
                "normalize_gates: with top_k=1 every gate is one and the router cannot learn; "
                "set normalize_gates to false"
            )
        for name, value in (
            ("d_shared", d_shared),
            ("balance_weight", balance_weight),
            ("z_weight", z_weight),
        ):
            if value < 0:
                raise ValueError(f"{name}: expected at least 0, got {value}")
        if capacity_factor is not None and not capacity_factor > 0:
            raise ValueError(f"capacity_factor: expected a positive number, got {capacity_factor}")
        self.d_model = d_model
        self.d_hidden = d_hidden
        self.n_experts = n_experts
        self.top_k = top_k
        self.normalize_gates = normalize_gates
        self.balance_weight = balance_weight
        self.z_weight = z_weight
        self.capacity_factor = capacity_factor
        self.activation = activation_of(activation)
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.in_proj = _ExpertsLinear(n_experts, d_model, 2 * d_hidden)
        self.out_proj = _ExpertsLinear(n_experts, d_hidden, d_model)
        self.shared = MLP(d_model=d_model, d_hidden=d_shared, activation=activation) if d_shared else None

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return {}

    def mix(
        self,
        x: Tensor,
        state: State | None,
        seq_idx: Tensor | None,
        lengths: Tensor | None,
        context: Context | None = None,
    ) -> tuple[Tensor, State]:
        tokens = x.flatten(0, 1)  # [t, d]
        real = None if lengths is None else ~padding_mask(lengths, x.shape[1]).flatten()
        logits = self._logits(tokens)
        gates, chosen = self._choose(logits)
        if self.training and context is not None:
            context.losses.append(self._loss(logits, chosen, real))
        expert = chosen.T.flatten()  # [k * t], all first choices first
        if real is not None:
            expert = torch.where(real.repeat(self.top_k), expert, self.n_experts)  # padding: no expert
        if self.training and self.capacity_factor is not None:
            expert = self._drop(expert)
        if torch.compiler.is_compiling():
            y = self._mix_densely(tokens, expert, gates)
        else:
            y = self._mix_slices(tokens, expert, gates)
        if self.shared is not None:
            y = y + self.shared(x)[0].flatten(0, 1)
        return y.view_as(x), State.of()

    def mix_step(
        self, x: Tensor, state: State, inplace: bool = False, context: Context | None = None
    ) -> tuple[Tensor, State]:
        gates, chosen = self._choose(self._logits(x))
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            y = self._mix_slices(x, chosen.T.flatten(), gates)
        elif not torch.compiler.is_exporting() and chosen.numel() <= self.n_experts:  # else: of any batch
            y = self._mix_gathered(x, chosen, gates)
        else:
            y = self._mix_densely(x, chosen.T.flatten(), gates)
        if self.shared is not None:
            y = y + self.shared(x.unsqueeze(1))[0].squeeze(1)
        return y, State.of()

    def _logits(self, tokens: Tensor) -> Tensor:
        """``(tokens, n_experts)``, in float32 at least: a rounded logit is another expert (Switch, 2.4)."""
        dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
        with torch.autocast(tokens.device.type, enabled=False):
            return F.linear(tokens.to(dtype), self.router.weight.to(dtype))

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Gates and expert numbers, each ``(tokens, top_k)``, the best first."""
        best, chosen = logits.topk(self.top_k, dim=-1)
        if self.normalize_gates:
            return best.softmax(-1), chosen
        return logits.softmax(-1).gather(-1, chosen), chosen

    def _loss(self, logits: Tensor, chosen: Tensor, real: Tensor | None) -> Tensor:
        """Load-balance and z-loss with their weights, over the real tokens."""
        weight = torch.ones_like(logits[:, 0]) if real is None else real.to(logits.dtype)
        n = weight.sum().clamp(min=1)
        share = F.one_hot(chosen, self.n_experts).sum(1).to(logits.dtype)  # [t, e]
        share = (weight @ share) / (n * self.top_k)
        probability = (weight @ logits.softmax(-1)) / n
        balance = self.n_experts * (share * probability).sum()
        z = (weight @ logits.logsumexp(-1).square()) / n
        return self.balance_weight * balance + self.z_weight * z

    def _drop(self, expert: Tensor) -> Tensor:
        """Take from each expert the choices beyond its capacity."""
        assert self.capacity_factor is not None
        ordered, order = torch.sort(expert, stable=True)
        counts = _counts(expert, self.n_experts)
        starts = counts.cumsum(0) - counts
        rank = torch.arange(expert.shape[0], device=expert.device) - starts[ordered]
        choices = counts[:-1].sum()
        capacity = torch.ceil(self.capacity_factor * choices.double() / self.n_experts)
        kept = torch.where(rank < capacity, ordered, self.n_experts)
        return torch.empty_like(expert).scatter_(0, order, kept)

    def _mix_slices(self, tokens: Tensor, expert: Tensor, gates: Tensor) -> Tensor:
        n_tokens = len(tokens)
        order = torch.argsort(expert, stable=True)
        sizes = _counts(expert, self.n_experts)[:-1].tolist()
        order = order[: sum(sizes)]  # the rest is padding, or dropped
        slices = tokens[order % n_tokens].split(sizes)
        outputs = [self._expert(e, rows) for e, rows in enumerate(slices) if len(rows)] or [
            tokens[:0] + 0 * self.in_proj.weight.sum()
        ]  # no token at all: still part of the graph
        found = torch.cat(outputs)
        # back in the order of choices: a sum of top_k terms, the same on every run
        places = found.new_zeros(len(expert), self.d_model).index_copy(0, order, found)
        return (gates.T.unsqueeze(-1) * places.unflatten(0, (self.top_k, n_tokens))).sum(0).to(found.dtype)

    def _expert(self, e: int, rows: Tensor) -> Tensor:
        gate, up = F.linear(rows, self.in_proj.weight[e]).chunk(2, dim=-1)
        return F.linear(self.activation(gate) * up, self.out_proj.weight[e])

    def _mix_gathered(self, tokens: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
        """For few tokens: the weights of each choice laid out on their own."""
        hidden = torch.einsum("td,tkhd->tkh", tokens, self.in_proj.weight[chosen])
        gate, up = hidden.chunk(2, dim=-1)
        y = torch.einsum("tkh,tkdh->tkd", self.activation(gate) * up, self.out_proj.weight[chosen])
        return (gates.unsqueeze(-1) * y).sum(1).to(y.dtype)

    def _mix_densely(self, tokens: Tensor, expert: Tensor, gates: Tensor) -> Tensor:
        chosen = F.one_hot(expert, self.n_experts + 1)[:, :-1].unflatten(0, (self.top_k, tokens.shape[0]))
        weight = (chosen * gates.T.unsqueeze(-1)).sum(0)  # [t, e]
        gate, up = torch.einsum("td,ehd->teh", tokens, self.in_proj.weight).chunk(2, dim=-1)
        y = torch.einsum("teh,edh->ted", self.activation(gate) * up, self.out_proj.weight)
        return (weight.unsqueeze(-1) * y).sum(1).to(y.dtype)


class _ExpertsLinear(nn.Module):
    """The weights of one linear layer of every expert, ``(n_experts, d_output, d_input)``."""

    def __init__(self, n_experts: int, d_input: int, d_output: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(d_input)  # as nn.Linear starts
        self.weight = nn.Parameter(torch.empty(n_experts, d_output, d_input).uniform_(-bound, bound))


def _counts(expert: Tensor, n_experts: int) -> Tensor:
    """How many choices each expert gets, and last those of none, ``(n_experts + 1,)``."""
    return torch.zeros(n_experts + 1, device=expert.device, dtype=torch.int64).scatter_add_(
        0, expert, torch.ones_like(expert)
    )

"""Make few parameters of a model learn, and make it plain again."""

from __future__ import annotations

from torch import Tensor, nn

from mambakit.core.adaptation.config import AdaptConfig
from mambakit.core.adaptation.low_rank import add_low_rank, fold_low_rank
from mambakit.core.adaptation.places import projections_of, stacks_of
from mambakit.core.adaptation.record import Learning, Record, buffers_of, keep, record_of
from mambakit.core.errors import UsageError
from mambakit.core.fingerprint import fingerprint


def adapt(model: nn.Module, config: AdaptConfig) -> Learning:
    """Freeze a model in place but for what ``config`` says learns.

    It computes as before until that has learned, but for a prefix, which begins with vectors drawn at random.

    Args:
        model: Trained, with blocks or backbones of the core inside.
        config: ``base`` is not looked at: this model is the base.

    Returns:
        How much learns, and where.

    Raises:
        UsageError: If the kind is none, the model has no place for it, is adapted already, or has no part
            of a name in ``also``.
        UserError: If peft is missing, for lora and dora.
    """
    if config.kind == "none":
        raise UsageError("adapt.kind: expected lora, dora, state or prefix, got none")
    before = record_of(model)
    if before is not None and not before.merged:
        raise UsageError(f"adapt.kind: the model is adapted already ({before.config.kind}); merge it first")
    whole = _parts(model, config.also or [])
    base = fingerprint(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    buffers = {name: tensor.clone() for name, tensor in buffers_of(model).items()}
    new, where = _begin(model, config)
    learning = {id(parameter) for parameter in [*new, *whole]}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in learning)
    learns = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    keep(model, Record(config, base, learns, frozen, buffers))
    parameters = list(model.parameters())
    return Learning(
        learns=sum(one.numel() for one in parameters if one.requires_grad),
        total=sum(one.numel() for one in parameters),
        where=where + (f", and all of {', '.join(config.also)}" if config.also else ""),
    )


def merge(model: nn.Module) -> None:
    """Make an adapted model plain in place: low-rank changes go into the weights, and all learns again.

    Initial states and a prefix stay what they are: they cost a step nothing. A merged model can still be
    saved by ``save_adapter``.

    Raises:
        UsageError: If it is not adapted, or merged already.
    """
    record = record_of(model)
    if record is None or record.merged:
        raise UsageError(
            "merge: the model is not adapted" if record is None else "merge: it is merged already"
        )
    record.learned = learned(model)
    fold_low_rank(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in record.frozen)
    record.merged = True


def learned(model: nn.Module) -> dict[str, Tensor]:
    """What an adapted model has learned, on the CPU, by the names in the adapted model."""
    record = record_of(model)
    assert record is not None
    if record.merged:
        return record.learned
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().cpu().clone() for name in record.learns}


def _begin(model: nn.Module, config: AdaptConfig) -> tuple[list[nn.Parameter], str]:
    """Make what the kind learns: its parameters, and where they are."""
    name = type(model).__name__
    if config.kind in ("lora", "dora"):
        projections = projections_of(model)
        if not projections:
            raise UsageError(f"adapt.kind: {name} has no projection of a block for {config.kind} to change")
        changes = f"{config.kind} of rank {config.rank} in {len(projections)} projections"
        return add_low_rank(model, projections, config), changes
    stacks = stacks_of(model).values()
    if config.kind == "state":
        found = []
        for stack in stacks:
            if stack.has_learnable_state:
                stack.learn_initial_state()
                found += [one for key, one in stack.named_parameters() if ".initial." in key]
        if not found:
            raise UsageError(
                f"adapt.kind: {name} has no recurrent layer whose initial state could learn; choose lora"
            )
        return found, f"initial states of {len(found)} parts"
    causal = [stack for stack in stacks if stack.causal]
    if not causal:
        raise UsageError(
            f"adapt.kind: a prefix needs a stack that reads forwards alone, and {name} has none; "
            "choose lora or state"
        )
    for stack in causal:
        if stack.prefix is None:
            stack.learn_prefix(config.tokens)
    made = [stack.prefix for stack in causal if stack.prefix is not None]
    return made, f"{config.tokens} vectors before each sequence in {len(made)} stacks"


def _parts(model: nn.Module, names: list[str]) -> list[nn.Parameter]:
    found: list[nn.Parameter] = []
    for name in names:
        parts = [part for path, part in model.named_modules() if f".{path}".endswith(f".{name}")]
        inside = [parameter for part in parts for parameter in part.parameters()]
        own = [one for path, one in model.named_parameters() if f".{path}".endswith(f".{name}")]
        found += [*inside, *own]
        if not inside and not own:
            has = ", ".join(child for child, _ in model.named_children())
            raise UsageError(f"adapt.also: {type(model).__name__} has no part {name!r}; it has {has}")
    return found

"""One call from a model and a sample to a score for each token, a table and a picture.

model = LanguageModel.from_pretrained("runs/characters")
found = attribute(model, ids, labels=list(text))
print(found.table())
found.plot("why.png")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mambakit.core.adapters import Tokens, pad_batch
from mambakit.core.attribution.embedded import Embedded, Sample, device_of, embedded, evaluating, one_sample
from mambakit.core.attribution.gradients import (
    Function,
    baseline_like,
    complete_integrated_gradients,
    gradient_times_input,
)
from mambakit.core.attribution.hidden_attention import indices
from mambakit.core.attribution.layers import (
    attention_rollout,
    contributions_of_layers,
)
from mambakit.core.attribution.perturbation import perturbation
from mambakit.core.attribution.result import Attribution
from mambakit.core.backbone import Backbone

Target = int | Callable[[Tensor], Tensor]

# of integrated gradients
_MOST_STEPS = 512

METHODS = (
    "integrated_gradients",
    "gradient_times_input",
    "perturbation",
    "hidden_attention",
    "rollout",
)


def attribute(
    model: nn.Module,
    sample: Sample,
    *,
    method: str = "integrated_gradients",
    target: Target | None = None,
    target_name: str | None = None,
    position: int = -1,
    measure: Literal["logit", "log_probability"] = "logit",
    labels: Sequence[str] | None = None,
    baseline: Tensor | int | Literal["zero", "mean"] = "mean",
    embedding: nn.Module | None = None,
    backbone: Backbone | None = None,
    layers: Sequence[int] | None = None,
    steps: int = 32,
    window: int = 1,
    stride: int = 1,
    mode: Literal["replace", "drop"] = "replace",
    rows_per_call: int = 32,
) -> Attribution:
    """Score each token of a sample by what it does for one output of a model.

    Args:
        model: A ``LanguageModel``, a ``Backbone``, or any model called with ids ``(rows, length)``, a
            ``TokenBatch`` or floats ``(rows, length, width)``. Run in eval mode, and left as it was.
        sample: One sequence: ids ``(length,)`` int64, ``Tokens``, a ``TokenBatch`` of one sequence, or
            floats ``(length, width)``.
        method: ``"integrated_gradients"``, ``"gradient_times_input"`` or ``"perturbation"``, which explain
            a target, and act on the embeddings of ids and on channels as they are; ``"hidden_attention"``
            (who reads whom, as each layer's contributions; the scores are the mean over layers of the
            position's row, scaled to sum to one) or ``"rollout"`` (the position's row of
            ``attention_rollout``), which have none.
        target: Which of the last dimension's outputs, or a function of the output ``(rows, ...)`` to
            ``(rows,)``. None: the largest.
        position: Whose output is explained, where there is one for every token.
        measure: What of that output: itself, or its log-softmax.
        labels: The tokens' names; ids or positions by default.
        baseline: What stands for no token: zeros, the mean of the sample's embeddings, the embedding of an
            id, or a tensor that broadcasts to ``(1, length, width)``.
        embedding: The module that embeds the tokens, where there are several.
        backbone: Whose layers' attention is taken, where there are several.
        layers: Only these layers' attention.
        steps: Of integrated gradients; doubled, up to 512, while the completeness gap is more than a
            hundredth of what is explained.
        window, stride, mode: Of perturbation; to drop tokens, the position must be -1.
        rows_per_call: Rows that the model runs at once.

    Raises:
        TypeError: If the sample is of a type that is no sample.
        ValueError: On an unknown method, a target or position that is not there, a target for a method
            without one, labels of another number, or as the method's own function.
        TypeError: If the target or the position is of another type.
        RuntimeError: Inside ``torch.inference_mode``.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    length = len(one_sample(sample))
    if labels is not None and len(labels) != length:
        raise ValueError(f"labels: expected one for each of the {length} tokens, got {len(labels)}")
    (at,) = indices("position", [position], length)
    if torch.is_inference_mode_enabled():
        raise RuntimeError("attribute: takes gradients and hooks; call it outside torch.inference_mode")
    with evaluating(model):
        if method in ("hidden_attention", "rollout"):
            if target is not None:
                raise ValueError(f"target: {method} shows who reads whom, for any target; leave it out")
            return _reading(model, sample, method, at, labels, backbone, layers, length)
        if mode == "drop" and at != length - 1:
            raise ValueError(f"position: to drop tokens it must be the last one, -1, got {position}")
        given = embedded(model, sample, embedding)
        chosen, described = _scalar(given, target, at - length, measure, target_name)

        def function(rows: Tensor) -> Tensor:
            return chosen(given.run(rows))

        nothing = _baseline(given, baseline)
        result = _explaining(
            method, function, given.tokens, nothing, steps, window, stride, mode, rows_per_call
        )
    return Attribution(
        labels=_labels(given.ids, labels, length), method=method.replace("_", " "), target=described, **result
    )


def _explaining(
    method: str,
    function: Function,
    tokens: Tensor,
    nothing: Tensor,
    steps: int,
    window: int,
    stride: int,
    mode: Literal["replace", "drop"],
    rows_per_call: int,
) -> dict[str, Any]:
    """The parts of an ``Attribution`` that come of a function of the tokens."""
    if method == "integrated_gradients":
        found = complete_integrated_gradients(
            function, tokens, nothing, steps=steps, most_steps=_MOST_STEPS, rows_per_call=rows_per_call
        )
        return {
            "scores": _numpy(found.scores[0].sum(-1)),
            "value": float(found.value),
            "baseline_value": float(found.baseline_value),
            "gap": float(found.gap),
        }
    if method == "gradient_times_input":
        scores = gradient_times_input(function, tokens, nothing, rows_per_call=rows_per_call)[0].sum(-1)
    else:
        options = {"window": window, "stride": stride, "rows_per_call": rows_per_call}
        scores = perturbation(function, tokens, nothing, mode=mode, **options)[0]
    with torch.no_grad():
        value, baseline_value = function(tokens), function(nothing.expand_as(tokens))
    return {"scores": _numpy(scores), "value": float(value), "baseline_value": float(baseline_value)}


def _reading(
    model: nn.Module,
    sample: Sample,
    method: str,
    at: int,
    labels: Sequence[str] | None,
    backbone: Backbone | None,
    layers: Sequence[int] | None,
    length: int,
) -> Attribution:
    """Hidden attention of one sample."""
    plain = one_sample(sample)
    device = device_of(model)
    batch = pad_batch([plain]).to(device) if isinstance(plain, Tokens) else plain[None].to(device)
    by_layer = contributions_of_layers(model, batch, layers=layers, backbone=backbone)
    if method == "rollout":
        by_layer = {"all layers": attention_rollout(by_layer)}
    matrices = {name: matrix[0] for name, matrix in by_layer.items()}
    rows = torch.stack([matrix[at] / matrix[at].sum().clamp(min=1e-30) for matrix in matrices.values()])
    ids = plain if isinstance(plain, Tensor) else plain.values
    known = None if ids.is_floating_point() or ids.dim() != 1 else ids
    return Attribution(
        scores=_numpy(rows.mean(0)),
        labels=_labels(known, labels, length),
        method=method.replace("_", " "),
        target=f"what position {at} reads",
        signed=False,
        matrix_scale="share of what is read" if method == "rollout" else "norm of what is written",
        matrices={name: _numpy(matrix) for name, matrix in matrices.items()},
    )


def _scalar(
    given: Embedded, target: Target | None, position: int, measure: str, name: str | None
) -> tuple[Callable[[Tensor], Tensor], str]:
    """The output's number that is explained, as a function of the output, and what it is called."""
    if measure not in ("logit", "log_probability"):
        raise ValueError(f"measure: expected 'logit' or 'log_probability', got {measure!r}")
    if callable(target):
        return target, name or str(getattr(target, "__name__", "a function of the output"))
    length = given.tokens.shape[1]
    with torch.no_grad():
        output = given.run(given.tokens)
    if not isinstance(output, Tensor) or output.dim() not in (2, 3):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"target: the model's output is {got}, neither (rows, outputs) nor (rows, length, outputs); "
            "give a function of it to (rows,)"
        )
    if output.dim() == 3 and output.shape[1] != length:
        raise ValueError(
            f"target: the model's output has {output.shape[1]} positions for {length} tokens; "
            "give a function of it to (rows,)"
        )

    def outputs(output: Tensor) -> Tensor:
        row = output[:, position] if output.dim() == 3 else output
        return row.log_softmax(-1) if measure == "log_probability" else row

    n_outputs = output.shape[-1]
    if target is not None and (not isinstance(target, int) or isinstance(target, bool)):
        raise TypeError(f"target: expected the number of an output or a function, got {target!r}")
    index = int(outputs(output)[0].argmax()) if target is None else target
    if not 0 <= index < n_outputs:
        raise ValueError(f"target: {index} is outside the model's {n_outputs} outputs, 0..{n_outputs - 1}")
    where = f" at position {position + length}" if output.dim() == 3 else ""
    named = f"{measure.replace('_', ' ')} of {index if name is None else name}{where}"
    return lambda output: outputs(output)[:, index], named


def _baseline(given: Embedded, baseline: Tensor | int | str) -> Tensor:
    """What stands for no token, broadcast to ``given.tokens``."""
    if isinstance(baseline, Tensor):
        return baseline_like(given.tokens, baseline.to(given.tokens.device))
    if baseline == "zero":
        return torch.zeros_like(given.tokens)
    if baseline == "mean":
        return given.tokens.mean(1, keepdim=True).expand_as(given.tokens)
    if isinstance(baseline, str):
        raise ValueError(f"baseline: expected 'zero', 'mean', an id or a tensor, got {baseline!r}")
    if given.ids is None or given.embed_ids is None:
        raise ValueError(
            f"baseline: got the id {baseline}, but the sample's tokens are no ids; give a tensor"
        )
    return given.embed_ids(torch.full_like(given.ids, baseline))


def _labels(ids: Tensor | None, labels: Sequence[str] | None, length: int) -> list[str]:
    if labels is not None:
        return [str(label) for label in labels]
    return [str(i) for i in (range(length) if ids is None else ids.tolist())]


def _numpy(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().double().cpu().numpy()

"""The GPU benchmarks run dry on the CPU: their checks, rows and the weights they hand to the peers."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu_ops(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import gpu_ops

    return gpu_ops


@pytest.mark.slow
def test_ops_run_dry(gpu_ops: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_ops.main(["--dry-run", "--errors"]) == 0
    printed = capsys.readouterr().out
    for kind in ("ssd/", "selective_scan/", "causal_conv1d/", "gated_rms_norm/", "ssd_step/"):
        assert f"\n{kind}" in printed
    assert "WRONG" not in printed
    assert "failed" not in printed


def test_a_wrong_result_is_found_and_gets_no_row(gpu_ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_problems

    right = gpu_problems.gated_rms_norm

    def wrong_gradient(x: torch.Tensor, weight: torch.Tensor, **rest: Any) -> torch.Tensor:
        if "backend" not in rest:  # ours, not the float64 answer
            weight = weight + 0.01 * (weight - weight.detach())
        return right(x, weight, **rest)

    monkeypatch.setattr(gpu_problems, "gated_rms_norm", wrong_gradient)
    case = next(case for case in gpu_ops.CASES if case.kind == "gated_rms_norm")
    ceilings = gpu_ops.Ceilings(1e12, 1e15)
    found = gpu_ops.measure(case, ceilings, 0.0, with_peers=False, dry=True)
    assert found["fwd"]["mambakit"].is_right
    assert not found["fwd+bwd"]["mambakit"].is_right
    headlines, _ = gpu_ops.case_rows(case, found)
    values = {row["what"]: row["value"] for row in headlines}
    assert values["gpu/gated_rms_norm/R32768-D1536/fwd/ms"] > 0
    assert values["gpu/gated_rms_norm/R32768-D1536/fwd+bwd/ms"] is None
    assert gpu_ops.main(["--dry-run", "--only", "gated_rms_norm/*"]) == 1


def test_attention_is_one_peer_and_times_the_floor_are_those_of_the_case(gpu_ops: Any) -> None:
    figures = {
        "floor": gpu_ops.Figures(0.5, 0, 0, True),
        "mambakit": gpu_ops.Figures(1.0, 10, 1e-3, True),
        "torch_sdpa_flash": gpu_ops.Figures(3.0, 20, 1e-3, True),
        "torch_sdpa_cudnn": gpu_ops.Figures(2.0, 30, 1e-3, True),
        "fla": gpu_ops.Figures(0.1, 30, 0.5, False),
    }
    headlines, details = gpu_ops.case_rows(gpu_ops.CASES[0], {"fwd": figures})
    assert headlines[0]["what"] == "gpu/ssd/B8-L4096-H80-N128/fwd/ms"
    assert (headlines[0]["value"], headlines[0]["peers"]) == (1.0, {"torch_sdpa": 2.0})
    mib, times, errors = details
    assert (mib["value"], mib["peers"]) == (10, {"torch_sdpa": 30})
    assert (times["value"], times["peers"]) == (2.0, {"torch_sdpa": 4.0})
    assert errors["peers"]["fla"] == 0.5  # an error is told, right or wrong


def test_least_work_is_that_of_the_paper(gpu_ops: Any) -> None:
    problem = gpu_ops.build_problem(
        "ssd", {"B": 1, "L": 8, "H": 80, "N": 128}, torch.device("meta"), torch.bfloat16
    )
    # x, y, B, C and dt of one token
    assert problem.n_bytes["fwd"] == 8 * 2 * (2 * 80 * 64 + 2 * 128 + 80)
    assert problem.flops["fwd+bwd"] == 3 * problem.flops["fwd"]


@pytest.mark.parametrize("arguments", [["--only", "nothing*"], ["--dry-run", "--write"]])
def test_bad_calls_end_with_status_2(gpu_ops: Any, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu_ops.main(arguments)
    assert stopped.value.code == 2


@pytest.mark.slow
def test_models_run_dry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    import gpu_model

    assert gpu_model.main(["--dry-run", "--only", "mamba2*"]) == 0
    printed = capsys.readouterr().out
    for what in ("train", "decode-B1/eager", "decode-B64/graph"):
        assert f"mamba2-130m/{what}" in printed
    assert "failed" not in printed


@pytest.mark.peer
def test_transformers_model_with_our_weights_gives_our_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    import gpu_language

    cpu = torch.device("cpu")
    theirs = gpu_language.transformers_model(gpu_language.SMALL, cpu)
    tokens = torch.randint(gpu_language.SMALL.vocab, (2, 30))
    with torch.no_grad():
        wanted = gpu_language.ours(gpu_language.SMALL, cpu).logits(tokens)
        torch.testing.assert_close(theirs.logits(tokens), wanted, rtol=1e-4, atol=1e-5)


def test_decoding_in_place_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    import gpu_language

    model = gpu_language.ours(gpu_language.SMALL, torch.device("cpu"))
    said = []
    for in_place in (False, True):
        tokens = torch.arange(3)
        step = model.decoder(tokens, in_place)
        with torch.inference_mode():
            said.append([step() or tokens.tolist() for _ in range(6)])
    assert said[0] == said[1]

"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

TEXT = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, torch.Tensor] = {}
    exec(compile(block, "README.md", "exec"), names)
    if "y1" in names:
        # what the comment beside it says
        torch.testing.assert_close(
            torch.cat([names["y1"], names["y2"]], dim=1), names["y"], rtol=1e-4, atol=1e-5
        )

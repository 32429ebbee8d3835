"""one_thread: torch keeps to the caller's thread, and takes its own number again."""

from __future__ import annotations

import pytest
import torch

from mambakit.core.threads import one_thread


@pytest.mark.parametrize("where", [True, False])
def test_the_number_of_threads_comes_back_even_after_an_error(where: bool) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread(where=where):
            assert torch.get_num_threads() == (1 if where else 2)
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError), one_thread(where=where):
            1 / 0  # noqa: B018
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

"""Arrays at addresses, inside compiled loops.

Handing numba a tensor's address takes a fraction of a microsecond; handing it an array takes several, which
is what counts where one call computes one token.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic


@intrinsic
def pointer(typing: Any, address: Any, like: Any) -> Any:
    """An integer as a pointer to numbers of the type of ``like``; 0 is a pointer never to be read."""
    kind = types.CPointer(like)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.intp, like), codegen

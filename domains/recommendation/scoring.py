"""What every recommender can do, ours and the baselines: score all items as the next one."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mambakit.domains.recommendation.interactions import Interactions


class Scorer(Protocol):
    """Scores every item of the catalogue as a user's next one."""

    def scores(self, interactions: Interactions, events: NDArray[np.int64]) -> Tensor:
        """``(len(events), n_items)`` float32: how likely each item is in place of each event.

        Args:
            interactions: All events; of each user only those before the event are looked at.
            events: Events to be foretold, int64 into the events. One past the user's last event, which is the
                first of the next user, is not meant: see ``Recommender`` for what comes next.
        """
        ...

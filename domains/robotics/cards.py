"""Episodes by a card's name, a Minari id, or a path."""

from __future__ import annotations

import os
from pathlib import Path

from mambakit.core.data import Card, card_names, fetch, load_card
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.robotics.episodes import Episodes
from mambakit.domains.robotics.folder_files import read_folder
from mambakit.domains.robotics.lerobot_files import is_lerobot, read_lerobot
from mambakit.domains.robotics.minari_files import is_minari, read_minari

# Made in the process within a second: the scripted expert under growing noise.
_MADE_EPISODES = 200


def robotics_cards() -> list[str]:
    """Names of the cards of this domain."""
    return [name for name in card_names() if load_card(name).domain == "robotics"]


def load_episodes(source: Path | str) -> Episodes:
    """The episodes of a card, a Minari data set (id or folder), a LeRobot folder, or a folder of episodes.

    A name is looked for among the cards, then as a path, then among Minari's local data sets
    (MINARI_DATASETS_PATH, by default ~/.minari/datasets).

    Raises:
        UsageError: If there is nothing of that name.
        DataError: If it can't be read, or holds no episode that can be used.
    """
    text = str(source)
    if text.lower() in {name.lower() for name in card_names()} and "/" not in text:
        card = load_card(text)
        if card.domain != "robotics":
            raise UsageError(f"data: {card.name} is a data set of {card.domain}, not of robotics")
        found = _of_card(card)
        if Path(text).is_dir():
            found.notes.append(f"this is the card {card.name}; for the folder of that name pass ./{text}")
        return found
    path = Path(source).expanduser()
    if not path.exists():
        path = _minari_root() / text
        if not path.exists():
            raise UsageError(
                f"data: there is no folder {text}, no local Minari data set (minari download {text}) and no "
                f"card of that name (cards: {', '.join(robotics_cards())})"
            )
    found = _of_folder(path)
    if found.environment is not None:
        from mambakit.domains.robotics.environments import version_note

        note = version_note(found.environment)
        found.notes.extend([note] if note else [])
    if not found.episodes:
        lost = f"; the first, {found.left_out[0][0]}: {found.left_out[0][1]}" if found.left_out else ""
        raise DataError(f"{path} holds no episode that can be used{lost}")
    return found


def _of_folder(path: Path) -> Episodes:
    if not path.is_dir():
        raise UsageError(
            f"data: {path} is a file; expected a folder (Minari, LeRobot, or one file an episode)"
        )
    if is_lerobot(path):
        return read_lerobot(path)
    if is_minari(path):
        return read_minari(path)
    if (path / ".collecting").is_dir():
        raise DataError(f"{path} holds a collection that was not finished; run the same collect again")
    return read_folder(path)


def _of_card(card: Card) -> Episodes:
    if card.name == "reacher-noisy":
        from mambakit.domains.robotics.collection import CollectConfig, collect_in_memory, find_cast

        config = CollectConfig("Reacher-v5", level="noisy", episodes=_MADE_EPISODES)
        found = collect_in_memory(config, find_cast(config), card.name)
    else:
        from mambakit.domains.robotics.recorded import read_adroit, read_widowx

        (path,) = fetch(card).values()
        found = (read_widowx if card.name == "widowx" else read_adroit)(path, card.name)
    if len(found) != card.rows:
        raise DataError(f"{card.name}: its card promises {card.rows} episodes, there are {len(found)}")
    return found


def _minari_root() -> Path:
    chosen = os.environ.get("MINARI_DATASETS_PATH")
    return Path(chosen).expanduser() if chosen else Path.home() / ".minari/datasets"

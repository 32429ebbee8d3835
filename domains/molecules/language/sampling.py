"""Molecules drawn from a language model, many at once, each step in memory that does not grow."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from rdkit import Chem

from mambakit.core.adapters import SampleError
from mambakit.core.config_checks import check_least
from mambakit.core.errors import UsageError
from mambakit.core.generation import GenerationConfig, in_order, sample_stream
from mambakit.core.generation.constraints import Constraint
from mambakit.domains.molecules.language.decoration import ScaffoldGrammar, decorations, query_of
from mambakit.domains.molecules.language.model import MoleculeModel
from mambakit.domains.molecules.structures import structure
from mambakit.domains.molecules.tokenizer import END, PAD, START

# With `unique`, so many times the molecules wanted are drawn at most before giving up.
_MOST_DRAWS = 20


@dataclass(frozen=True)
class SamplingConfig:
    """How to draw molecules; see each field."""

    n: int = 1000
    """How many."""
    temperature: float = 1.0
    """Divides the logits: below 1 likelier molecules, above 1 stranger ones."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float = 1.0
    """Only the fewest likeliest tokens whose probabilities reach p."""
    unique: bool = False
    """Only valid molecules that were not drawn before."""
    prefix: str = ""
    """Every SMILES begins with these tokens."""
    scaffold: str = ""
    """A SMILES with attachment points, `*`, each of which gets a substituent."""
    max_length: int = 512
    """Tokens of a molecule at most."""
    seed: int = 0
    """The same seed draws the same molecules."""
    batch_size: int = 256
    """Molecules drawn at once."""

    def __post_init__(self) -> None:
        check_least(self, 1, "n", "max_length", "batch_size")
        if not self.temperature > 0:
            raise UsageError(f"temperature: expected a positive number, got {self.temperature}")
        if self.seed < 0:
            raise UsageError(f"seed: expected a number that is not negative, got {self.seed}")
        if self.prefix and self.scaffold:
            raise UsageError("prefix, scaffold: a molecule begins with one or contains the other; give one")
        try:
            self.generation()
        except (TypeError, ValueError) as error:
            raise UsageError(str(error)) from None

    def generation(self) -> GenerationConfig:
        """The options of the decoding loop."""
        return GenerationConfig(
            max_new_tokens=self.max_length + 1,
            strategy="sample",
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            eos_ids=(END,),
            pad_id=PAD,
        )


class Sample(NamedTuple):
    """One molecule drawn.

    Attributes:
        smiles: As it was drawn.
        canonical: The same molecule written canonically; '' if it is not valid.
        reason: Why it is not valid, or does not hold the scaffold; '' if all is well.
        log_prob: Of the tokens drawn under the model, in nats.
    """

    smiles: str
    canonical: str
    reason: str
    log_prob: float

    @property
    def valid(self) -> bool:
        """Whether RDKit reads it, and it holds what it had to."""
        return not self.reason


def sample(model: MoleculeModel, config: SamplingConfig) -> Iterator[Sample]:
    """Draw molecules, ``batch_size`` at a time, on the model's device.

    They come by number, each as soon as all before it are there: where one ends, the next is begun in its
    place, and by the order in which they end there would be too many short ones among the first. So neither
    the molecules nor their order depend on the batch size. With ``unique`` invalid and repeated molecules
    are drawn again; where 20 times the molecules wanted do not suffice, fewer come.

    Raises:
        UsageError: If prefix or scaffold can't be written with the model's tokens.
    """
    prompts, constraint, wanted = _start(model, config)
    was_training = model.training
    model.eval()
    most = config.n * (_MOST_DRAWS if config.unique else 1)
    seen: set[str] = set()
    given = 0
    try:
        drawn = sample_stream(
            model,
            (list(row) for row in itertools.cycle(prompts)),
            config.generation(),
            n=most,
            slots=min(config.batch_size, config.n),
            seeds=itertools.count(config.seed << 40),  # by number, not by batch
            constraint=constraint,
            graph=True,
        )
        for number, ids, ended, log_prob in in_order(drawn):
            prompt = prompts[number % len(prompts)]
            one = _read(model, [*prompt[1:], *ids], ended, log_prob, wanted, config.max_length)
            if config.unique and (not one.valid or one.canonical in seen):
                continue
            seen.add(one.canonical)
            given += 1
            yield one
            if given == config.n:
                return
    finally:
        model.train(was_training)


def _start(
    model: MoleculeModel, config: SamplingConfig
) -> tuple[list[tuple[int, ...]], Constraint, Chem.Mol | None]:
    """Prompts to take in turn, what may follow them, and what every molecule has to hold."""
    tokenizer = model.tokenizer
    if (config.prefix or config.scaffold) and tokenizer.kind != "smiles":
        raise UsageError("prefix, scaffold: these need a model of SMILES, and this one is of SELFIES")
    try:
        if config.scaffold:
            written = decorations(config.scaffold, tokenizer)
            grammar = ScaffoldGrammar(written, tokenizer)
            return [one.prompt for one in written], grammar.constraint(), query_of(config.scaffold)
        start = tokenizer.any_start() if config.prefix else START
        return [(start, *tokenizer.ids(config.prefix))], model.symbols_only(), None
    except SampleError as error:
        which = "scaffold" if config.scaffold else "prefix"
        raise UsageError(f"{which}: {error.reason}") from None


def _read(
    model: MoleculeModel,
    ids: list[int],
    ended: bool,
    log_prob: float,
    wanted: Chem.Mol | None,
    max_length: int,
) -> Sample:
    try:
        smiles = model.tokenizer.text(ids)
    except SampleError as error:
        return Sample("", "", error.reason, log_prob)
    if not ended:
        return Sample(smiles, "", f"no end within {max_length} tokens", log_prob)
    if not smiles:
        return Sample("", "", "no atom", log_prob)
    mol, reason = structure(smiles)
    if mol is None:
        return Sample(smiles, "", reason, log_prob)
    written = Chem.MolToSmiles(mol)
    if wanted is not None and not mol.HasSubstructMatch(wanted):
        return Sample(smiles, written, "it does not hold the scaffold", log_prob)
    return Sample(smiles, written, "", log_prob)

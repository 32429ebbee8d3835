"""Simulated reads of two organisms, with the errors and quality scores of a sequencing machine."""

from __future__ import annotations

import random

from dna_quality.tokenizer import QUALITY_OFFSET, Read

# Share of G and C in the two genomes
GC_CONTENT = (0.40, 0.60)


def simulate_reads(n_reads: int, seed: int) -> tuple[list[Read], list[int]]:
    """Reads of 30 to 80 letters and the organism (0 or 1) each came from.

    As in real genomes, C followed by G is rare (four fifths of them have mutated to TG). As on a real
    machine, quality falls along the read and single scores drop out; a letter is misread with the
    probability that its score states, and where the score is lowest it is written N.
    """
    rng = random.Random(seed)
    reads, organisms = [], []
    for _ in range(n_reads):
        organism = rng.randrange(2)
        length = rng.randint(30, 80)
        gc = GC_CONTENT[organism]
        letters = rng.choices("ACGT", weights=[1 - gc, gc, gc, 1 - gc], k=length)
        for i in range(length - 1):
            if letters[i] == "C" and letters[i + 1] == "G" and rng.random() < 0.8:
                letters[i] = "T"
        scores = []
        for i in range(length):
            mean = 38 - 18 * (i / 80) ** 2
            score = 2 if rng.random() < 0.02 else max(3, min(41, round(rng.gauss(mean, 3))))
            if score == 2:
                letters[i] = "N"
            elif rng.random() < 10 ** (-score / 10):
                letters[i] = rng.choice([letter for letter in "ACGT" if letter != letters[i]])
            scores.append(score)
        reads.append(Read("".join(letters), "".join(chr(score + QUALITY_OFFSET) for score in scores)))
        organisms.append(organism)
    return reads, organisms

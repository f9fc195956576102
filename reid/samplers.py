"""Which images make up the training batches.

The batches of an epoch are a pure function of (seed, epoch), so that training can go on anywhere. Several processes
share each batch: every one takes its part of it, and the joint batches are the same however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """One sample to make."""

    epoch: int
    """From 0."""
    position: int
    """In the epoch, over all processes, from 0."""
    row: int
    """Which image of the data set."""

    def rng(self, seed: int) -> np.random.Generator:
        """What is random in the sample, for `reid.transforms.augment`."""
        return np.random.default_rng([seed, self.epoch, self.position, self.row])


class IdentitySampler:
    """Batches of P different people with K images each (Hermans et al., arXiv:1703.07737).

    A person is drawn about once for every K images, at least once an epoch, and at most once in a batch. The K images
    are from as many cameras, and show as many different pictures, as there are; among these the ones that were shown
    least in this epoch come first. Images repeat where a person has fewer than K.

    Args:
        pids: (N,) identities of the images; those with a negative one are never drawn.
        camids: (N,) cameras.
        people: P.
        images: K.
        seed: of everything drawn.

    Raises:
        ValueError: fewer identities than P, or a number below 1.
    """

    def __init__(
        self, pids: NDArray[np.integer], camids: NDArray[np.integer], people: int, images: int, seed: int = 0
    ) -> None:
        if pids.shape != camids.shape or pids.ndim != 1:
            raise ValueError(f"camids: expected shape {pids.shape[:1]} like pids, got {camids.shape}")
        for name, value in (("people", people), ("images", images)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        rows = np.argsort(pids, kind="stable")
        rows = rows[pids[rows] >= 0]
        _, firsts, counts = np.unique(pids[rows], return_index=True, return_counts=True)
        if len(firsts) < people:
            raise ValueError(f"people: expected at most the {len(firsts)} identities there are, got {people}")
        self.people, self.images, self.seed = people, images, seed
        self.batch_size = people * images
        self._rows = np.split(rows, firsts[1:])
        self._cameras = [camids[own] for own in self._rows]
        self._shares = -(-counts // images)
        self.steps_per_epoch = int(-(-self._shares.sum() // people))
        """Batches an epoch."""

    def epoch(self, epoch: int) -> IntArray:
        """(S, P·K) rows of the data set; those of a person are next to each other."""
        rng = np.random.default_rng([self.seed, epoch])
        shares = self._fill(rng)
        persons = rng.permutation(len(shares))
        batches = _deal(shares[persons], self.steps_per_epoch, self.people, rng)
        groups = [_groups(self._rows[i], self._cameras[i], shares[i], self.images, rng) for i in persons]
        order = np.argsort(batches, kind="stable")
        plan: IntArray = np.concatenate(groups)[order].reshape(self.steps_per_epoch, self.batch_size)
        return plan

    def _fill(self, rng: np.random.Generator) -> IntArray:
        """In how many batches each person is to be, so that all batches are full."""
        shares: IntArray = np.minimum(self._shares, self.steps_per_epoch)
        while missing := self.steps_per_epoch * self.people - int(shares.sum()):
            more = rng.permutation(np.flatnonzero(shares < self.steps_per_epoch))[:missing]
            shares[more] += 1
        return shares


def _deal(shares: IntArray, steps: int, people: int, rng: np.random.Generator) -> IntArray:
    """Batches (S·P,) for the first person, then the second, and so on: each in as many different ones as its share.

    All batches are dealt out in random order, P times over. A person at the turn of two rounds must not get in the
    second what it has from the first: the second round keeps those for later.
    """
    rounds = rng.permuted(np.tile(np.arange(steps), (people, 1)), axis=1)
    ends = np.cumsum(shares)
    for number in range(1, people):
        person = int(np.searchsorted(ends, number * steps, side="right"))
        before = int(number * steps - (ends[person] - shares[person]))
        after = int(shares[person]) - before
        had = np.isin(rounds[number], rounds[number - 1, steps - before :])
        free = rounds[number, ~had]
        later = rng.permutation(np.concatenate((free[after:], rounds[number, had])))
        rounds[number] = np.concatenate((free[:after], later))
    return rounds.reshape(-1)


def _groups(rows: IntArray, camids: NDArray[np.integer], count: int, size: int, rng: np.random.Generator) -> IntArray:
    """(count, size) images of one person, see `IdentitySampler`."""
    _, cameras = np.unique(camids, return_inverse=True)
    shown = np.zeros(len(rows), np.int64)
    groups = np.empty((count, size), np.int64)
    for group in groups:
        order = np.lexsort((rng.random(len(rows)), shown, cameras))  # of each camera the least shown first
        firsts = np.searchsorted(cameras[order], cameras[order])
        turns = rng.random(len(rows))[cameras[order]]
        chosen = order[np.lexsort((turns, np.arange(len(rows)) - firsts))]  # first of each camera, second of each, …
        chosen = np.resize(chosen[:size], size)
        np.add.at(shown, chosen, 1)
        group[:] = rows[chosen]
    return groups


class ShuffledSampler:
    """Batches of all images in random order; those that would not fill the last batch of an epoch are left out.

    Args:
        rows: (N,) which images of the data set to draw from.
        batch_size: images in a batch, of all processes together; more than N: images repeat.
        seed: of the order.

    Raises:
        ValueError: no images, or a batch without any.
    """

    def __init__(self, rows: NDArray[np.integer], batch_size: int, seed: int = 0) -> None:
        if len(rows) == 0:
            raise ValueError("rows: expected at least one image, got none")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.rows, self.batch_size, self.seed = np.asarray(rows, np.int64), batch_size, seed
        self.steps_per_epoch = max(len(rows) // batch_size, 1)
        """Batches an epoch."""

    def epoch(self, epoch: int) -> IntArray:
        """(S, B) rows of the data set."""
        rng = np.random.default_rng([self.seed, epoch])
        wanted = self.steps_per_epoch * self.batch_size
        order = np.concatenate([rng.permutation(self.rows) for _ in range(-(-wanted // len(self.rows)))])
        return order[:wanted].reshape(self.steps_per_epoch, self.batch_size)


@dataclass(frozen=True)
class Batches:
    """The batches of a sampler from a step on, endless, as a loader of data takes them (`batch_sampler`)."""

    sampler: IdentitySampler | ShuffledSampler
    """What makes up the batches."""
    start: int = 0
    """First step to yield."""
    rank: int = 0
    """Which process this is, from 0."""
    world: int = 1
    """How many processes there are."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank: expected 0 to {self.world - 1}, got {self.rank}")
        if self.sampler.batch_size % self.world:
            raise ValueError(
                f"batch size: expected a multiple of {self.world} processes, got {self.sampler.batch_size}"
            )

    def __iter__(self) -> Iterator[list[Draw]]:
        size = self.sampler.batch_size
        share = size // self.world
        epoch, within = divmod(self.start, self.sampler.steps_per_epoch)
        while True:
            for step, batch in enumerate(self.sampler.epoch(epoch)[within:], within):
                first = self.rank * share
                rows = batch[first : first + share].tolist()
                yield [Draw(epoch, step * size + first + i, row) for i, row in enumerate(rows)]
            epoch, within = epoch + 1, 0


class Plan:
    """The batches of an epoch, for a loader whose processes live longer than that (`batch_sampler`).

    Attributes:
        batches: set it before the loader is iterated over again.
    """

    def __init__(self) -> None:
        self.batches: Iterable[list[Draw]] = ()

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self.batches)

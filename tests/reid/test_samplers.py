from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from reid.samplers import Batches, Draw, IdentitySampler, Plan, ShuffledSampler


@st.composite
def people(draw):
    """Labels, cameras and a sampler of them."""
    counts = draw(st.lists(st.integers(1, 12), min_size=1, max_size=12))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    names = rng.permutation(50)[: len(counts)]
    pids = rng.permutation(np.repeat(names, counts))
    camids = rng.integers(draw(st.integers(1, 6)), size=len(pids))
    taken = draw(st.integers(1, len(counts)))
    return pids, camids, IdentitySampler(pids, camids, taken, draw(st.integers(1, 6)), draw(st.integers(0, 9)))


@given(people(), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_batches_are_p_people_with_k_images(found, epoch: int) -> None:
    pids, camids, sampler = found
    plan = sampler.epoch(epoch)
    assert plan.shape == (sampler.steps_per_epoch, sampler.people * sampler.images)
    shown = pids[plan].reshape(sampler.steps_per_epoch, sampler.people, sampler.images)
    assert (shown == shown[..., :1]).all()
    assert all(len(set(batch)) == sampler.people for batch in shown[..., 0].tolist())
    assert set(plan.ravel().tolist()) <= set(range(len(pids)))

    shares = {pid: int((shown[..., 0] == pid).sum()) for pid in np.unique(pids)}
    for pid, share in shares.items():  # everybody is shown, about once for every K images
        wanted = min(-(-int((pids == pid).sum()) // sampler.images), sampler.steps_per_epoch)
        assert share >= max(wanted, 1)

    for group in plan.reshape(-1, sampler.images):
        own = pids == pids[group[0]]
        assert len(set(group.tolist())) == min(sampler.images, int(own.sum()))  # repeated only where there are no more
        cameras = np.unique(camids[own])
        assert len(set(camids[group].tolist())) == min(sampler.images, len(cameras))
        assert np.unique(group, return_counts=True)[1].max() <= -(-sampler.images // int(own.sum()))


def test_an_epoch_is_as_long_as_the_images_need() -> None:
    pids = np.repeat([7, 8, 9, 10], [8, 4, 3, 1])  # 2 + 1 + 1 + 1 groups of four
    sampler = IdentitySampler(pids, np.zeros(16, int), people=2, images=4)
    assert sampler.steps_per_epoch == 3
    shown = pids[sampler.epoch(0)][:, ::4]
    assert sorted(np.unique(shown, return_counts=True)[1].tolist()) == [1, 1, 2, 2]


def test_who_has_most_images_is_not_in_every_batch_twice() -> None:
    """One person has as many images as all others: one batch shows it once."""
    pids = np.repeat([0, 1, 2], [100, 2, 2])
    sampler = IdentitySampler(pids, np.zeros(104, int), people=3, images=4)
    plan = sampler.epoch(0)
    assert len(plan) == 9
    assert all(set(pids[batch].tolist()) == {0, 1, 2} for batch in plan)
    seen = np.unique(np.concatenate([sampler.epoch(epoch) for epoch in range(12)]))
    assert len(seen) > 100  # over the epochs, all of its images


def test_images_of_a_camera_take_turns() -> None:
    """Ten images of one camera and two of another: two of each, each as often as its neighbours."""
    pids, camids = np.zeros(24, int), np.repeat([0, 1, 0, 1], [10, 2, 10, 2])
    pids[12:] = 1
    sampler = IdentitySampler(pids, camids, people=2, images=4)
    for epoch in range(10):
        plan = sampler.epoch(epoch)
        for group in plan.reshape(-1, 4):
            assert sorted(camids[group].tolist()) == [0, 0, 1, 1]
        counts = np.bincount(plan.ravel(), minlength=24)
        assert set(counts[camids == 0].tolist()) <= {0, 1}
        assert set(counts[camids == 1].tolist()) == {3}


def test_who_meets_whom_is_left_to_chance() -> None:
    pids = np.repeat(np.arange(30), 12)
    sampler = IdentitySampler(pids, np.zeros(360, int), people=5, images=4, seed=1)
    met = np.zeros((30, 30))
    for epoch in range(100):
        for batch in pids[sampler.epoch(epoch)][:, ::4]:
            met[np.ix_(batch, batch)] += 1
    others = met[~np.eye(30, dtype=bool)]
    assert (np.diag(met) == 300).all()
    assert others.mean() == pytest.approx(300 * 4 / 29)
    assert others.std() < 2 * np.sqrt(others.mean())


def test_epochs_are_pure_functions_of_seed_and_number() -> None:
    rng = np.random.default_rng(0)
    pids, camids = rng.integers(20, size=200), rng.integers(3, size=200)
    for make in (
        lambda seed: IdentitySampler(pids, camids, 4, 3, seed),
        lambda seed: ShuffledSampler(np.arange(200), 12, seed),
    ):
        sampler = make(5)
        first = [sampler.epoch(epoch) for epoch in (2, 0, 1)]
        again = [make(5).epoch(epoch) for epoch in (2, 0, 1)]
        assert all((a == b).all() for a, b in zip(first, again, strict=True))
        assert not np.array_equal(first[0], first[1])
        assert not np.array_equal(make(6).epoch(2), first[0])
        assert np.array_equal(np.random.default_rng(0).integers(20, size=200), pids)  # and nothing was changed


def test_unlabelled_images_are_never_drawn() -> None:
    pids = np.array([-1, 0, -1, 1, 1, -1, 2])
    plan = IdentitySampler(pids, np.zeros(7, int), 2, 2).epoch(0)
    assert set(plan.ravel().tolist()) == {1, 3, 4, 6}


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3))
@settings(deadline=None)
def test_shuffled_batches_show_every_image_once(count: int, size: int, epoch: int) -> None:
    rows = np.arange(100, 100 + count)
    sampler = ShuffledSampler(rows, size)
    plan = sampler.epoch(epoch)
    assert plan.shape == (sampler.steps_per_epoch, size) == (max(count // size, 1), size)
    found, counts = np.unique(plan, return_counts=True)
    assert set(found.tolist()) <= set(rows.tolist())
    assert counts.max() - (counts.min() if plan.size >= count else 0) <= 1
    if size > count:
        assert len(found) == count


@given(people(), st.integers(1, 4), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_processes_share_the_batches_that_one_would_have(found, world: int, start: int) -> None:
    *_, sampler = found
    if sampler.batch_size % world:
        with pytest.raises(ValueError, match=f"batch size: expected a multiple of {world} processes"):
            Batches(sampler, 0, 0, world)
        return
    alone = list(islice(Batches(sampler, start), 7))
    shared = zip(*[islice(Batches(sampler, start, rank, world), 7) for rank in range(world)], strict=True)
    assert [list(chain.from_iterable(parts)) for parts in shared] == alone
    assert list(islice(Batches(sampler), start + 7))[start:] == alone  # gone on with, as if never stopped

    steps = sampler.steps_per_epoch
    for step, batch in enumerate(alone, start):
        assert {draw.epoch for draw in batch} == {step // steps}
        first = step % steps * sampler.batch_size
        assert [draw.position for draw in batch] == list(range(first, first + sampler.batch_size))
        assert [draw.row for draw in batch] == sampler.epoch(step // steps)[step % steps].tolist()


def test_a_draw_is_all_that_a_sample_depends_on() -> None:
    draws = [Draw(0, 0, 0), Draw(1, 0, 0), Draw(0, 1, 0), Draw(0, 0, 1)]
    values = [draw.rng(seed).random() for draw in draws for seed in (0, 1)]
    assert len(set(values)) == len(values)
    assert values == [draw.rng(seed).random() for draw in draws for seed in (0, 1)]


def test_a_plan_gives_a_loader_the_batches_of_each_epoch_in_turn() -> None:
    plan = Plan()
    loader = DataLoader(list(range(10)), batch_sampler=plan, num_workers=1, persistent_workers=True)
    assert list(loader) == []
    for batches in ([[1, 2], [3]], [[9]]):
        plan.batches = iter(batches)
        assert [batch.tolist() for batch in loader] == batches


def test_faulty_settings() -> None:
    pids, camids = np.array([0, 0, 1, -1]), np.zeros(4, int)
    with pytest.raises(ValueError, match="people: expected at most the 2 identities there are, got 3"):
        IdentitySampler(pids, camids, 3, 2)
    with pytest.raises(ValueError, match="images: expected at least 1, got 0"):
        IdentitySampler(pids, camids, 1, 0)
    with pytest.raises(ValueError, match=r"camids: expected shape \(4,\) like pids, got \(3,\)"):
        IdentitySampler(pids, camids[:3], 1, 1)
    with pytest.raises(ValueError, match="people: expected at most the 0 identities there are, got 1"):
        IdentitySampler(pids[:0], camids[:0], 1, 1)
    with pytest.raises(ValueError, match="rows: expected at least one image, got none"):
        ShuffledSampler(np.arange(0), 3)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        ShuffledSampler(np.arange(3), 0)
    with pytest.raises(ValueError, match="rank: expected 0 to 1, got 2"):
        Batches(ShuffledSampler(np.arange(4), 2), 0, 2, 2)

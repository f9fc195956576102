from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.augment import Augmentation
from detector.data import BatchPlan, Draw, TrainingSet, collate, number_identities, open_source, read_image
from detector.losses import NO_IDENTITY
from tests.detector.scenes import write_people
from tests.detector.test_layouts import write, write_crops


def test_identities_are_numbered_without_gaps_and_never_shared(tmp_path: Path) -> None:
    a = open_source(f"jde:{write_people(tmp_path / 'a', first_id=5)}")
    plain = open_source(f"yolo:{write(tmp_path / 'y', 'yolo', '0 0.5 0.5 0.2 0.4')}")
    b = open_source(f"crops:{write_crops(tmp_path / 'crops')}")
    assert number_identities([a, plain, b]) == 4
    assert {int(v) for rows in a.labels for v in rows[:, 1]} == {0, 1}
    assert a.labels[0][:, 1].tolist() == [0, 1]
    assert plain.labels[0][:, 1].tolist() == [NO_IDENTITY]
    assert [int(rows[0, 1]) for rows in b.labels] == [2, 2, 3]
    assert number_identities([a, plain, b]) == 4  # once more changes nothing
    assert [int(rows[0, 1]) for rows in b.labels] == [2, 2, 3]


def test_unreadable_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"a\.png: not a readable image"):
        read_image(tmp_path / "a.png")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., TrainingSet]:
    """Training sets over the same files: two people images, one plain image, crops."""
    texts = [
        f"jde:{write_people(tmp_path / 'a', 4)}@2",
        f"yolo:{write(tmp_path / 'y', 'yolo', '0 0.5 0.5 0.5 0.8')}@3",
        f"crops:{write_crops(tmp_path / 'crops')}@2",
    ]

    def build(seed: int = 0, mosaic: float = 0.5) -> TrainingSet:
        sources = [open_source(text) for text in texts]
        number_identities(sources)
        for source in sources:
            source.teacher = [np.repeat(rows[:, 1:2], 3, axis=1).astype(np.float16) for rows in source.labels]
        return TrainingSet(sources, seed, Augmentation(mosaic=mosaic))

    return build


def same(a: tuple[torch.Tensor, dict[str, torch.Tensor]], b: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> bool:
    return torch.equal(a[0], b[0]) and all(torch.equal(a[1][k], b[1][k]) for k in a[1])


def test_a_sample_depends_on_seed_epoch_and_position_alone(make) -> None:
    draws = [Draw(epoch, position, (64, 64)) for epoch in (0, 1) for position in range(13)]
    forward = [make()[draw] for draw in draws]
    data = make()
    backward = [data[draw] for draw in reversed(draws)][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert not any(same(a, b) for a, b in zip(forward[:13], forward[13:], strict=True))  # another epoch
    other = make(seed=1)
    assert not any(same(a, other[draw]) for a, draw in zip(forward, draws, strict=True))


def test_samples_are_what_network_and_criterion_take(make) -> None:
    data = make()
    kinds = set()
    for position in range(13):
        image, target = data[Draw(0, position, (128, 96))]
        assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 96, 128))
        n = len(target["boxes"])
        assert {k: (tuple(v.shape), v.dtype) for k, v in target.items()} == {
            "boxes": ((n, 4), torch.float32),
            "labels": ((n,), torch.int64),
            "ids": ((n,), torch.int64),
            "teacher": ((n, 3), torch.float32),
            "draw": ((2,), torch.int64),
        }
        assert (target["boxes"] >= 0).all()
        assert (target["boxes"] <= torch.tensor([128, 96, 128, 96])).all()
        assert target["draw"].tolist() == [0, position]
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
        assert (target["teacher"] == target["ids"][:, None]).all()  # rows stay with their person
        kinds |= {int(i) for i in target["ids"]}
    assert kinds == {NO_IDENTITY, 0, 1, 2, 3}
    images, targets = collate([data[Draw(0, i, (64, 32))] for i in range(3)])
    assert images.shape == (3, 3, 32, 64)
    assert len(targets) == 3


def test_people_keep_their_colours(make) -> None:
    """Identity 0 is drawn red, identity 1 blue: what lies inside a box is its identity's colour."""
    data = make(mosaic=0.6)
    seen = 0
    for position in range(26):
        index = data.plan(position // 13)[position % 13][0]
        image, target = data[Draw(position // 13, position % 13, (128, 128))]
        for box, label, identity in zip(target["boxes"], target["labels"], target["ids"], strict=True):
            if index == 2 or label != 0 or identity not in (0, 1):
                continue
            x, y = ((box[:2] + box[2:]) / 2).long().tolist()
            blue, _, red = image[:, y, x].int().tolist()
            if abs(red - blue) > 20:  # one image in ten has no colour
                assert (red > blue) == (identity == 0)
                seen += 1
    assert seen > 10


def test_an_epoch_shows_each_image_as_often_as_its_weight_says(make) -> None:
    plan = make().plan(0)
    pairs, counts = np.unique(plan, axis=0, return_counts=True)
    # Four images twice; one image three times; one canvas of crops twice.
    assert pairs.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [2, 0]]
    assert counts.tolist() == [2, 2, 2, 2, 3, 2]
    assert not np.array_equal(plan, make().plan(1))
    assert np.array_equal(plan, make().plan(0))


def test_a_light_source_still_shows_something(tmp_path: Path) -> None:
    source = open_source(f"jde:{write_people(tmp_path / 'a', 4)}@0.01")
    assert len(TrainingSet([source], 0).plan(0)) == 1
    source.weight = 0.5
    assert len(np.unique(TrainingSet([source], 0).plan(0)[:, 1])) == 2


def test_crops_alone_can_be_trained_on(tmp_path: Path) -> None:
    source = open_source(f"crops:{write_crops(tmp_path / 'crops')}")
    _, target = TrainingSet([source], 0)[Draw(0, 0, (96, 96))]
    assert len(target["boxes"]) == 3


def test_an_unreadable_image_is_named(make, tmp_path: Path) -> None:
    data = make()
    for path in data.sources[0].images:
        path.write_text("no picture")
    with pytest.raises(ValueError, match=r"\.png: not a readable image"):
        for position in range(13):
            data[Draw(0, position, (64, 64))]


def test_a_sample_names_its_image(make, tmp_path: Path) -> None:
    data = make(mosaic=0.0)
    paths = [data.path(0, position) for position in range(26)]
    assert paths[:13] == paths[13:]  # a batch larger than the data wraps around
    names = [str(path.relative_to(tmp_path)) for path in paths[:13]]
    wanted = 2 * [f"a/images/{i:03d}.png" for i in range(4)] + 3 * ["y/images/a.png"] + 2 * ["crops"]
    assert sorted(names) == sorted(wanted)
    victim = paths[names.index("a/images/002.png")]
    victim.write_text("no picture")
    with pytest.raises(ValueError, match=f"{victim}: not a readable image"):
        data[Draw(0, paths.index(victim), (64, 64))]


def test_augmentation_reaches_the_samples(make) -> None:
    """With every range at nothing a sample is the image itself."""
    data = make()
    data.augmentation = Augmentation(0, 0, (1, 1), 0, 0, 0, 0, 0, 0, 0)
    for position in range(13):
        image, _ = data[Draw(0, position, (96, 96))]
        path = data.path(0, position)
        if path.parent.parent.name == "a":
            assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - read_image(path)).max() <= 6


SIZES = ((64, 64), (96, 64))


def test_batches_go_on_from_any_step() -> None:
    whole = list(islice(BatchPlan(10, 3, SIZES, 5, 0), 9))
    assert list(islice(BatchPlan(10, 3, SIZES, 5, 4), 5)) == whole[4:]
    assert [[d.position for d in batch] for batch in whole[:4]] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 1, 2]]
    assert [batch[0].epoch for batch in whole] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all(len({d.size for d in batch}) == 1 for batch in whole)
    assert {batch[0].size for batch in whole} == set(SIZES)


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_processes_share_the_same_batches(world: int) -> None:
    """Whatever their number, and wherever they start: the shares in order are the whole."""
    whole = list(islice(BatchPlan(20, 6, SIZES, 5, 2), 8))
    shares = [list(islice(BatchPlan(20, 6, SIZES, 5, 2, rank, world), 8)) for rank in range(world)]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole
    assert all(len(batch) == 6 // world for share in shares for batch in share)
    assert BatchPlan(20, 6, SIZES, 5, 2, 0, world).steps_per_epoch == 3


def test_processes_that_cannot_share_a_batch() -> None:
    with pytest.raises(ValueError, match="batch_size: expected a multiple of 4 processes, got 6"):
        BatchPlan(20, 6, SIZES, 0, 0, 0, 4)
    with pytest.raises(ValueError, match="rank: expected 0 to 1, got 2"):
        BatchPlan(20, 6, SIZES, 0, 0, 2, 2)


def test_a_batch_larger_than_the_data_wraps_around(tmp_path: Path) -> None:
    plan = BatchPlan(2, 5, ((64, 64),), 0, 0)
    assert plan.steps_per_epoch == 1
    data = TrainingSet([open_source(f"jde:{write_people(tmp_path / 'a', 2)}")], 0)
    assert len([data[draw] for draw in next(iter(plan))]) == 5


def test_mosaics_show_a_source_as_often_as_its_weight_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    often = open_source(f"jde:{write_people(tmp_path / 'a', 10)}@1")
    rarely = open_source(f"jde:{write_people(tmp_path / 'b', 10)}@0.1")
    data = TrainingSet([often, rarely], 0, Augmentation(mosaic=1))
    seen: list[Path] = []

    def remember(path: Path) -> np.ndarray:
        seen.append(path)
        return read_image(path)

    monkeypatch.setattr("detector.data.read_image", remember)
    for epoch in range(12):
        for position in range(len(data.plan(epoch))):
            data[Draw(epoch, position, (64, 64))]
    share = sum(path.is_relative_to(tmp_path / "b") for path in seen) / len(seen)
    assert share == pytest.approx(1 / 11, abs=0.04)  # drawn evenly over sources it would be near 0.4


def test_a_region_to_be_ignored_is_no_identity(tmp_path: Path) -> None:
    images = write(tmp_path / "a", "jde", "0 7 0.5 0.5 0.2 0.4\n-1 9 0.5 0.5 0.2 0.4\n")
    source = open_source(f"jde:{images}")
    assert number_identities([source]) == 1
    assert source.labels[0][:, 1].tolist() == [0, NO_IDENTITY]

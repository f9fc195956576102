from collections.abc import Callable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detector.data import BatchPlan, Draw, TrainingSet, collate, number_identities, open_source, read_image
from detector.losses import IGNORE_LABEL, NO_IDENTITY
from tests.detector.scenes import noise, write_people


def write(folder: Path, layout: str, text: str | bytes | None, name: str = "a") -> Path:
    """One image with one label file; returns the image folder."""
    images = folder / "images"
    labels = folder / {"yolo": "labels", "jde": "labels_with_ids"}[layout]
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(exist_ok=True)
    cv2.imwrite(str(images / f"{name}.png"), noise(40, 60))
    if text is not None:
        (labels / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return images


def test_yolo_rows(tmp_path: Path) -> None:
    images = write(tmp_path, "yolo", "0 0.5 0.5 0.2 0.4\n\n17 0.1 0.1 0.1 0.1\n0 0.25 0.5 0 0.4\n0 0.3 0.4 0.1 0.2")
    source = open_source(f"yolo:{images}")
    assert source.images == [images / "a.png"]
    assert source.labels[0].tolist() == [[0, NO_IDENTITY, 0.5, 0.5, 0.2, 0.4], [0, NO_IDENTITY, 0.3, 0.4, 0.1, 0.2]]
    assert (source.weight, source.crops, source.length) == (1, False, 1)


def test_jde_rows(tmp_path: Path) -> None:
    images = write(
        tmp_path, "jde", "0 7 0.5 0.5 0.2 0.4\n0 -1 0.5 0.5 0.2 0.4\n-1 -1 0.2 0.2 0.2 0.2\n3 9 0.1 0.1 0.1 0.1\n"
    )
    rows = open_source(f"jde:{images}@2.5")
    assert rows.labels[0][:, :2].tolist() == [[0, 7], [0, NO_IDENTITY], [IGNORE_LABEL, NO_IDENTITY]]
    assert rows.weight == 2.5


def test_labels_of_a_folder_of_its_own(tmp_path: Path) -> None:
    images = write(tmp_path / "x", "yolo", "0 0.5 0.5 0.2 0.4\n")
    moved = tmp_path / "pictures"
    images.rename(moved)
    with pytest.raises(ValueError, match=r"pictures: give the labels as PATH,LABELS"):
        open_source(f"yolo:{moved}")
    assert len(open_source(f"yolo:{moved},{tmp_path / 'x' / 'labels'}@3").labels[0]) == 1


def test_the_last_images_in_a_path_is_replaced(tmp_path: Path) -> None:
    images = tmp_path / "images" / "a" / "images" / "train"
    images.mkdir(parents=True)
    labels = tmp_path / "images" / "a" / "labels" / "train"
    labels.mkdir(parents=True)
    cv2.imwrite(str(images / "1.jpg"), noise(20, 20))
    (labels / "1.txt").write_text("0 .5 .5 .5 .5")
    assert len(open_source(f"yolo:{images}").labels[0]) == 1


def test_an_image_without_labels_shows_nobody(tmp_path: Path) -> None:
    write(tmp_path, "jde", None, "b")
    images = write(tmp_path, "jde", "", "a")
    assert [rows.shape for rows in open_source(f"jde:{images}").labels] == [(0, 6), (0, 6)]


@pytest.mark.parametrize(
    ("layout", "line", "message"),
    [
        ("jde", "0 0.5 0.5 0.2 0.4", "expected 6 numbers, got 5"),
        ("yolo", "0 1 0.5 0.5 0.2 0.4", "expected 5 numbers, got 6"),
        ("yolo", "0 0.5 0.5 0.2 nan", "expected finite numbers, got '0 0.5 0.5 0.2 nan'"),
        ("yolo", "0 0.5 inf 0.2 0.4", "expected finite numbers, got '0 0.5 inf 0.2 0.4'"),
        ("yolo", "person 0.5 0.5 0.2 0.4", "expected 5 numbers, got 'person 0.5 0.5 0.2 0.4'"),
        ("jde", "0 1.5 0.5 0.5 0.2 0.4", "expected a whole identity, −1 or more, got 1.5"),
        ("jde", "0 -2 0.5 0.5 0.2 0.4", "expected a whole identity, −1 or more, got -2.0"),
        ("yolo", "0 320 240 64 128", "expected coordinates divided by the image's size, got '0 320 240 64 128'"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path: Path, layout: str, line: str, message: str) -> None:
    good = {"jde": "0 1 0.5 0.5 0.2 0.4", "yolo": "0 0.5 0.5 0.2 0.4"}[layout]
    images = write(tmp_path, layout, f"{good}\n\n{line}\n{good}\n")
    with pytest.raises(ValueError, match=r"a\.txt:3: ") as caught:
        open_source(f"{layout}:{images}")
    assert str(caught.value).endswith(message)


def test_a_label_file_that_is_no_text(tmp_path: Path) -> None:
    images = write(tmp_path, "yolo", b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"a\.txt: not a text file"):
        open_source(f"yolo:{images}")


def test_sources_that_are_none(tmp_path: Path) -> None:
    def refuse(text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            open_source(text)

    refuse("coco:x", "expected yolo:PATH, jde:PATH or crops:PATH, got 'coco:x'")
    refuse("yolo", "expected yolo:PATH")
    refuse(f"yolo:{tmp_path / 'absent'}", "absent: no such folder")
    (tmp_path / "images").mkdir()
    refuse(f"yolo:{tmp_path / 'images'}", "images: holds no image")
    cv2.imwrite(str(tmp_path / "images" / "a.png"), noise(8, 8))
    refuse(f"yolo:{tmp_path / 'images'}", "labels: no such folder of labels")
    for weight in ("x", "0", "-1", "nan", "inf"):
        refuse(f"yolo:{tmp_path / 'images'}@{weight}", "expected a positive number after @")
    refuse(f"crops:{tmp_path / 'images'}", "a.png: expected a name that starts with a person number")


def write_crops(folder: Path) -> Path:
    folder.mkdir()
    for k, name in enumerate(("0002_c1s1_1", "0002_c2s1_1", "0005_c1s1_1", "-1_c1s1_1", "0000_c3s1_1")):
        cv2.imwrite(str(folder / f"{name}.png"), np.full((48, 24, 3), 40 * k + 40, np.uint8))
    return folder


def test_crops_are_one_person_each_and_junk_is_left_out(tmp_path: Path) -> None:
    source = open_source(f"crops:{write_crops(tmp_path / 'crops')}")
    assert [p.name[:4] for p in source.images] == ["0000", "0002", "0002", "0005"]
    assert [rows.tolist() for rows in source.labels] == [[[0, p, 0.5, 0.5, 1, 1]] for p in (0, 2, 2, 5)]
    assert source.crops
    assert source.length == 1  # ten to a canvas


def test_identities_are_numbered_without_gaps_and_never_shared(tmp_path: Path) -> None:
    a = open_source(f"jde:{write_people(tmp_path / 'a', first_id=5)}")
    plain = open_source(f"yolo:{write(tmp_path / 'y', 'yolo', '0 0.5 0.5 0.2 0.4')}")
    b = open_source(f"crops:{write_crops(tmp_path / 'crops')}")
    assert number_identities([a, plain, b]) == 5
    assert {int(v) for rows in a.labels for v in rows[:, 1]} == {0, 1}
    assert a.labels[0][:, 1].tolist() == [0, 1]
    assert plain.labels[0][:, 1].tolist() == [NO_IDENTITY]
    assert [int(rows[0, 1]) for rows in b.labels] == [2, 3, 3, 4]
    assert number_identities([a, plain, b]) == 5  # once more changes nothing
    assert [int(rows[0, 1]) for rows in b.labels] == [2, 3, 3, 4]


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
        return TrainingSet(sources, seed, mosaic)

    return build


def same(a: tuple[torch.Tensor, dict[str, torch.Tensor]], b: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> bool:
    return torch.equal(a[0], b[0]) and all(torch.equal(a[1][k], b[1][k]) for k in a[1])


def test_a_sample_depends_on_seed_epoch_and_position_alone(make) -> None:
    draws = [Draw(epoch, position, 64) for epoch in (0, 1) for position in range(13)]
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
        image, target = data[Draw(0, position, 96)]
        assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 96, 96))
        n = len(target["boxes"])
        assert {k: (tuple(v.shape), v.dtype) for k, v in target.items()} == {
            "boxes": ((n, 4), torch.float32),
            "labels": ((n,), torch.int64),
            "ids": ((n,), torch.int64),
            "teacher": ((n, 3), torch.float32),
        }
        assert (target["boxes"] >= 0).all()
        assert (target["boxes"] <= 96).all()
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
        assert (target["teacher"] == target["ids"][:, None]).all()  # rows stay with their person
        kinds |= {int(i) for i in target["ids"]}
    assert kinds == {NO_IDENTITY, 0, 1, 2, 3, 4}
    images, targets = collate([data[Draw(0, i, 64)] for i in range(3)])
    assert images.shape == (3, 3, 64, 64)
    assert len(targets) == 3


def test_people_keep_their_colours(make) -> None:
    """Identity 0 is drawn red, identity 1 blue: what lies inside a box is its identity's colour."""
    data = make(mosaic=0.6)
    seen = 0
    for position in range(26):
        index = data.plan(position // 13)[position % 13][0]
        image, target = data[Draw(position // 13, position % 13, 128)]
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
    _, target = TrainingSet([source], 0)[Draw(0, 0, 96)]
    assert len(target["boxes"]) == 4


def test_an_unreadable_image_is_named(make, tmp_path: Path) -> None:
    data = make()
    for path in data.sources[0].images:
        path.write_text("no picture")
    with pytest.raises(ValueError, match=r"\.png: not a readable image"):
        for position in range(13):
            data[Draw(0, position, 64)]


def test_batches_go_on_from_any_step() -> None:
    whole = list(islice(BatchPlan(10, 3, (64, 96), 5, 0), 9))
    assert list(islice(BatchPlan(10, 3, (64, 96), 5, 4), 5)) == whole[4:]
    assert [[d.position for d in batch] for batch in whole[:4]] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 1, 2]]
    assert [batch[0].epoch for batch in whole] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all(len({d.size for d in batch}) == 1 for batch in whole)
    assert {batch[0].size for batch in whole} == {64, 96}


def test_a_batch_larger_than_the_data_wraps_around(tmp_path: Path) -> None:
    plan = BatchPlan(2, 5, (64,), 0, 0)
    assert plan.steps_per_epoch == 1
    data = TrainingSet([open_source(f"jde:{write_people(tmp_path / 'a', 2)}")], 0)
    assert len([data[draw] for draw in next(iter(plan))]) == 5

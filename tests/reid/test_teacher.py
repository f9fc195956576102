"""What the teacher is shown, and what is kept of its answers."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

import reid.teacher
from reid.crops import encode_crops
from reid.encoders import Encoder, EncoderConfig, build_encoder
from reid.teacher import TEACHER_DIM, describe_boxes
from tests.detector.scenes import noise

ROWS = [
    np.array([[0, 1, 0.5, 0.5, 0.25, 0.5], [-1, -1, 0.5, 0.5, 0.5, 0.5]]),  # a person; a region
    np.zeros((0, 6)),
    np.array(
        [
            [0, 2, 0.5, 0.5, 0.2, 0.2],  # 19 pixels high
            [0, 3, 0.0, 0.5, 0.5, 1.5],  # leaves the image
            [0, -1, 0.5, 0.5, 0.05, 0.9],  # 5 pixels wide
            [0, -1, 0.75, 0.5, 0.25, 0.25],  # just large enough
        ]
    ),
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_encoder(EncoderConfig("osnet_x0_25", neck="none"), seed=0).eval()


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(len(ROWS))]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), noise(96, 96, i))
    return paths


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Stands for the encoder's file: it is looked at, not read."""
    path = tmp_path / "osnet.pth"
    path.write_text("weights")
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many crops the encoder was given each time."""
    counts: list[int] = []

    def count(encoder: Encoder, crops: list[np.ndarray]) -> np.ndarray:
        counts.append(len(crops))
        return encode_crops(encoder, crops)

    monkeypatch.setattr(reid.teacher, "encode_crops", count)
    return counts


def test_embeddings_are_those_of_crops_cut_by_hand(
    encoder: Encoder, weights: Path, images: list[Path], tmp_path: Path
) -> None:
    found = describe_boxes(encoder, weights, images, ROWS, tmp_path, "people")
    assert [(rows.shape, rows.dtype.name) for rows in found] == [((n, TEACHER_DIM), "float16") for n in (2, 0, 4)]
    first, last = (cv2.imread(str(path)) for path in (images[0], images[2]))
    crops = [first[24:72, 36:60], last[:, :24], last[36:60, 60:84]]
    wanted = encode_crops(encoder, crops).astype(np.float16)
    assert np.array_equal(np.stack([found[0][0], found[2][1], found[2][3]]), wanted)
    assert np.linalg.norm(wanted.astype(np.float32), axis=1) == pytest.approx(np.ones(3), abs=1e-2)
    assert not found[0][1].any()
    assert not found[2][[0, 2]].any()


def test_the_teacher_is_asked_once(
    encoder: Encoder, weights: Path, images: list[Path], tmp_path: Path, asked: list[int]
) -> None:
    """And again when an image, a box or the teacher is another; identities do not matter."""

    def describe(rows: list[np.ndarray] = ROWS) -> list[np.ndarray]:
        return describe_boxes(encoder, weights, images, rows, tmp_path, "people")

    first = describe()
    assert asked == [3]
    again = describe()
    assert asked == [3]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    renamed = [rows.copy() for rows in ROWS]
    renamed[0][0, 1] = 9
    describe(rows=renamed)
    assert asked == [3]

    weights.write_text("trained further")
    describe()
    assert asked == [3, 3]
    moved = [rows.copy() for rows in ROWS]
    moved[0][0, 2] = 0.4
    describe(rows=moved)
    assert asked == [3, 3, 3]

    cv2.imwrite(str(images[0]), noise(96, 96, 9))
    os.utime(images[0], ns=(1, 1))
    changed = describe()
    assert asked == [3, 3, 3, 3]
    assert not np.array_equal(first[0][0], changed[0][0])
    assert np.array_equal(first[2], changed[2])
    assert not list(tmp_path.glob("*.part"))


def test_a_region_that_becomes_a_person_is_described(
    encoder: Encoder, weights: Path, images: list[Path], tmp_path: Path
) -> None:
    regions = [rows.copy() for rows in ROWS]
    regions[0][0, 0] = -1
    assert not describe_boxes(encoder, weights, images, regions, tmp_path, "people")[0].any()
    assert describe_boxes(encoder, weights, images, ROWS, tmp_path, "people")[0][0].any()


def test_many_images_are_described_in_parts(
    encoder: Encoder,
    weights: Path,
    images: list[Path],
    tmp_path: Path,
    asked: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = describe_boxes(encoder, weights, images, ROWS, tmp_path, "people")
    monkeypatch.setattr(reid.teacher, "CHUNK", 2)
    parts = describe_boxes(encoder, tmp_path / "0.png", images, ROWS, tmp_path, "people")
    assert asked == [3, 1, 2]
    for a, b in zip(whole, parts, strict=True):
        assert np.allclose(a, b, atol=1e-3)


def test_nobody_to_describe(
    encoder: Encoder, weights: Path, images: list[Path], tmp_path: Path, asked: list[int]
) -> None:
    rows = [np.zeros((0, 6)), ROWS[0][1:], np.zeros((0, 6))]
    found = describe_boxes(encoder, weights, images, rows, tmp_path, "people")
    assert [len(some) for some in found] == [0, 1, 0]
    assert not found[1].any()
    assert asked == []


def test_an_unreadable_image_is_named(encoder: Encoder, weights: Path, images: list[Path], tmp_path: Path) -> None:
    images[2].write_text("no picture")
    with pytest.raises(ValueError, match=r"2\.png: not a readable image"):
        describe_boxes(encoder, weights, images, ROWS, tmp_path, "people")
    assert not list(tmp_path.glob("teacher-*"))

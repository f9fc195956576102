"""Rank lists against a loop, and what their pictures show."""

import cv2
import numpy as np
import pytest

from reid.datasets import load_dataset
from reid.pictures import draw_rank_lists, headline, rank_list, worst_and_best
from reid.ranking import evaluate_ranking
from reid.sheets import QUERY, RIGHT, WRONG
from tests.reid.crops import add_images, add_market


@pytest.fixture
def dataset(tmp_path):
    return load_dataset(add_market(tmp_path / "m"), ("query", "gallery"))


def distances_of(query, gallery, seed=0):
    return np.random.default_rng(seed).random((len(query), len(gallery)))


def scores(distances, query, gallery):
    return evaluate_ranking(distances, query.pids, gallery.pids, query.camids, gallery.camids)


def frames(path, tile_height=270):
    """Colours of the frames in each row of a sheet, from the left."""
    sheet = cv2.imread(str(path))
    found = []
    for top in range(0, sheet.shape[0] - tile_height // 2, tile_height):
        line = sheet[top + 122].astype(int)  # through the middle of the images
        colours, previous = [], None
        for pixel in line:
            name = next((n for n, c in (("q", QUERY), ("r", RIGHT), ("w", WRONG)) if tuple(pixel) == c), None)
            if name and name != previous:
                colours.append(name)
            previous = name
        found.append("".join(colours[::2]))  # each frame has a left and a right side
    return found


def test_a_ranking_against_a_loop(dataset):
    query, gallery = dataset.query, dataset.gallery
    distances = np.round(distances_of(query, gallery), 1)  # with ties
    result = scores(distances, query, gallery)
    for place in range(len(query)):
        expected = []
        for j in sorted(range(len(gallery)), key=lambda j, i=place: distances[i, j]):
            same = gallery.pids[j] == query.pids[place]
            if gallery.pids[j] != -1 and not (same and gallery.camids[j] == query.camids[place]):
                expected.append((j, distances[place, j], same))
        one = rank_list(distances, place, query, gallery)
        assert one.query == place
        assert list(zip(one.places, one.distances.round(4), one.right, strict=True)) == [
            (j, pytest.approx(d), r) for j, d, r in expected
        ]
        hits = np.flatnonzero(one.right) + 1
        assert hits[0] == result.first_ranks[place]
        assert np.mean(np.arange(1, len(hits) + 1) / hits) == pytest.approx(result.average_precisions[place])


def test_worst_and_best(dataset):
    query, gallery = dataset.query, dataset.gallery
    query.pids[3] = 77  # nobody
    result = scores(distances_of(query, gallery), query, gallery)
    worst, best = worst_and_best(result, 3)
    valid = [i for i in range(8) if i != 3]
    precision = result.average_precisions
    assert worst == sorted(valid, key=lambda i: (precision[i], -result.first_ranks[i]))[:3]
    assert best == sorted(valid, key=lambda i: (-precision[i], result.first_ranks[i]))[:3]
    assert worst_and_best(result, 100)[0] == worst_and_best(result, 100)[1][::-1]
    assert worst_and_best(result, 0) == ([], [])


def test_frames_say_what_is_right(dataset, tmp_path):
    query, gallery = dataset.query, dataset.gallery
    distances = distances_of(query, gallery)
    result = scores(distances, query, gallery)
    lists = [rank_list(distances, place, query, gallery) for place in (0, 5, 2)]
    draw_rank_lists(tmp_path / "s.png", lists, query, gallery, result, count=6)
    expected = []
    for one in lists:
        row = "q" + "".join("r" if right else "w" for right in one.right[:6])
        expected.append(row if one.right[:6].any() else row + "r")
    assert frames(tmp_path / "s.png", cv2.imread(str(tmp_path / "s.png")).shape[0] // 3) == expected
    assert not list(tmp_path.glob("*.part"))


def test_the_first_right_one_follows_if_it_is_far_off(dataset, tmp_path):
    query, gallery = dataset.query, dataset.gallery
    right = gallery.pids == query.pids[0]
    distances = np.where(right, 1.0, 0.5)[None].repeat(len(query), axis=0)
    result = scores(distances, query, gallery)
    one = rank_list(distances, 0, query, gallery)
    draw_rank_lists(tmp_path / "s.png", [one], query, gallery, result, count=4)
    assert frames(tmp_path / "s.png") == ["qwwwwr"]
    assert headline(one, query, result).endswith("first of 2 matches at rank 14")


def test_a_query_without_match_and_a_gallery_of_few(dataset, tmp_path):
    query, gallery = dataset.query, dataset.gallery.select(np.arange(2, 5))
    query.pids[1] = 77
    distances = distances_of(query, gallery)
    result = scores(distances, query, gallery)
    one = rank_list(distances, 1, query, gallery)
    draw_rank_lists(tmp_path / "s.png", [one], query, gallery, result)
    assert frames(tmp_path / "s.png") == ["qwww"]
    assert headline(one, query, result).endswith("no match in the gallery")


def test_an_unreadable_image_is_named(dataset, tmp_path):
    query, gallery = dataset.query, dataset.gallery
    distances = distances_of(query, gallery)
    one = rank_list(distances, 0, query, gallery)
    gallery.paths[one.places[0]].write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"{gallery.paths[one.places[0]].name}: not an image"):
        draw_rank_lists(tmp_path / "s.png", [one], query, gallery, scores(distances, query, gallery))
    assert not (tmp_path / "s.png").exists()


def test_long_names_fit(tmp_path):
    add_images(tmp_path / "query", ["0001_c1_" + "x" * 100 + ".png"])
    add_images(tmp_path / "gallery", ["0001_c2_1.png"])
    data = load_dataset(tmp_path)
    distances = distances_of(data.query, data.gallery)
    result = scores(distances, data.query, data.gallery)
    draw_rank_lists(
        tmp_path / "s.png", [rank_list(distances, 0, data.query, data.gallery)], data.query, data.gallery, result
    )
    assert cv2.imread(str(tmp_path / "s.png")).shape[1] > 1000

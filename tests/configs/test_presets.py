"""The trackers that ship as YAML files: each is what the comment above it says, and each tracks."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml

import configs
from configs import dump_config, load_config
from tests.tracker.people import NOBODY, ids, look, run, standing
from tracker import Detections, Tracker, TrackerConfig

FILES = {file.stem.removeprefix("tracker_"): file for file in Path(configs.__file__).parent.glob("tracker_*.yaml")}
SCHEMA: dict[str, type] = {"tracker": TrackerConfig}


def preset(name: str) -> TrackerConfig:
    config = load_config(f"tracker_{name}", (), SCHEMA)["tracker"]
    assert isinstance(config, TrackerConfig)
    return config


every = pytest.mark.parametrize("name", ["jde", "byte", "botsort", "ocsort"])


def test_there_are_four():
    assert sorted(FILES) == ["botsort", "byte", "jde", "ocsort"]


@every
def test_each_says_which_paper_it_is_and_holds_what_it_names(name):
    text = FILES[name].read_text()
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert any(conference in comment for conference in ("ECCV", "CVPR", "2022")) and "et al." in comment
    assert f"--config tracker_{name}" in comment
    given = yaml.safe_load(text)
    assert list(given) == ["tracker"]
    assert asdict(preset(name)) == asdict(TrackerConfig()) | given["tracker"]
    assert preset(name) != TrackerConfig()


@every
def test_writing_and_reading_again(name, tmp_path):
    config = preset(name)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(dump_config({"tracker": config})))
    assert load_config(file, (), SCHEMA)["tracker"] == config
    changed = load_config(f"tracker_{name}", ("tracker.track_buffer=2.5",), SCHEMA)["tracker"]
    assert changed.track_buffer == 2.5 and changed.iou_thresh == config.iou_thresh


@every
def test_each_tracks_people_who_walk_hide_and_come_back(name):
    tracker = Tracker(preset(name), 30)
    for k in range(90):
        left, right = 4.0 * k, 700 - 3.0 * k
        found = standing(left, right, 1000, looks=(0, 1, 2))
        if 40 <= k < 50:
            found = found[np.array([0, 2])]
        result = tracker.update(found)
        if k >= 3:
            assert ids(result) == ([1, 3] if 40 <= k < 50 else [1, 2, 3])
    np.testing.assert_allclose(result.xyxy[:, 0], [left, right, 1000], atol=1)


# --- what makes each of them what it is, seen from outside


def last_ids(name, *frames):
    return ids(run(Tracker(preset(name), 30), frames)[-1])


@every
def test_lost_for_a_second_at_most(name):
    frames = [standing(0, looks=[0])] * 4
    assert last_ids(name, *frames, *[NOBODY] * 30, standing(0, looks=[0])) == [1]
    assert last_ids(name, *frames, *[NOBODY] * 31, standing(0, looks=[0])) == []


@pytest.mark.parametrize(("name", "expected"), [("jde", []), ("byte", [1]), ("botsort", [1]), ("ocsort", [])])
def test_low_scores(name, expected):
    assert last_ids(name, *[standing(0)] * 4, standing(0, score=0.2)) == expected


@pytest.mark.parametrize(("name", "expected"), [("jde", True), ("byte", False), ("botsort", True), ("ocsort", False)])
def test_looks(name, expected):
    """Two people, at 0 and 22, look like each other's next box, at 10 and 12; overlap alone keeps their order."""
    frames = [standing(0, 22, looks=(0, 1))] * 5 + [standing(10, 12, looks=(1, 0))]
    config = load_config(f"tracker_{name}", ("tracker.output=detection",), SCHEMA)["tracker"]
    lefts = run(Tracker(config, 30), frames)[-1].xyxy[:, 0].tolist()
    assert lefts == ([12, 10] if expected else [10, 12])


def test_the_limit_of_looks():
    """jde: a Euclidean distance of 0.7 over 0.98, 0.255 as a cosine one; botsort: half a cosine distance of 0.25."""

    def follows(name, cosine, before, left, *overrides):
        config = load_config(f"tracker_{name}", overrides, SCHEMA)["tracker"]
        found = Detections(standing(left).xyxy, [0.9], look(cosine))
        return ids(run(Tracker(config, 30), [*before, found])[-1]) == [1]

    here = [standing(0, looks=[0])] * 6
    assert follows("jde", 0.25, [*here, NOBODY], 0)  # lost: looks alone find people again
    assert not follows("jde", 0.26, [*here, NOBODY], 0)
    # A box that overlaps by 0.509 is near enough for looks, but a cost of 0.542 is too much without them.
    assert follows("botsort", 0.49, here, 13, "tracker.iou_thresh=0.5")
    assert not follows("botsort", 0.51, here, 13, "tracker.iou_thresh=0.5")


@pytest.mark.parametrize(("name", "expected"), [("jde", 0.5), ("byte", 0.8), ("botsort", 0.8), ("ocsort", 0.7)])
def test_reach_of_the_overlap(name, expected):
    """Largest step, in pixels, of a person 40 wide: (40 - d) / (40 + d), times the score where that is fused."""
    score = 0.9
    fused = score if name in ("byte", "botsort") else 1.0
    reach = 40 * (1 - (1 - expected) / fused) / (1 + (1 - expected) / fused)
    assert last_ids(name, *[standing(0)] * 5, standing(0.99 * reach, score=score)) == [1]
    assert last_ids(name, *[standing(0)] * 5, standing(1.01 * reach, score=score)) == []


@pytest.mark.parametrize(("name", "expected"), [("jde", 0.5), ("byte", 0.6), ("botsort", 0.7), ("ocsort", 0.6)])
def test_score_of_a_newcomer(name, expected):
    assert last_ids(name, standing(0, score=expected)) == [1]
    assert last_ids(name, standing(0, score=expected - 0.01)) == []


def test_only_ocsort_looks_at_the_last_box_and_waits_for_three_frames():
    frames = [*[standing(10 * k) for k in range(12)], *[NOBODY] * 5, standing(110)]
    assert [last_ids(name, *frames) for name in ("byte", "botsort", "ocsort")] == [[], [], [1]]
    newcomer = [standing(500)] * 3 + [standing(500, 0)] * 2
    assert last_ids("byte", *newcomer) == [1, 2] and last_ids("ocsort", *newcomer) == [1]
    assert last_ids("ocsort", *newcomer, newcomer[-1]) == [1, 2]


@pytest.mark.parametrize("name", ["byte", "ocsort"])
def test_embeddings_do_not_matter_to_those_who_use_none(name):
    rng = np.random.default_rng(0)
    one, other = Tracker(preset(name), 30), Tracker(preset(name), 30)
    for k in range(110):  # the second one is hidden while the first one passes
        passer = 5.0 * k
        hidden = k < 3 or abs(passer - 300) < 20
        found = standing(passer, 300, looks=(0, 1) if rng.random() < 0.9 else (1, 0))
        found = found[:1] if hidden else found
        a, b = one.update(found), other.update(Detections(found.xyxy, found.scores))
        assert ids(a) == ids(b)
        np.testing.assert_array_equal(a.xyxy, b.xyxy)


@every
def test_numbers_of_the_publications(name):
    config = preset(name)
    assert config.camera_motion == ("sparse" if name == "botsort" else "none")
    assert config.box_state == ("cxcywh" if name == "botsort" else "xyah")
    assert config.reupdate == (name == "ocsort")
    assert config.output == ("detection" if name == "ocsort" else "filtered")
    assert config.duplicate_thresh == (None if name == "ocsort" else 0.15)
    assert config.direction_weight == (0.2 if name == "ocsort" else 0)
    assert config.low_score_iou_thresh == 0.5 and config.tentative_iou_thresh == 0.7
    assert config.embedding_momentum == 0.9 and config.proximity_thresh == 0.5
    assert config.sure_thresh == 0 and config.classes == "separate"

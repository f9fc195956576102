"""Pseudo-identities of tracklets: people who are known, and whatever footage may lack."""

import numpy as np
import pytest
import torch

from reid.contrast import ContrastConfig
from reid.pseudo_labels import ClusterConfig
from reid.tracklet_labels import (
    TrackletClusterConfig,
    TrackletJaccardConfig,
    TrackletLabels,
    better,
    identity_batches,
    leave_out,
    separations,
)
from reid.tracklets import Tracklets, hold_out


def walkers(people: int = 6, cameras: int = 2, boxes: int = 12, noise: float = 0.25, seed: int = 0):
    """Everybody walks past each camera twice, two people at a time: features, tracklets, true person of each box."""
    rng = np.random.default_rng(seed)
    looks = rng.normal(size=(people, 32))
    tracks, times, camids, persons = [], [], [], []
    for camera in range(cameras):
        for turn in range(2):
            for person in range(people):
                begin = 100 * turn + 10 * (person // 2)
                tracks += [len(set(tracks))] * boxes
                times += (begin + np.arange(boxes) / 5).tolist()
                camids += [camera] * boxes
                persons += [person] * boxes
    features = looks[persons] / np.linalg.norm(looks, axis=1).mean() + noise * rng.normal(size=(len(persons), 32)) / 5
    return torch.from_numpy(features).float(), Tracklets(np.array(tracks), np.array(times), np.array(camids)), persons


def test_people_are_found_over_times_and_cameras() -> None:
    features, tracklets, persons = walkers()
    labels, figures = TrackletLabels().find(features, tracklets)
    assert labels.tolist() == persons
    assert figures["clusters"] == 6
    assert figures["tracklets"] == figures["whole"] == 24
    assert figures["across_cameras"] == 6
    assert figures["violations"] == figures["outliers"] == 0
    assert figures["boxes_alone"]["images"] == 24 * 8  # of each tracklet a few


def test_nobody_is_two_people_seen_at_once() -> None:
    """Where all look the same, tracklets alone keep people apart."""
    features, tracklets, _ = walkers(noise=0.0)
    same = features[:1] + 0.01 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    labels, figures = TrackletLabels(clusters=TrackletClusterConfig(eps=0.9)).find(same, tracklets)
    assert figures["boxes_alone"]["violations"] > 0
    assert figures["violations"] == 0
    for a, b in tracklets.cannot_link():
        assert not set(labels[tracklets.index == a]) & set(labels[tracklets.index == b])


def test_defaults_are_for_a_few_boxes_of_each_tracklet() -> None:
    assert TrackletJaccardConfig().k1 > TrackletLabels().sampled
    assert TrackletClusterConfig().eps < ClusterConfig().eps
    with pytest.raises(ValueError, match="k1: expected at least 1"):
        TrackletJaccardConfig(k1=0)


def test_one_person_is_nobody_to_tell_apart() -> None:
    features, _, _ = walkers(people=2)
    alone = Tracklets(np.zeros(20, int), np.arange(20.0), np.zeros(20, int))
    with pytest.raises(ValueError, match="one tracklet only: at least two people are needed"):
        TrackletLabels().limits(alone, ContrastConfig())
    twice = Tracklets(np.repeat([0, 1], 20), np.arange(40.0), np.zeros(40, int))
    everybody_the_same = features[:1] + 0.001 * torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="1 pseudo-identities, two are needed at least: a single cluster"):
        TrackletLabels().find(everybody_the_same, twice)


def test_what_footage_does_not_allow_is_said() -> None:
    _, tracklets, _ = walkers()
    assert TrackletLabels().limits(tracklets, ContrastConfig()) == []
    one_camera = tracklets[tracklets.camids == 0]
    assert TrackletLabels().limits(one_camera, ContrastConfig()) == ["one camera only: the camera term is off"]
    assert TrackletLabels().limits(one_camera, ContrastConfig(method="cluster")) == []
    few = Tracklets(np.repeat([0, 1], 5), np.arange(10.0), np.repeat([0, 1], 5))
    boxes, apart = TrackletLabels().limits(few, ContrastConfig())
    assert boxes == "10 boxes to cluster are no more than jaccard.k1=20: all are neighbours"
    assert apart.startswith("no two people are seen at once")


def test_held_out_tracklets_are_measured_not_learned() -> None:
    features, tracklets, persons = walkers(noise=1.0)
    held = hold_out(tracklets, 0.25)
    found = separations(features, tracklets, held)
    assert 0 < found["held"]["same_pairs"] < found["all"]["same_pairs"]
    assert found["all"]["auc"] > 0.9
    nothing = separations(features, tracklets, np.zeros(len(tracklets), bool))
    assert nothing["held"]["auc"] is None
    assert nothing["all"] == found["all"]

    labels = leave_out(np.array(persons), held)
    assert (labels[held] == -1).all()
    assert sorted(set(labels[~held])) == list(range(len(set(np.array(persons)[~held]))))
    with pytest.raises(ValueError, match="fewer than two pseudo-identities are left"):
        leave_out(np.array(persons), np.array(persons) > 0)


def test_which_epoch_is_better() -> None:
    def row(held: float | None, everybody: float | None) -> dict[str, dict[str, float | None]]:
        return {"held": {"auc": held}, "all": {"auc": everybody}}

    assert better(row(0.9, 0.1), row(0.8, 0.9))
    assert not better(row(0.8, 0.9), row(0.8, 0.1))
    assert better(row(None, 0.9), row(None, 0.8))
    assert not better(row(None, 0.7), row(None, 0.8))
    assert better(row(None, None), row(None, None))  # nothing tells: the last one


@pytest.mark.parametrize(("count", "people", "steps", "expected"), [(3, 16, 4, 4), (20, 4, 2, 5), (5, 2, 40, 40)])
def test_batches_of_a_few_boxes_of_each(count: int, people: int, steps: int, expected: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.r_[np.repeat(np.arange(count), 7), [-1, -1]]
    camids = rng.integers(0, 2, len(labels))
    plan = list(identity_batches(labels, camids, people, 3, steps, epoch=2, seed=1))
    assert len(plan) == expected
    for rows in plan:
        owners, shown = np.unique(labels[rows], return_counts=True)
        assert shown.tolist() == [3] * min(people, count)
        assert owners.min() >= 0
    again = list(identity_batches(labels, camids, people, 3, steps, epoch=2, seed=1))
    assert np.array_equal(np.stack(again), np.stack(plan))
    other = list(identity_batches(labels, camids, people, 3, steps, epoch=3, seed=1))
    assert not np.array_equal(np.stack(other), np.stack(plan))

"""Pseudo-identities of tracklets: people who are known, and whatever footage may lack."""

import itertools
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from reid.constraints import ConstraintConfig
from reid.contrast import ContrastConfig
from reid.jaccard import JaccardConfig
from reid.pseudo_labels import ClusterConfig, centre_cameras
from reid.separation import separation
from reid.tracklet_labels import (
    TrackletClusterConfig,
    TrackletJaccardConfig,
    TrackletLabels,
    better,
    identity_batches,
    leave_out,
    separations,
)
from reid.tracklets import Tracklets, hold_out, sample


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


def random_features(count: int, dim: int = 32) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(0)))


def alone_in_turn(tracks: int = 6, frames: int = 10) -> Tracklets:
    """Tracklets one after the other: nothing keeps them apart."""
    count = tracks * frames
    return Tracklets(np.arange(tracks).repeat(frames), np.arange(count) / 10, np.zeros(count, np.int64))


def test_rows_in_any_order() -> None:
    features, tracklets, _ = walkers()
    order = np.random.default_rng(1).permutation(len(tracklets))
    labels, _ = TrackletLabels().find(features, tracklets)
    mixed, _ = TrackletLabels().find(features[order], tracklets[order])
    assert len(set(zip(labels[order].tolist(), mixed.tolist(), strict=True))) == 6


@pytest.mark.parametrize("noise", [0.5, 2.0, 6.0])
def test_what_tracklets_tell_always_holds(noise: float) -> None:
    """Whatever the features say, tracklets stay whole, and who was seen at once is not one person."""
    features, tracklets, _ = walkers(noise=noise, seed=3)
    labels, figures = TrackletLabels().find(features, tracklets)
    of_tracklet = [set(labels[tracklets.index == i].tolist()) for i in range(24)]
    assert all(len(own) == 1 for own in of_tracklet)
    for a, b in tracklets.cannot_link():
        assert of_tracklet[a] == {-1} or of_tracklet[a] != of_tracklet[b]
    assert figures["clusters"] == len(set(labels.tolist()) - {-1})
    assert figures["outliers"] == (labels == -1).sum()  # boxes


def test_boxes_that_are_not_sampled_have_no_say() -> None:
    features, tracklets, persons = walkers()
    few = TrackletLabels(sampled=4, jaccard=JaccardConfig(k1=14, k2=4))
    labels, figures = few.find(features, tracklets)
    assert figures["boxes_alone"]["images"] == 24 * 4
    assert labels.tolist() == persons
    unseen = np.setdiff1d(np.arange(len(tracklets)), sample(tracklets, 4))
    features[unseen] = features[unseen].flip(0)
    assert few.find(features, tracklets)[0].tolist() == persons


def test_cameras_are_centred_where_asked() -> None:
    """What a camera does to everybody's looks is taken off before boxes are compared, by all boxes."""
    features, tracklets, persons = walkers()
    seen = features + 0.3 * torch.randn(2, 32, generator=torch.Generator().manual_seed(0))[tracklets.camids]
    centring = TrackletLabels(clusters=TrackletClusterConfig(centre_cameras=True))
    _, plain = TrackletLabels().find(seen, tracklets)
    labels, figures = centring.find(seen, tracklets)
    assert plain["across_cameras"] == 0
    assert figures["across_cameras"] == 6
    assert labels.tolist() == persons
    by_hand = TrackletLabels().find(centre_cameras(seen, torch.from_numpy(tracklets.camids)), tracklets)
    assert by_hand[0].tolist() == labels.tolist()


def test_other_settings_are_those_of_images() -> None:
    assert replace(JaccardConfig(), k1=20) == JaccardConfig(**asdict(TrackletJaccardConfig()))
    assert replace(ClusterConfig(), eps=0.4) == ClusterConfig(**asdict(TrackletClusterConfig()))
    with pytest.raises(ValueError, match="eps: expected a distance above 0 and below 1, got 1"):
        TrackletClusterConfig(eps=1.0)


def test_no_pseudo_identity() -> None:
    strict = TrackletLabels(clusters=ClusterConfig(eps=0.01), constraints=ConstraintConfig(lone_tracklets=False))
    wanted = r"0 pseudo-identities, two are needed at least: no cluster.*raise eps \(0.01\)"
    with pytest.raises(ValueError, match=wanted):
        strict.find(random_features(60), alone_in_turn())


def test_lone_tracklets_are_people_where_no_box_has_a_neighbour() -> None:
    tracklets = alone_in_turn()
    labels, figures = TrackletLabels(clusters=ClusterConfig(eps=0.01)).find(random_features(60), tracklets)
    assert labels.tolist() == tracklets.index.tolist()
    assert figures["boxes_alone"]["clusters"] == 0


def test_clusters_that_tracklets_join_to_one() -> None:
    """Boxes are in two clusters, but every tracklet has some of both."""
    features = torch.nn.functional.normalize(torch.eye(2).repeat(30, 1) + 0.05 * random_features(60, 2))
    labels = TrackletLabels(jaccard=JaccardConfig(k1=12, k2=4), clusters=ClusterConfig(eps=0.5))
    with pytest.raises(ValueError, match="1 pseudo-identities, two are needed at least: all tracklets are joined"):
        labels.find(features, alone_in_turn())


@pytest.mark.parametrize(("k1", "said"), [(79, False), (80, True), (90, True)])
def test_as_many_boxes_as_neighbours(k1: int, said: bool) -> None:
    """Ten tracklets, of each eight boxes are clustered; one is a neighbour of itself."""
    tracklets = alone_in_turn(10)
    notes = TrackletLabels(jaccard=JaccardConfig(k1=k1)).limits(tracklets, ContrastConfig(method="cluster"))
    assert any(note.startswith(f"80 boxes to cluster are no more than jaccard.k1={k1}") for note in notes) == said


def test_separations_are_those_of_some_and_of_all() -> None:
    features, tracklets, _ = walkers(noise=1.0)
    held = hold_out(tracklets, 0.25)
    found = separations(features, tracklets, held)
    assert found["held"] == separation(features.numpy(), tracklets, measured=held).figures()
    assert found["all"] == separation(features.numpy(), tracklets).figures()


@pytest.mark.parametrize("part", ["held", "all"])
def test_an_epoch_as_good_is_not_better(part: str) -> None:
    row = {"held": {"auc": 0.8 if part == "held" else None}, "all": {"auc": 0.8}}
    assert not better(row, row)


def test_what_is_left_is_numbered_anew() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2, -1, 3])
    held = np.array([0, 0, 1, 1, 1, 0, 0, 0], bool)
    assert leave_out(labels, held).tolist() == [0, 0, -1, -1, -1, 1, -1, 2]
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, -1, 3]  # as they were


def test_a_batch_shows_each_person_in_all_cameras() -> None:
    labels = np.repeat(np.arange(-1, 6), 5)
    camids = np.arange(len(labels)) % 2
    for people, steps in itertools.product((2, 3, 50), (1, 7)):
        for rows in identity_batches(labels, camids, people, 4, steps, epoch=0, seed=0):
            who = labels[rows].reshape(-1, 4)
            assert (who == who[:, :1]).all()
            assert len(set(who[:, 0].tolist())) == len(who)
            assert all(len(set(camids[own].tolist())) == 2 for own in rows.reshape(-1, 4))

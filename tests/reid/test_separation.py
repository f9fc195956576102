"""Label-free figures of embeddings and clusters: against scikit-learn, loops and closed forms."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from reid import separation as module
from reid.separation import Agreement, agreement, separation
from reid.tracklets import Tracklets
from tests.reid.test_tracklets import crowd, tracklets, two_people


def all_pairs(t, min_time=0.0):
    """Every pair that could be drawn, as sets of rows: of one tracklet far apart, of one frame."""
    same, other = set(), set()
    for a, b in itertools.combinations(range(len(t)), 2):
        span = np.ptp(t.spans[t.index[a]])
        thirds = sorted(round(float(t.progress[row]) * 3, 9) for row in (a, b))
        if t.index[a] == t.index[b] and span >= min_time and thirds[0] <= 1 and thirds[1] >= 2:
            same.add(frozenset((a, b)))
        if t.camids[a] == t.camids[b] and t.times[a] == t.times[b]:
            other.add(frozenset((a, b)))
    return same, other


def cosine_distance(features, pair):
    a, b = (features[row] for row in pair)
    return 1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


@settings(deadline=None, max_examples=60)
@given(tracklets(), st.sampled_from([0.0, 3.0, 100.0]), st.booleans(), st.integers(0, 2**32 - 1))
def test_every_pair_counts_where_there_are_few(t, min_time, coarse, seed):
    """Two dimensions and whole numbers: many distances are equal up to rounding, which rounding must not decide."""
    rng = np.random.default_rng(seed)
    features = rng.choice([1.0, -1.0], (len(t), 2)) if coarse else rng.normal(size=(len(t), 5))
    found = separation(features, t, min_time=min_time, per_track=1000)
    same, other = ([cosine_distance(features, pair) for pair in pairs] for pairs in all_pairs(t, min_time))
    assert (found.same_pairs, found.other_pairs) == (len(same), len(other))
    assert found.same_distance == (pytest.approx(np.mean(same)) if same else None)
    assert found.other_distance == (pytest.approx(np.mean(other)) if other else None)
    if not same or not other:
        assert found.auc is found.tpr10 is found.tpr100 is None
        return
    truth, score = np.r_[np.ones(len(same)), np.zeros(len(other))], -np.round(same + other, 9)
    assert found.auc == pytest.approx(roc_auc_score(truth, score))
    false, true, _ = roc_curve(truth, score, drop_intermediate=False)
    assert found.tpr10 == pytest.approx(true[false <= 0.1].max())
    assert found.tpr100 == pytest.approx(true[false <= 0.01].max())


@settings(deadline=None, max_examples=30)
@given(tracklets(), st.integers(0, 2**32 - 1))
def test_measured_are_pairs_that_hold_somebody_of_them(t, seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(len(t), 5))
    measured = (rng.random(len(t.sizes)) < 0.5)[t.index]
    found = separation(features, t, measured=measured, per_track=1000)
    pairs = [[pair for pair in pairs if measured[list(pair)].any()] for pairs in all_pairs(t)]
    assert (found.same_pairs, found.other_pairs) == tuple(map(len, pairs))
    for mean, own in zip((found.same_distance, found.other_distance), pairs, strict=True):
        assert mean == (pytest.approx(np.mean([cosine_distance(features, pair) for pair in own])) if own else None)
    assert separation(features, t, measured=np.ones(len(t), bool), seed=seed) == separation(features, t, seed=seed)
    with pytest.raises(ValueError, match="measured: expected shape"):
        separation(features, t, measured=np.ones(len(t) + 1, bool))


@pytest.mark.parametrize("others", [9, 10, 100, 250, 1000])
def test_accepted_shares_at_any_number_of_pairs(others):
    rng = np.random.default_rng(others)
    same, other = rng.normal(0, 1, 300).round(1), rng.normal(1, 1, others).round(1)
    truth, score = np.r_[np.ones(300), np.zeros(others)], -np.r_[same, other]
    false, true, _ = roc_curve(truth, score, drop_intermediate=False)
    assert module._accepted(same, other, 10) == pytest.approx(true[false <= 0.1].max())
    assert module._accepted(same, other, 100) == pytest.approx(true[false <= 0.01].max())
    assert module._auc(same, other) == pytest.approx(roc_auc_score(truth, score))


def test_embeddings_that_tell_everybody_apart_and_those_that_tell_nobody():
    t = two_people()
    person = np.eye(3)[t.tracks]
    perfect = separation(5.0 * person, t)  # of any length
    assert (perfect.auc, perfect.tpr10, perfect.tpr100) == (1.0, 1.0, 1.0)
    assert (perfect.same_distance, perfect.other_distance) == (0.0, 1.0)
    nobody = separation(np.ones((len(t), 3)), t)
    assert (nobody.auc, nobody.tpr10) == (0.5, 0.0)
    assert perfect.figures()["auc"] == 1.0


def test_embeddings_that_follow_the_frame_are_worse_than_chance():
    t = two_people()
    assert separation(np.eye(200)[t.times.astype(int)], t).auc == 0.0


def test_blocks_change_nothing(monkeypatch):
    t = crowd(20, 2)
    features = np.random.default_rng(0).normal(size=(len(t), 6)).astype(np.float32)
    whole = separation(features, t)
    monkeypatch.setattr(module, "_BLOCK_PAIRS", 7)
    assert separation(features, t) == whole


def test_long_tracklets_have_no_more_pairs_than_others():
    """Five of ten boxes and one of 1000, all at once."""
    tracks = np.repeat(np.arange(6), [10, 10, 10, 10, 10, 1000])
    times = np.concatenate([np.arange(n) for n in (10, 10, 10, 10, 10, 1000)])
    t = Tracklets(tracks, times, np.zeros(len(tracks), int))
    rng = np.random.default_rng(0)
    within = module._pairs_within(t, np.ones(len(t), bool), 0.0, 12, rng)
    assert np.bincount(t.index[within[:, 0]]).tolist() == [12] * 6
    assert len(np.unique(within, axis=0)) == len(within)
    together = module._pairs_together(t, np.ones(len(t), bool), 10, rng)
    assert np.bincount(t.index[together].reshape(-1)).tolist() == [10] * 6
    # Two of each of the fifteen pairs of tracklets, before a third of any.
    assert np.unique(t.index[together], axis=0, return_counts=True)[1].tolist() == [2] * 15


def test_drawn_by_seed_and_whatever_the_numbers():
    t = crowd(40, 2)
    features = np.random.default_rng(0).normal(size=(len(t), 4))
    first = separation(features, t, per_track=2, seed=3)
    assert first == separation(features, t, per_track=2, seed=3)
    assert first != separation(features, t, per_track=2, seed=4)
    assert first == separation(features, Tracklets(-t.tracks, t.times, t.camids), per_track=2, seed=3)


def test_nothing_one_box_and_rows_of_zeros():
    nothing = separation(np.zeros((0, 4)), Tracklets([], [], []))
    assert (nothing.same_pairs, nothing.other_pairs, nothing.auc, nothing.same_distance) == (0, 0, None, None)
    assert separation(np.ones((1, 4)), Tracklets([0], [0], [0])) == nothing
    zeros = separation(np.zeros((len(two_people()), 4)), two_people())
    assert (zeros.same_distance, zeros.other_distance, zeros.auc) == (1.0, 1.0, 0.5)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (np.ones((3, 2)), {}, r"features: expected shape \(30, D\), got \(3, 2\)"),
        (np.ones(30), {}, r"features: expected shape \(30, D\), got \(30,\)"),
        (np.where(np.arange(60).reshape(30, 2) == 9, np.nan, 1), {}, "features: row 4 is not finite"),
        (np.ones((30, 2)), {"per_track": 0}, "per_track: expected at least 1, got 0"),
    ],
)
def test_features_that_cannot_be_measured(features, options, message):
    with pytest.raises(ValueError, match=message):
        separation(features, two_people(), **options)


@settings(deadline=None, max_examples=60)
@given(tracklets(), st.booleans(), st.integers(0, 2**32 - 1))
def test_agreement_equals_loops(t, overlapping, seed):
    labels = np.random.default_rng(seed).choice([-1, 0, 2, 5], len(t))
    clusters = [set(labels[t.index == i].tolist()) for i in range(len(t.sizes))]
    apart = t.cannot_link(overlapping).tolist()
    names = sorted(set(labels.tolist()) - {-1})
    members = [sum(name in own for own in clusters) for name in names]
    assert agreement(labels, t, overlapping) == Agreement(
        tracklets=len(clusters),
        whole=sum(len(own) == 1 and own != {-1} for own in clusters),
        outliers=sum(own == {-1} for own in clusters),
        cannot_links=len(apart),
        violations=sum(bool(clusters[a] & clusters[b] - {-1}) for a, b in apart),
        clusters=len(names),
        tracklets_per_cluster=pytest.approx(np.mean(members)) if names else None,
        across_cameras=sum(len(set(t.camids[labels == name].tolist())) > 1 for name in names),
    )


def test_agreement_wants_a_label_for_each_box():
    with pytest.raises(ValueError, match=r"labels: expected shape \(30,\), got \(2,\)"):
        agreement(np.zeros(2, int), two_people())

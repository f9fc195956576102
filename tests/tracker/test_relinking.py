"""Pieces of a track are joined as loops over all pairs would join them; nothing else changes."""

import itertools
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker.boxes import cxcywh_to_xyxy
from tracker.relinking import relink
from tracker.trajectories import Trajectories

LIMITS = {
    "max_seconds": 10.0,
    "embedding_thresh": 0.3,
    "max_deviation": 0.3,
    "motion_seconds": 2.0,
    "motion_thresh": 0.25,
}
RATE = 10.0


def scene(*pieces, embeddings=None):
    """Each piece is (track_id, frames, function of the frame to cx, cy, height) and, where it has one, a class."""
    frames, track_ids, boxes, classes = [], [], [], []
    for track_id, piece_frames, place, *rest in pieces:
        for frame in piece_frames:
            x, y, height = place(frame)
            frames.append(frame)
            track_ids.append(track_id)
            boxes.append([x, y, 0.4 * height, height])
            classes.append(rest[0] if rest else 0)
    count = len(frames)
    return Trajectories(
        np.array(frames, np.int64),
        np.array(track_ids, np.int64),
        cxcywh_to_xyxy(np.array(boxes, np.float64).reshape(-1, 4)),
        np.full(count, 0.9),
        np.array(classes, np.int64),
        np.zeros(count, bool),
        {key: np.asarray(vector, np.float32) for key, vector in (embeddings or {}).items()},
    )


def walk(frame):
    return 100 + 5 * frame, 200, 100  # half a height a second


def stand(x):
    return lambda frame: (x, 200, 100)


def unit(degrees):
    """A vector whose cosine distance to unit(0) is 1 - cos(degrees)."""
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]


def joined(given, **limits):
    """Which of the old identities share a new one: a set of tuples."""
    made = relink(given, RATE, **(LIMITS | limits))
    keys = {(f, *box): i for f, box, i in zip(made.frames, made.xyxy.tolist(), made.track_ids.tolist(), strict=True)}
    groups = {}
    for frame, box, old in zip(given.frames, given.xyxy.tolist(), given.track_ids.tolist(), strict=True):
        groups.setdefault(keys[(frame, *box)], set()).add(old)
    assert sorted(groups) == list(range(1, len(groups) + 1))
    return {tuple(sorted(group)) for group in groups.values()}


def test_a_walk_that_was_interrupted_is_one_again():
    broken = scene((1, range(1, 20), walk), (2, range(30, 50), walk))
    assert joined(broken) == {(1, 2)}
    assert joined(broken, motion_seconds=1.1) == {(1, 2)}  # from frame 19 to 30: exactly
    assert joined(broken, motion_seconds=1.0) == {(1,), (2,)}


def test_motion_decides_between_two_who_go_on():
    """Two people cross while unseen: the straight ways cross too, and the nearer ends are not the right ones."""
    down = (lambda f: (100 + 5 * f, 200 + 3 * f, 100), lambda f: (100 + 5 * f, 260 - 3 * f, 100))
    broken = scene(
        (1, range(1, 9), down[0]), (2, range(1, 9), down[1]), (3, range(14, 25), down[1]), (4, range(14, 25), down[0])
    )
    assert joined(broken) == {(1, 4), (2, 3)}


def test_who_turned_round_is_not_the_one_who_left():
    broken = scene((1, range(1, 20), walk), (2, range(30, 50), lambda f: (345 - 5 * f, 200, 100)))
    assert joined(broken) == {(1,), (2,)}


def test_embeddings_reach_farther_than_motion():
    broken = ((1, range(1, 20), stand(100)), (2, range(79, 99), stand(130)))
    assert joined(scene(*broken)) == {(1,), (2,)}
    assert joined(scene(*broken, embeddings={1: unit(0)})) == {(1,), (2,)}
    assert joined(scene(*broken, embeddings={1: unit(0), 2: unit(30)})) == {(1, 2)}
    assert joined(scene(*broken, embeddings={1: unit(0), 2: unit(60)})) == {(1,), (2,)}  # at a distance of 0.5
    assert joined(scene(*broken, embeddings={1: unit(0), 2: unit(0)}), max_seconds=5.9) == {(1,), (2,)}


def test_looking_alike_does_not_outrun_the_motion():
    far = scene((1, range(1, 20), stand(100)), (2, range(30, 50), stand(400)), embeddings={1: unit(0), 2: unit(0)})
    assert joined(far) == {(1,), (2,)}
    assert joined(far, max_deviation=2.6) == {(1, 2)}  # 0.5 + 2.6 · 1.1 s heights reach 3
    assert joined(far, max_deviation=2.2) == {(1,), (2,)}


def test_the_best_pairs_win_together():
    """1 is nearest to 3, but then nothing is left for 2: the assignment of both pairs is the cheaper one."""
    broken = scene(
        (1, range(1, 10), stand(100)),
        (2, range(1, 10), stand(120)),
        (3, range(15, 25), stand(110)),
        (4, range(15, 25), stand(90)),
        embeddings={1: unit(0), 2: unit(20), 3: unit(8), 4: unit(-25)},
    )
    assert joined(broken) == {(1, 4), (2, 3)}


def test_classes_stay_apart():
    assert joined(scene((1, range(1, 20), walk, 0), (2, range(30, 50), walk, 2))) == {(1,), (2,)}


def test_tracks_seen_together_are_two_people():
    same = {1: unit(0), 2: unit(0)}
    assert joined(scene((1, range(1, 20), stand(100)), (2, range(19, 40), stand(101)), embeddings=same)) == {(1,), (2,)}
    assert joined(scene((1, range(1, 20), stand(100)), (2, range(20, 40), stand(101)), embeddings=same)) == {(1, 2)}
    between = scene((1, [*range(1, 20), *range(40, 60)], stand(100)), (2, range(25, 35), stand(100)), embeddings=same)
    assert joined(between) == {(1,), (2,)}  # never in one frame, but pieces are not cut


def test_chains_are_joined_and_described_by_all_their_pieces():
    broken = scene(
        (7, range(1, 11), walk),
        (3, range(15, 25), walk),
        (9, range(30, 60), walk),
        (5, range(2, 60), stand(800)),
        embeddings={7: unit(0), 3: unit(20), 9: unit(20), 5: unit(90)},
    )
    made = relink(broken, RATE, **LIMITS)
    assert np.unique(made.track_ids).tolist() == [1, 2]  # in order of appearance: the walker first
    assert made.frames[made.track_ids == 1].tolist() == [*range(1, 11), *range(15, 25), *range(30, 60)]
    mean = 10 * np.array(unit(0)) + 40 * np.array(unit(20))
    np.testing.assert_allclose(made.embeddings[1], mean / np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_allclose(made.embeddings[2], unit(90), atol=1e-7)


def test_a_joined_piece_is_compared_anew():
    """3 looks too different from 1 and from 2, but not from what they have in common."""
    aside = np.radians(22)
    broken = scene(
        (1, range(1, 31), stand(100)),
        (2, range(35, 65), stand(100)),
        (3, range(70, 80), stand(100)),
        embeddings={
            1: [np.cos(aside), np.sin(aside), 0],
            2: [np.cos(aside), -np.sin(aside), 0],
            3: [np.cos(2 * aside), 0, np.sin(2 * aside)],
        },
    )
    assert joined(without(broken, 1)) == {(2,), (3,)}
    assert joined(without(broken, 2)) == {(1,), (3,)}
    assert joined(broken) == {(1, 2, 3)}


def without(given, track_id):
    rows = given.track_ids != track_id
    names = ("frames", "track_ids", "xyxy", "scores", "classes", "predicted")
    return replace(given, **{name: getattr(given, name)[rows] for name in names})


def test_guesses_of_the_tracker_do_not_stand_in_the_way():
    """1 is guessed on while 2 already begins; 3, whom nobody follows, keeps its guesses."""
    broken = scene((1, range(1, 35), walk), (2, range(30, 50), walk), (3, range(1, 9), stand(900)))
    guessed = ((broken.track_ids == 1) & (broken.frames >= 20)) | ((broken.track_ids == 3) & (broken.frames >= 5))
    made = relink(replace(broken, predicted=guessed), RATE, **LIMITS)
    assert made.frames[made.track_ids == 1].tolist() == [*range(1, 20), *range(30, 50)]
    assert made.frames[made.track_ids == 2].tolist() == [*range(1, 9)]
    assert made.frames[made.predicted].tolist() == [5, 6, 7, 8]
    unseen = replace(broken, predicted=np.ones(len(broken), bool))  # nothing but guesses is all there is
    assert len(relink(unseen, RATE, **LIMITS)) == len(broken)


def test_nobody_to_join():
    empty = scene()
    assert len(relink(empty, RATE, **LIMITS)) == 0
    alone = relink(scene((12, [5], walk)), RATE, **LIMITS)
    assert alone.track_ids.tolist() == [1]


# A second implementation, with loops and without tricks.


def line(piece, at):
    """Place and velocity (cx, cy, height) of a piece's boxes within half a second of a time."""
    near = [(f / RATE - at, np.array(p)) for f, p in piece if abs(f / RATE - at) <= 0.5]
    times = [t for t, _ in near]
    middle = sum(times) / len(times)
    centre = sum(p for _, p in near) / len(near)
    velocity = sum((t - middle) * p for t, p in near) / (sum((t - middle) ** 2 for t in times) + 0.01)
    return centre - middle * velocity, velocity


def pair_cost(one, other, look):
    end, begin = one[-1][0] / RATE, other[0][0] / RATE
    gap = begin - end
    if gap <= 0:
        return np.inf
    (a, a_velocity), (b, b_velocity) = line(one, end), line(other, begin)
    height = (a[2] + b[2]) / 2
    ahead, back = a + gap * a_velocity - b, b - gap * b_velocity - a
    motion = (np.sqrt((ahead**2).sum()) + np.sqrt((back**2).sum())) / 2 / height
    if motion > 0.5 + LIMITS["max_deviation"] * gap:
        return np.inf
    if look is not None:
        return look / LIMITS["embedding_thresh"] if gap <= LIMITS["max_seconds"] + 1e-6 else np.inf
    return motion / LIMITS["motion_thresh"] if gap <= LIMITS["motion_seconds"] + 1e-6 else np.inf


def best_pairs(cost):
    """Least total cost over every way to pair rows and columns, one left out costing 1."""
    count = len(cost)
    best = (0.0, [])
    for size in range(1, count + 1):
        for rows in itertools.combinations(range(count), size):
            for columns in itertools.permutations(range(count), size):
                total = sum(cost[row][column] - 1 for row, column in zip(rows, columns, strict=True))
                if total < best[0]:
                    best = (total, list(zip(rows, columns, strict=True)))
    return best[1]


def relink_by_loops(given):
    """The groups of old identities."""
    groups = {}
    for frame, track_id, (left, top, right, bottom) in zip(given.frames, given.track_ids, given.xyxy, strict=True):
        place = ((left + right) / 2, (top + bottom) / 2, bottom - top)
        groups.setdefault((int(track_id),), []).append((int(frame), place))
    vectors = {(i,): np.asarray(v, float) for i, v in given.embeddings.items()}
    while True:
        names = sorted(groups)
        cost = [[np.inf] * len(names) for _ in names]
        for (i, a), (j, b) in itertools.permutations(enumerate(names), 2):
            look = 1 - vectors[a] @ vectors[b] if a in vectors and b in vectors else None
            value = pair_cost(groups[a], groups[b], look)
            cost[i][j] = value if value <= 1 else np.inf
        pairs = best_pairs(cost)
        if not pairs:
            return {tuple(sorted(name)) for name in groups}
        chains = [[i] for i in range(len(names)) if i not in {second for _, second in pairs}]
        following = dict(pairs)
        for chain in chains:
            while chain[-1] in following:
                chain.append(following[chain[-1]])
        new_groups, new_vectors = {}, {}
        for chain in chains:
            name = tuple(i for k in chain for i in names[k])
            new_groups[name] = sorted(row for k in chain for row in groups[names[k]])
            known = [len(groups[names[k]]) * vectors[names[k]] for k in chain if names[k] in vectors]
            if known:
                new_vectors[name] = sum(known) / np.linalg.norm(sum(known))
        groups, vectors = new_groups, new_vectors


@st.composite
def broken_scenes(draw, most=5):
    """Pieces in a small room, many near each other in place and looks, some of them not described."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(0, most))
    described = rng.random() < 0.7
    pieces, embeddings = [], {}
    for track_id in rng.permutation(np.arange(1, 60))[:count].tolist():
        first, length = int(rng.integers(1, 80)), int(rng.integers(1, 25))
        frames = [f for f in range(first, first + length) if f in (first, first + length - 1) or rng.random() < 0.8]
        x, y, height = rng.uniform(0, 80), rng.uniform(0, 50), rng.uniform(90, 110)
        speed = rng.normal(0, 1, 2)
        jitter = {f: rng.normal(0, 1, 3) for f in frames}

        def place(f, x=x, y=y, height=height, speed=speed, jitter=jitter):
            return x + speed[0] * f + jitter[f][0], y + speed[1] * f + jitter[f][1], height + jitter[f][2]

        pieces.append((track_id, frames, place, int(rng.random() < 0.1)))
        if described and rng.random() < 0.9:
            embeddings[track_id] = unit(rng.uniform(0, 90))
    return scene(*pieces, embeddings=embeddings)


@settings(deadline=None, max_examples=150)
@given(broken_scenes())
def test_joined_as_by_loops(given):
    one_class = replace(given, classes=np.zeros_like(given.classes))
    assert joined(one_class) == relink_by_loops(one_class)


@settings(deadline=None, max_examples=100)
@given(broken_scenes(most=15), st.randoms(use_true_random=False))
def test_properties(given, random):
    made = relink(given, RATE, **LIMITS)  # its constructor refuses two boxes of an identity in one frame
    groups = joined(given)  # partitions whole identities: merges, never splits

    def rows(table):
        return sorted(zip(table.frames.tolist(), table.xyxy.tolist(), table.classes.tolist(), strict=True))

    assert rows(made) == rows(given)
    firsts = [made.frames[made.track_ids == i].min() for i in np.unique(made.track_ids)]
    assert firsts == sorted(firsts)

    again = relink(made, RATE, **LIMITS)
    np.testing.assert_array_equal(again.track_ids, made.track_ids)

    old = np.unique(given.track_ids).tolist()
    new = dict(zip(old, random.sample(range(1, 1000), len(old)), strict=True))
    relabelled = replace(
        given,
        track_ids=np.array([new[i] for i in given.track_ids.tolist()], np.int64),
        embeddings={new[i]: vector for i, vector in given.embeddings.items()},
    )
    assert joined(relabelled) == {tuple(sorted(new[i] for i in group)) for group in groups}


def test_a_long_video_takes_no_square_of_its_pieces():
    """Two thousand people, one after the other, each in three pieces: pairs far apart in time are never looked at."""
    pieces = []
    for person in range(2000):
        for part in range(3):
            begin = 1 + 100 * person + 30 * part
            pieces.append((3 * person + part + 1, [begin, begin + 20], stand(100)))
    made = relink(scene(*pieces), RATE, **(LIMITS | {"motion_seconds": 1.0}))
    assert len(np.unique(made.track_ids)) == 2000

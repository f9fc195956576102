"""Average precision equals pycocotools', verification rates equal counting pair by pair."""

import contextlib
import io
import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.metrics import FARS, SIMILARITY_STEPS, DetectionScores, detection_scores, tpr_at_far


def coco(predictions, targets, height_range=None, thresholds=None) -> tuple[float, float]:
    """AP50 and AP by COCOeval; its areas are set to heights where a range of heights is asked for."""
    annotations, results = [], []
    for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True), 1):
        for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": y2 - y1,
                    "iscrowd": int(label == -1),
                }
            )
        for (x1, y1, x2, y2), score in zip(prediction["boxes"].tolist(), prediction["scores"].tolist(), strict=True):
            results.append({"image_id": i, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score})
    images = [{"id": i + 1} for i in range(len(targets))]
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
        truth.createIndex()
        if results:
            found = truth.loadRes(results)
        else:
            found.dataset = {"images": images, "annotations": [], "categories": [{"id": 1}]}
            found.createIndex()
        for annotation in found.anns.values():
            annotation["area"] = annotation["bbox"][3]
        evaluation = COCOeval(truth, found, "bbox")
        low, high = height_range or (0, 1e10)
        evaluation.params.areaRng = [[low, np.nextafter(high, 0)]]  # COCO includes the upper end
        evaluation.params.areaRngLbl = ["all"]
        evaluation.params.maxDets = [100]
        if thresholds is not None:
            evaluation.params.iouThrs = np.array([0.5, *thresholds])
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, 0, 0]
    if (precision == -1).all():
        return math.nan, math.nan
    return float(precision[0].mean()), float(precision[thresholds is not None :].mean())


def crowd(rng: np.random.Generator, images: int, people: int, detections: int, step: float, integer: bool):
    """Random people and regions, and detections near them, scores in steps so that many are equal."""
    predictions, targets = [], []
    for _ in range(images):
        count = int(rng.integers(0, people + 1))
        xy = rng.uniform(0, 60, (count, 2))
        boxes = np.concatenate((xy, xy + rng.uniform(4, 60, (count, 2))), axis=1)
        labels = np.where(rng.random(count) < 0.2, -1, 0)
        number = int(rng.integers(0, detections + 1))
        xy = rng.uniform(0, 60, (number, 2))
        near = np.concatenate((xy, xy + rng.uniform(4, 60, (number, 2))), axis=1)
        if count:
            drawn = rng.random(number) < 0.7
            near[drawn] = boxes[rng.integers(0, count, drawn.sum())] + rng.normal(0, 2, (int(drawn.sum()), 4))
        if integer:
            boxes, near = boxes.round(), near.round()
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        scores = np.round(rng.random(number) / step) * step
        predictions.append({"boxes": near, "scores": scores})
        targets.append({"boxes": boxes, "labels": labels})
    return predictions, targets


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    images=st.integers(1, 6),
    people=st.integers(0, 12),
    detections=st.integers(0, 30),
    step=st.sampled_from([0.5, 0.1, 1e-6]),
    integer=st.booleans(),
    height_range=st.sampled_from([None, (0, 30), (30, 64), (17, 18)]),
)
def test_average_precision_is_that_of_pycocotools(seed, images, people, detections, step, integer, height_range):
    predictions, targets = crowd(np.random.default_rng(seed), images, people, detections, step, integer)
    scores = detection_scores(predictions, targets, height_range=height_range)
    np.testing.assert_allclose((scores.ap50, scores.ap), coco(predictions, targets, height_range), rtol=0, atol=1e-12)


def test_no_more_than_a_hundred_detections_an_image_and_other_thresholds():
    predictions, targets = crowd(np.random.default_rng(5), 3, 60, 400, 0.01, False)
    assert max(len(p["scores"]) for p in predictions) > 200
    for thresholds in ((0.3, 0.75), (0.9,), (1.0,)):
        scores = detection_scores(predictions, targets, thresholds)
        np.testing.assert_allclose((scores.ap50, scores.ap), coco(predictions, targets, None, thresholds), atol=1e-12)


@pytest.mark.parametrize("second", [[0, 0, 10, 10], [4, 0, 14, 10]])
def test_of_two_people_overlapped_alike_the_last_is_taken(second):
    """Which one it is decides whether the second detection finds anybody."""
    predictions = [{"boxes": np.array([[2, 0, 12, 10], second], float), "scores": np.array([0.9, 0.8])}]
    targets = [{"boxes": np.array([[0, 0, 10, 10], [4, 0, 14, 10]], float), "labels": np.zeros(2)}]
    scores = detection_scores(predictions, targets)
    assert scores.recall[-1] == (1 if second[0] == 0 else 0.5)
    np.testing.assert_allclose((scores.ap50, scores.ap), coco(predictions, targets), atol=1e-12)


def example() -> tuple[list[dict], list[dict]]:
    """Three people; by falling score: right, wrong, right, and a fourth detection inside a region to be ignored."""
    person = np.array([[0, 0, 10, 20], [50, 0, 60, 80], [100, 0, 110, 20]], float)
    region = np.array([[200, 0, 300, 100]], float)
    boxes = np.array([[0, 0, 10, 20], [20, 0, 30, 20], [50, 0, 60, 80], [210, 0, 220, 20]], float)
    return (
        [{"boxes": boxes, "scores": np.array([0.9, 0.8, 0.7, 0.75])}],
        [{"boxes": np.concatenate((region, person)), "labels": np.array([-1, 0, 0, 0])}],
    )


def test_a_case_counted_by_hand():
    scores = detection_scores(*example())
    assert (scores.people, scores.images) == (3, 1)
    np.testing.assert_array_equal(scores.scores, [0.9, 0.8, 0.7])
    np.testing.assert_allclose(scores.precision, [1, 1 / 2, 2 / 3])
    np.testing.assert_allclose(scores.recall, [1 / 3, 1 / 3, 2 / 3])
    assert scores.ap50 == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)  # recall 0 … 0.33, and 0.34 … 0.66
    assert (scores.best_f1, scores.best_score) == (pytest.approx(2 / 3), 0.7)
    assert (scores.best_precision, scores.best_recall) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_small_people_alone():
    """The tall person is not missed and its detection is not wrong; the false detection is small and counts."""
    scores = detection_scores(*example(), height_range=(0, 64))
    assert scores.people == 2
    np.testing.assert_allclose(scores.precision, [1, 1 / 2])
    assert detection_scores(*example(), height_range=(20, 64)).people == 2
    assert detection_scores(*example(), height_range=(0, 20)).people == 0  # the upper end is outside


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), step=st.sampled_from([0.25, 0.05]))
def test_best_f1_is_the_best_of_all_thresholds(seed, step):
    predictions, targets = crowd(np.random.default_rng(seed), 3, 8, 20, step, False)
    scores = detection_scores(predictions, targets)
    trials = []
    for threshold in np.unique(np.concatenate([p["scores"] for p in predictions]))[::-1]:
        keep = [p["scores"] >= threshold for p in predictions]
        kept = [{n: p[n][k] for n in p} for p, k in zip(predictions, keep, strict=True)]
        part = detection_scores(kept, targets)
        if part.people and len(part.precision) and part.recall[-1]:
            p, r = part.precision[-1], part.recall[-1]
            trials.append((2 * p * r / (p + r), threshold, p, r))
    if trials:
        expected = max(trials, key=lambda trial: (round(trial[0], 9), trial[1]))
        given_ = (scores.best_f1, scores.best_score, scores.best_precision, scores.best_recall)
        np.testing.assert_allclose(given_, expected, rtol=1e-9)


def test_the_order_of_detections_and_of_images_does_not_matter():
    rng = np.random.default_rng(3)
    predictions, targets = crowd(rng, 6, 8, 20, 1e-9, False)
    images = rng.permutation(6)
    orders = [rng.permutation(len(p["scores"])) for p in predictions]
    shuffled = [{n: v[o] for n, v in p.items()} for p, o in zip(predictions, orders, strict=True)]
    one = detection_scores(predictions, targets)
    other = detection_scores([shuffled[i] for i in images], [targets[i] for i in images])
    assert (one.ap, one.best_f1) == (pytest.approx(other.ap), pytest.approx(other.best_f1))
    np.testing.assert_array_equal(one.scores, other.scores)


NOTHING = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0)}
NOBODY = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int)}


def figures(scores: DetectionScores) -> tuple[float, ...]:
    return scores.ap50, scores.ap, scores.best_f1, scores.best_score, scores.best_precision, scores.best_recall


def test_nobody_to_find_and_nothing_found():
    predictions, targets = example()
    for empty in (detection_scores([], []), detection_scores(predictions, [NOBODY])):
        assert empty.people == 0
        assert np.isnan(figures(empty)).all()
    missed = detection_scores([NOTHING], targets)
    np.testing.assert_array_equal(figures(missed), (0, 0, 0, np.nan, np.nan, 0))
    far_off = [{"boxes": np.full((1, 4), 999.0), "scores": np.ones(1)}]
    np.testing.assert_array_equal(figures(detection_scores(far_off, targets)), (0, 0, 0, np.nan, np.nan, 0))


def test_detection_errors_name_the_argument():
    predictions, targets = example()
    nan = [{**predictions[0], "scores": np.array([np.nan, 1, 1, 1])}]
    with pytest.raises(ValueError, match=r"predictions\[0\] scores: expected finite .* got \(4,\) with 1 non-finite"):
        detection_scores(nan, targets)
    with pytest.raises(ValueError, match=r"predictions\[0\] boxes: expected finite numbers of shape \(N, 4\)"):
        detection_scores([{**predictions[0], "boxes": np.full((4, 4), np.inf)}], targets)
    with pytest.raises(ValueError, match=r"targets\[0\] labels: expected finite numbers of shape \(4,\), got \(2,\)"):
        detection_scores(predictions, [{**targets[0], "labels": np.zeros(2)}])
    with pytest.raises(ValueError, match="predictions: expected one for each of 1 targets, got 0"):
        detection_scores([], targets)
    with pytest.raises(ValueError, match=r"iou_thresholds: expected numbers in \(0, 1\], got \(0,\)"):
        detection_scores(predictions, targets, (0,))
    with pytest.raises(ValueError, match=r"iou_thresholds: .* got \(\)"):
        detection_scores(predictions, targets, ())
    with pytest.raises(ValueError, match=r"height_range: expected low < high, got \(64, 0\)"):
        detection_scores(predictions, targets, height_range=(64, 0))


def rates_by_loop(embeddings, pids, fars) -> dict[float, float]:
    """Every pair, every threshold."""
    pairs = []
    for i, j in itertools.combinations(range(len(pids)), 2):
        if pids[i] != -1 and pids[j] != -1:
            a, b = embeddings[i].astype(np.float64), embeddings[j].astype(np.float64)
            similarity = float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
            pairs.append((round(similarity * SIMILARITY_STEPS), pids[i] == pids[j]))
    positives = sum(same for _, same in pairs)
    negatives = len(pairs) - positives
    if not positives or not negatives:
        return dict.fromkeys(fars, math.nan)
    points = [(0.0, 0.0)]
    for threshold in sorted({similarity for similarity, _ in pairs}, reverse=True):
        true = sum(same for similarity, same in pairs if similarity >= threshold)
        false = sum(not same for similarity, same in pairs if similarity >= threshold)
        points.append((false / negatives, true / positives))
    rates = {}
    for far in fars:
        below = max(point for point in points if point[0] <= far)
        above = min((point for point in points if point[0] > far), default=below)
        share = (far - below[0]) / (above[0] - below[0]) if above != below else 0.0
        rates[far] = below[1] + share * (above[1] - below[1])
    return rates


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    number=st.integers(0, 25),
    people=st.integers(1, 6),
    ties=st.booleans(),
    fars=st.lists(st.sampled_from([0, 1e-6, 0.01, 0.1, 1 / 3, 0.5, 0.9, 1]) | st.floats(0, 1), min_size=1),
)
def test_verification_rates_are_those_of_a_loop(seed, number, people, ties, fars):
    rng = np.random.default_rng(seed)
    pids = rng.integers(-1, people, number)
    if ties:  # sixteen signs: all similarities are multiples of 1/8
        embeddings = rng.choice([-3.0, 3.0], (number, 16))
    else:
        embeddings = rng.normal(0, 1, (number, 8)) + rng.normal(0, 1, (people + 1, 8))[pids]
    found, expected = tpr_at_far(embeddings, pids, fars), rates_by_loop(embeddings, pids, fars)
    assert list(found) == list(expected)
    # Without ties no similarity of another pair lies within a step, save by a chance of one in thousands.
    np.testing.assert_allclose(list(found.values()), list(expected.values()), atol=1e-9)


def test_rates_counted_by_hand():
    """One positive pair above all four negative ones, the other between the second and the third of them."""
    angles = np.deg2rad([0, 1, 40, 70])
    embeddings = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    pids = np.array([1, 1, 2, 2])  # positive: 1 and 30 degrees; negative: 39, 40, 69, 70
    assert tpr_at_far(embeddings, pids, [0, 1e-6]) == {0: 1, 1e-6: 1}
    pids = np.array([1, 1, 2, 1])  # positive: 1, 69, 70; negative: 30, 39, 40
    assert tpr_at_far(embeddings, pids, [1e-6, 0.99, 1]) == {1e-6: 1 / 3, 0.99: 1 / 3, 1: 1}


def test_everybody_alike_accepts_as_many_right_as_wrong_pairs():
    rates = tpr_at_far(np.ones((6, 4)), np.array([0, 0, 0, 1, 1, 1]))
    assert rates == {far: pytest.approx(far) for far in FARS}


def test_blocks_cover_every_pair_once(monkeypatch):
    rng = np.random.default_rng(0)
    embeddings, pids = rng.normal(size=(61, 8)), rng.integers(-1, 5, 61)
    whole = tpr_at_far(embeddings, pids)
    monkeypatch.setattr("detector.metrics._BLOCK_ELEMENTS", 100)
    assert tpr_at_far(embeddings, pids) == pytest.approx(whole)


def test_unknown_lengths_and_pairs_that_do_not_exist():
    embeddings = np.random.default_rng(0).normal(size=(5, 4))
    assert tpr_at_far(embeddings * [[1], [2], [3], [4], [5]], np.array([0, 0, 1, 1, 2])) == pytest.approx(
        tpr_at_far(embeddings, np.array([0, 0, 1, 1, 2]))
    )
    for pids in ([0, 0, 0, 0, 0], [0, 1, 2, 3, 4], [-1] * 5, [0, 0, -1, -1, -1]):
        assert all(math.isnan(rate) for rate in tpr_at_far(embeddings, np.array(pids)).values())
    assert list(tpr_at_far(np.zeros((0, 0)), np.zeros(0, int))) == list(FARS)


def test_memory_does_not_grow_with_the_pairs():
    rng = np.random.default_rng(0)
    embeddings, pids = rng.normal(size=(4000, 8)).astype(np.float32), rng.integers(0, 40, 4000)
    tracemalloc.start()
    tpr_at_far(embeddings, pids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6  # the eight million pairs as float64 and index would be more than their histogram


def test_verification_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"embeddings: expected finite numbers of shape \(N, D\), got \(2, 3\) with 6"):
        tpr_at_far(np.full((2, 3), np.nan), np.zeros(2, int))
    with pytest.raises(ValueError, match=r"pids: expected shape \(2,\), got \(3,\)"):
        tpr_at_far(np.ones((2, 3)), np.zeros(3, int))
    with pytest.raises(ValueError, match=r"fars: expected numbers in \[0, 1\], got \(2,\)"):
        tpr_at_far(np.ones((2, 3)), np.zeros(2, int), (2,))

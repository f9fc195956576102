"""What the tracker's settings accept, and that each is explained."""

import ast
import inspect
import itertools

import pytest

from tests.tracker.people import standing
from tracker import Tracker, TrackerConfig
from tracker import config as config_module


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"score_thresh": 1.1}, r"score_thresh: expected a number in \[0, 1\], got 1.1"),
        ({"score_thresh": float("nan")}, "score_thresh: .* got nan"),
        ({"low_score_thresh": -0.1}, r"low_score_thresh: expected a number in \[0, 1\], got -0.1"),
        ({"birth_thresh": 1.2}, r"birth_thresh: expected a number in \[0, 1\], got 1.2"),
        ({"sure_thresh": 1.01}, r"sure_thresh: expected a number in \[0, 1\], got 1.01"),
        ({"min_motion": -0.5}, r"min_motion: expected a number in \[0, inf\), got -0.5"),
        ({"min_motion": float("inf")}, r"min_motion: expected a number in \[0, inf\), got inf"),
        ({"embedding_metric": "manhattan"}, "embedding_metric: expected one of cosine, euclidean, got 'manhattan'"),
        ({"embedding_thresh": 0}, r"embedding_thresh: expected a number in \(0, 2\], got 0"),
        ({"embedding_momentum": 1}, r"embedding_momentum: expected a number in \[0, 1\), got 1"),
        ({"iou_thresh": 1}, r"iou_thresh: expected a number in \[0, 1\), got 1"),
        ({"low_score_iou_thresh": -0.1}, "low_score_iou_thresh"),
        ({"tentative_iou_thresh": 2}, "tentative_iou_thresh"),
        ({"iou_rematch_seconds": -1}, "iou_rematch_seconds"),
        ({"track_buffer": float("inf")}, r"track_buffer: expected a number in \[0, inf\), got inf"),
        ({"duplicate_thresh": 1.5}, "duplicate_thresh"),
        ({"shape_std": 0}, r"shape_std: expected a number in \(0, inf\), got 0"),
        ({"shape_std": float("nan")}, "shape_std: .* got nan"),
        ({"classes": "all"}, "classes: expected one of separate, vote, got 'all'"),
        ({"appearance": "only"}, "appearance: expected one of gated, minimum, none, got 'only'"),
        ({"proximity_thresh": 1.5}, r"proximity_thresh: expected a number in \[0, 1\), got 1.5"),
        ({"stand_out_margin": -0.1}, r"stand_out_margin: expected a number in \[0, 1\], got -0.1"),
        (
            {"stand_out_margin": 0.5, "embedding_metric": "euclidean"},
            "stand_out_margin: expected 0 with embedding_metric euclidean, got 0.5",
        ),
        ({"iou_buffer": -0.1}, r"iou_buffer: expected a number in \[0, inf\), got -0.1"),
        ({"small_box": float("inf")}, r"small_box: expected a number in \[0, inf\), got inf"),
        ({"direction_weight": -1}, r"direction_weight: expected a number in \[0, inf\), got -1"),
        ({"direction_seconds": 0}, r"direction_seconds: expected a number in \(0, inf\), got 0"),
        ({"box_state": "xyxy"}, "box_state: expected one of xyah, cxcywh, got 'xyxy'"),
        ({"camera_motion": "orb"}, "camera_motion: expected one of none, sparse, ecc, got 'orb'"),
        ({"coast_seconds": -1}, r"coast_seconds: expected a number in \[0, inf\), got -1"),
        ({"confirm_frames": True}, "confirm_frames: expected a whole number, got True"),
        ({"confirm_frames": float("nan")}, "confirm_frames: .* got nan"),
        ({"confirm_frames": float("inf")}, "confirm_frames: .* got inf"),
        ({"confirm_frames": 0}, "confirm_frames: .* got 0"),
        ({"confirm_frames": 1.5}, "confirm_frames: expected a whole number, got 1.5"),
        ({"output": "predicted"}, "output: expected one of blended, filtered, detection, got 'predicted'"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        TrackerConfig(**setting)


def test_values_at_the_ends_of_the_ranges_are_accepted():
    TrackerConfig(
        score_thresh=0,
        birth_thresh=1,
        low_score_thresh=1,
        embedding_thresh=2,
        embedding_momentum=0,
        proximity_thresh=0,
        stand_out_margin=1,
        iou_thresh=0,
        iou_rematch_seconds=0,
        shape_std=1e-3,
        direction_seconds=1e-3,
        track_buffer=0,
        duplicate_thresh=0,
        coast_seconds=0,
        confirm_frames=1,
    )


@pytest.mark.parametrize("setting", ["track_buffer", "iou_rematch_seconds", "direction_seconds", "coast_seconds"])
def test_any_number_of_seconds(setting):
    tracker = Tracker(TrackerConfig(**{setting: 1e308}), 60)
    for k in range(4):
        result = tracker.update(standing(5 * k))
    assert len(result) == 1


def test_every_setting_is_explained():
    body = next(
        node
        for node in ast.parse(inspect.getsource(config_module)).body
        if isinstance(node, ast.ClassDef) and node.name == "TrackerConfig"
    ).body
    for node, following in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign):
            explained = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            assert explained, node.target.id

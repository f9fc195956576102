"""Settings of what is mended afterwards, and the order in which it is done."""

import numpy as np
import pytest

from configs import load_config
from tests.tracker.test_relinking import scene, walk
from tracker.offline import OfflineConfig, refine
from tracker.smoothing import fill_gaps, smooth

BROKEN = scene((4, [*range(1, 15), *range(17, 20)], walk), (9, range(25, 40), walk))


def test_nothing_is_done_unasked():
    assert refine(BROKEN, 10, OfflineConfig()) is BROKEN


def test_what_was_joined_is_filled_and_what_was_filled_is_smoothed():
    calls = []
    made = refine(
        BROKEN, 10, OfflineConfig(relink=True, fill_gaps=1.0, smooth=True), lambda *progress: calls.append(progress)
    )
    assert made.track_ids.tolist() == [1] * 39
    assert made.frames.tolist() == list(range(1, 40))
    assert made.frames[made.predicted].tolist() == [15, 16, 20, 21, 22, 23, 24]
    assert calls == [(1, 1)]
    expected = smooth(fill_gaps(refine(BROKEN, 10, OfflineConfig(relink=True)), 10, 1.0))
    np.testing.assert_array_equal(made.xyxy, expected.xyxy)


def test_each_step_alone():
    filled = refine(BROKEN, 10, OfflineConfig(fill_gaps=0.5))
    assert filled.frames[filled.predicted].tolist() == [15, 16]
    assert np.unique(filled.track_ids).tolist() == [4, 9]
    np.testing.assert_array_equal(refine(BROKEN, 10, OfflineConfig(smooth=True)).frames, BROKEN.frames)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fill_gaps", -1.0, "fill_gaps: expected a number of at least 0, got -1.0"),
        ("relink_seconds", float("inf"), "relink_seconds: expected a number of at least 0, got inf"),
        ("relink_deviation", float("nan"), "relink_deviation: expected a number of at least 0, got nan"),
        ("relink_embedding_thresh", 0.0, "relink_embedding_thresh: expected a number above 0 up to 2, got 0.0"),
        ("relink_embedding_thresh", 2.5, "above 0 up to 2, got 2.5"),
        ("global_thresh", 0.0, "global_thresh: expected a number above 0 up to 2, got 0.0"),
        ("relink_motion_thresh", float("inf"), "relink_motion_thresh: expected a number above 0, got inf"),
    ],
)
def test_values_out_of_range_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        OfflineConfig(**{name: value})


@pytest.mark.parametrize("frame_rate", [0, -1.0, float("nan"), float("inf")])
def test_the_frame_rate_must_be_known(frame_rate):
    with pytest.raises(ValueError, match="frame_rate: expected a number above 0"):
        refine(BROKEN, frame_rate, OfflineConfig(smooth=True))


def test_the_settings_are_a_section_of_a_file():
    read = load_config(None, ["offline.fill_gaps=2", "offline.relink=true"], {"offline": OfflineConfig})
    assert read["offline"] == OfflineConfig(relink=True, fill_gaps=2.0)

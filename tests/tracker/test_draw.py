import time

import cv2
import numpy as np

from tracker.draw import TrackDrawer, label_picture, track_colour
from tracker.types import FrameResult


def result(frame: int, ids: list[int], xyxy: object) -> FrameResult:
    n = len(ids)
    boxes = np.array(xyxy, np.float32).reshape(n, 4)
    return FrameResult(frame, np.array(ids, np.int64), boxes, np.ones(n, np.float32), np.zeros(n, np.int64))


def grey(height: int = 360, width: int = 480) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def test_box_is_drawn_where_it_is_and_in_the_colour_of_its_id() -> None:
    frame = grey()
    assert TrackDrawer((480, 360)).draw(frame, result(1, [5], [[100, 80, 200, 280]])) is frame
    colour = list(track_colour(5))
    for x, y in ((100, 200), (200, 200), (150, 280), (190, 80)):
        assert frame[y, x].tolist() == colour
    assert (frame[120:270, 110:190] == 100).all()
    assert (frame[:, 220:] == 100).all()


def test_colours_are_stable_and_those_of_neighbouring_ids_differ() -> None:
    track_colour.cache_clear()
    first = [track_colour(i) for i in range(1, 200)]
    track_colour.cache_clear()
    assert [track_colour(i) for i in range(1, 200)] == first
    assert len(set(first)) == len(first)
    for a, b in ((a, b) for i, a in enumerate(first) for b in first[i + 1 : i + 5]):
        assert np.abs(np.subtract(a, b)).max() > 60


def test_label_stands_out_from_its_patch() -> None:
    for track_id in range(1, 100):
        patch = label_picture(track_id, 0.5)
        luminance = patch @ np.array([0.114, 0.587, 0.299])
        background = np.array(track_colour(track_id)) @ np.array([0.114, 0.587, 0.299])
        assert np.abs(luminance - background).max() > 90


def test_classes_are_written_only_where_wanted() -> None:
    for with_classes, class_id in ((False, None), (True, 0)):
        frame = grey()
        TrackDrawer((480, 360), with_classes=with_classes).draw(frame, result(1, [7], [[100, 80, 200, 280]]))
        patch = label_picture(7, 0.35, class_id)
        assert cv2.matchTemplate(frame, patch, cv2.TM_SQDIFF).min() < 1000
    assert label_picture(7, 0.35, 0).shape[1] > label_picture(7, 0.35).shape[1]


def test_labels_of_boxes_at_the_edges_stay_inside() -> None:
    for box in ([0, 0, 50, 100], [450, -20, 520, 80], [400, 300, 500, 400], [-30, 340, 20, 420]):
        frame = grey()
        TrackDrawer((480, 360)).draw(frame, result(1, [123], [box]))
        patch = label_picture(123, 0.35)
        # A patch that is cut off or absent differs by far more than the matching's rounding.
        assert cv2.matchTemplate(frame, patch, cv2.TM_SQDIFF).min() < 1000


def test_boxes_far_outside_draw_nothing() -> None:
    frame = grey()
    TrackDrawer((480, 360)).draw(frame, result(1, [1, 2], [[-1e9, -1e9, -1e8, -1e8], [1e6, 1e6, 1e9, 1e9]]))
    assert (frame == 100).all()


def test_trail_follows_the_feet_for_one_second() -> None:
    drawer = TrackDrawer((480, 360), frame_rate=10)
    for number in range(1, 31):
        frame = grey()
        x = 10.0 * number
        drawer.draw(frame, result(number, [1], [[x, 100, x + 20, 200]]))
    colour = np.array(track_colour(1))
    on_trail = (frame[200] == colour).all(axis=1).nonzero()[0]
    # The last ten frames' feet run from x = 220 to 310; the box itself reaches to 320.
    assert on_trail.min() == 220
    assert on_trail.max() in (320, 321)


def test_trails_of_lost_tracks_are_forgotten() -> None:
    drawer = TrackDrawer((480, 360), frame_rate=10)
    for number in range(1, 500):
        drawer.draw(grey(), result(number, [number], [[0, 0, 10, 10]]))
        assert drawer.trail_count <= 10
    for number in range(500, 511):
        drawer.draw(grey(), result(number, [], []))
    assert drawer.trail_count == 0


def test_lines_grow_with_the_frame() -> None:
    widths = []
    for size in ((480, 360), (1920, 1080)):
        frame = grey(size[1], size[0])
        TrackDrawer(size).draw(frame, result(1, [1], [[100, 100, 300, 300]]))
        widths.append(int((frame[200, 50:150] != 100).any(axis=1).sum()))
    assert widths[0] < widths[1]


def test_twenty_people_in_720p_cost_little() -> None:
    rng = np.random.default_rng(0)
    drawer = TrackDrawer((1280, 720), 25)
    corner, speed = rng.uniform([0, 0], [1200, 560], (20, 2)), rng.uniform(-3, 3, (20, 2))
    frame = grey(720, 1280)
    seconds = []
    for number in range(1, 60):
        corner += speed
        boxes = result(number, list(range(1, 21)), np.hstack([corner, corner + np.array([60, 150])]))
        started = time.thread_time()
        drawer.draw(frame, boxes)
        seconds.append(time.thread_time() - started)
    # Some 0.8 ms on an idle core; the bound leaves room for a busy machine.
    assert np.median(seconds[30:]) < 0.005

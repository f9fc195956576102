import cv2
import numpy as np
import pytest

from tracker import Detections, Tracker, TrackerConfig
from tracker.boxes import iou
from tracker.camera_motion import CameraMotion


def scenery(width=1280, height=960, seed=0):
    """A picture with corners and structure of many sizes."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 90, np.uint8)
    for _ in range(500):
        x, y = rng.integers(0, width), rng.integers(0, height)
        w, h = rng.integers(8, 120, 2)
        colour = tuple(int(c) for c in rng.integers(0, 255, 3))
        cv2.rectangle(picture, (int(x), int(y)), (int(x + w), int(y + h)), colour, -1)
    return cv2.GaussianBlur(picture, (3, 3), 0)


def similarity(angle=0.0, scale=1.0, shift=(0.0, 0.0), centre=(320, 240)):
    """(2, 3) rotation by degrees and scale around a point, then a shift."""
    affine = cv2.getRotationMatrix2D(centre, angle, scale)
    affine[:, 2] += shift
    return affine


def view(picture, affine=None):
    """What a camera of 640x480 sees after it has moved."""
    affine = np.eye(2, 3) if affine is None else affine
    whole = affine.copy()
    # The picture is larger than the view: its middle part is seen.
    whole[:, 2] = affine[:, 2] - affine[:, :2] @ [320, 240]
    return cv2.warpAffine(picture, whole, (640, 480), flags=cv2.INTER_LINEAR)


def error(found, true):
    """Largest distance in pixels between where both maps put the corners of the view."""
    corners = np.array([[0, 0, 1], [640, 0, 1], [0, 480, 1], [640, 480, 1]], float)
    return np.linalg.norm(corners @ (found - true).T, axis=1).max()


MOTIONS = {
    "shift": similarity(shift=(7.5, -4.25)),
    "pan": similarity(shift=(-24.0, 3.0)),
    "tremor": similarity(shift=(0.6, 0.4)),
    "roll": similarity(angle=1.5),
    "all": similarity(angle=-1.0, shift=(5, 6)),
}


@pytest.mark.parametrize("name", MOTIONS)
@pytest.mark.parametrize("method", ["sparse", "ecc"])
def test_a_known_motion_is_found(method, name):
    picture, camera = scenery(), CameraMotion(method)
    np.testing.assert_array_equal(camera.estimate(view(picture)), np.eye(2, 3))
    assert error(camera.estimate(view(picture, MOTIONS[name])), MOTIONS[name]) < 1.0
    # Back again: the reference is always the frame before.
    back = cv2.invertAffineTransform(MOTIONS[name])
    assert error(camera.estimate(view(picture)), back) < 1.0


def test_a_zoom_is_found_by_corners():
    picture, camera, zoom = scenery(), CameraMotion("sparse"), similarity(scale=1.04)
    camera.estimate(view(picture))
    assert error(camera.estimate(view(picture, zoom)), zoom) < 1.0


@pytest.mark.parametrize("method", ["sparse", "ecc"])
def test_large_pictures_are_measured_in_their_own_pixels(method):
    picture, camera = scenery(2600, 1400), CameraMotion(method, long_side=320)
    camera.estimate(picture[:1080, :1920])
    true = np.array([[1, 0, -40.0], [0, 1, -25.0]])
    found = camera.estimate(np.ascontiguousarray(picture[25:1105, 40:1960]))
    assert np.linalg.norm(found - true, axis=0)[2] < 3.0  # half a pixel of the small picture
    np.testing.assert_allclose(found[:, :2], np.eye(2), atol=2e-3)


def test_people_who_walk_are_not_the_camera():
    picture = view(scenery())
    rng = np.random.default_rng(1)
    crowd = rng.integers(0, 255, (320, 560, 3)).astype(np.uint8)  # more corners than the background has
    crowd = cv2.resize(crowd, None, fx=1, fy=1)
    box = np.array([[40, 80, 600, 400]])

    def frame(shift):
        image = picture.copy()
        image[80:400, 40 + shift : 600 + shift] = crowd
        return image

    camera = CameraMotion("sparse")
    camera.estimate(frame(0), box)
    assert error(camera.estimate(frame(6), np.add(box, [6, 0, 6, 0])), np.eye(2, 3)) < 0.3
    careless = CameraMotion("sparse")
    careless.estimate(frame(0))
    assert error(careless.estimate(frame(6)), np.eye(2, 3)) > 3


@pytest.mark.parametrize("method", ["sparse", "ecc"])
def test_where_nothing_can_be_made_out_the_camera_stands_still(method):
    rng = np.random.default_rng(0)
    frames = {
        "dark": [np.zeros((240, 320, 3), np.uint8)] * 2,
        "noise": [rng.integers(0, 255, (240, 320, 3)).astype(np.uint8) for _ in range(2)],
        "cut": [scenery(320, 240, seed) for seed in (0, 1)],
        "size": [scenery(320, 240), scenery(330, 240)],
        "tiny": [np.zeros((1, 1, 3), np.uint8)] * 2,
    }
    for name, (before, after) in frames.items():
        camera = CameraMotion(method)
        camera.estimate(before)
        np.testing.assert_array_equal(camera.estimate(after), np.eye(2, 3), err_msg=name)
    camera = CameraMotion(method)
    everywhere = np.array([[-1e9, -1e9, 1e9, 1e9], [10, 10, 5, 5]])
    camera.estimate(view(scenery()), everywhere)
    if method == "sparse":
        np.testing.assert_array_equal(camera.estimate(view(scenery(), MOTIONS["pan"]), everywhere), np.eye(2, 3))


def test_a_reset_forgets_the_last_frame():
    camera, picture = CameraMotion(), scenery()
    camera.estimate(view(picture))
    camera.reset()
    np.testing.assert_array_equal(camera.estimate(view(picture, MOTIONS["pan"])), np.eye(2, 3))


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="method: expected one of sparse, ecc, got 'orb'"):
        CameraMotion("orb")
    with pytest.raises(ValueError, match="long_side: expected at least 32 pixels, got 8"):
        CameraMotion(long_side=8)


@pytest.mark.parametrize("state", ["xyah", "cxcywh"])
def test_people_keep_their_ids_while_the_camera_swings(state):
    """Six people stand in a row while the camera pans by two thirds of their distance in every frame, to and fro."""
    config = TrackerConfig(box_state=state, sure_thresh=0)
    standing = np.column_stack([np.arange(6) * 60.0, np.full(6, 100.0), np.arange(6) * 60.0 + 40, np.full(6, 200.0)])

    def ids_over(frames, told):
        tracker, rng, seen, last = Tracker(config), np.random.default_rng(0), [], 0.0
        for k in range(frames):
            place = 40.0 * (k % 2)
            xyxy = np.add(standing, [place, 0, place, 0]) + rng.normal(0, 0.5, (6, 4))
            affine = np.array([[1, 0, place - last], [0, 1, 0]])
            last = place
            result = tracker.update(Detections(xyxy, np.full(6, 0.9)), camera_motion=affine if told else None)
            order = iou(np.add(standing, [place, 0, place, 0]), result.xyxy).argmax(axis=1) if len(result) else []
            seen.append(tuple(result.track_ids[order]))
        return set(seen)

    assert ids_over(20, told=True) == {(1, 2, 3, 4, 5, 6)}
    assert len(ids_over(20, told=False)) > 1


def test_everything_that_is_a_place_moves_with_the_camera():
    """Tracking in a turned, grown and shifted picture gives the turned, grown and shifted result."""
    affine = similarity(angle=90, scale=2, shift=(30, -10))
    config = TrackerConfig(output="filtered", reupdate=True, direction_weight=0.2, recover_by_last_box=True)
    moved, still = Tracker(config), Tracker(config)
    square = np.array([[100.0, 100, 160, 160], [300, 100, 360, 160]])  # upright boxes stay themselves by 90 degrees

    def turn(xyxy):
        corners = xyxy.reshape(-1, 2, 2) @ affine[:, :2].T + affine[:, 2]
        return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)

    for k in range(12):
        seen = (square + 5.0 * k)[[0]] if 5 <= k < 8 else square + 5.0 * k
        scores = np.full(len(seen), 0.9)
        expected = still.update(Detections(seen, scores))
        turned = k >= 6
        result = moved.update(
            Detections(turn(seen) if turned else seen, scores), camera_motion=affine if k == 6 else None
        )
        assert result.track_ids.tolist() == expected.track_ids.tolist()
        np.testing.assert_allclose(result.xyxy, turn(expected.xyxy) if turned else expected.xyxy, atol=0.01)


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.eye(3), r"camera_motion: expected \(2, 3\) finite numbers"),
        (np.full((2, 3), np.nan), r"camera_motion: expected \(2, 3\) finite numbers"),
        (np.zeros((2, 3)), "camera_motion: expected the motion of a camera"),
        (np.array([[1e6, 0, 0], [0, 1e6, 0]]), "camera_motion: expected the motion of a camera"),
        (np.array([[1, 0, 1e200], [0, 1, 0]]), "camera_motion: expected the motion of a camera"),
    ],
)
def test_a_motion_that_is_none_is_refused_and_the_frame_does_not_count(affine, message):
    tracker = Tracker()
    with pytest.raises(ValueError, match=message):
        tracker.update(Detections.empty(), camera_motion=affine)
    assert tracker.update(Detections.empty()).frame == 1


def test_zooms_without_end_lose_the_people_and_never_the_numbers():
    tracker = Tracker(TrackerConfig(coast_seconds=1, sure_thresh=0))
    tracker.update(Detections([[0, 0, 40, 100]], [0.9]))
    zoom = np.array([[900.0, 0, 0], [0, 900, 0]])
    for _ in range(20):
        result = tracker.update(Detections.empty(), camera_motion=zoom)
        assert np.isfinite(result.xyxy).all()
    assert len(tracker._tracks) == 0

import filterpy.kalman
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker import kalman

states = pytest.mark.parametrize("state", ["xyah", "cxcywh"])


def noise(box, state="xyah"):
    """Process and measurement noise of one box, entry by entry."""
    if state == "xyah":
        height = box[3]
        position = [height / 20, height / 20, 1e-2, height / 20]
        velocity = [height / 160, height / 160, 1e-5, height / 160]
        measured = [height / 20, height / 20, 1e-1, height / 20]
    else:
        size = [box[2], box[3], box[2], box[3]]
        position = measured = [side / 20 for side in size]
        velocity = [side / 160 for side in size]
    return np.diag(position + velocity) ** 2, np.diag(measured) ** 2


def noise_of(frames, box, state="xyah"):
    """Process noise of a step: that of as many single steps of a box of this size, or a share of one."""
    single = noise(box, state)[0]
    if frames < 1:
        return frames * single
    motion, total = np.eye(8) + np.eye(8, k=4), np.zeros((8, 8))
    for _ in range(int(frames)):
        total = motion @ total @ motion.T + single
    return total


def dense(covariance):
    """(M, 8, 8) covariance matrices of the (M, 3, 4) entries that are kept."""
    eye = np.eye(4)
    position, mixed, velocity = (covariance[:, i, :, None] * eye for i in range(3))
    return np.block([[position, mixed], [mixed, velocity]])


def walkers(count, frames, seed=0, state="xyah"):
    """(frames, count, 4) noisy measurements of boxes moving on straight lines."""
    rng = np.random.default_rng(seed)
    start = np.column_stack(
        [
            rng.uniform(0, 1000, count),
            rng.uniform(0, 600, count),
            rng.uniform(0.3, 0.6, count),
            rng.uniform(40, 300, count),
        ]
    )
    speed = rng.normal(0, [4, 2, 0, 0.3], (count, 4))
    steps = np.arange(frames)[:, None, None]
    xyah = start + steps * speed + rng.normal(0, [1, 1, 0.01, 1], (frames, count, 4))
    if state == "cxcywh":
        xyah[..., 2] *= xyah[..., 3]
    return xyah


def test_initial_state():
    mean, covariance = kalman.initiate(np.array([[50.0, 60.0, 0.5, 100.0]]))
    assert mean.tolist() == [[50, 60, 0.5, 100, 0, 0, 0, 0]]
    expected = np.diag([10, 10, 1e-2, 10, 6.25, 6.25, 1e-5, 6.25]) ** 2
    np.testing.assert_allclose(dense(covariance)[0], expected)
    mean, covariance = kalman.initiate(np.array([[50.0, 60.0, 40.0, 100.0]]), "cxcywh")
    assert mean.tolist() == [[50, 60, 40, 100, 0, 0, 0, 0]]
    expected = np.diag([4, 10, 4, 10, 2.5, 6.25, 2.5, 6.25]) ** 2
    np.testing.assert_allclose(dense(covariance)[0], expected)


@states
@pytest.mark.parametrize("dt", [1.0, 0.4, 3.0])
def test_parity_with_filterpy(state, dt):
    measured = walkers(count=5, frames=40, state=state)
    mean, covariance = kalman.initiate(measured[0], state)
    references = []
    for start_mean, start_covariance in zip(mean, dense(covariance), strict=True):
        reference = filterpy.kalman.KalmanFilter(dim_x=8, dim_z=4)
        reference.F = np.eye(8) + dt * np.eye(8, k=4)
        reference.H = np.eye(4, 8)
        reference.x, reference.P = start_mean.copy(), start_covariance.copy()
        references.append(reference)
    for frame in range(1, 40):
        mean, covariance = kalman.predict(mean, covariance, dt, state)
        for track, reference in enumerate(references):
            reference.predict(Q=noise_of(dt, reference.x, state))
            np.testing.assert_allclose(mean[track], reference.x, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(dense(covariance)[track], reference.P, rtol=1e-9, atol=1e-12)
        distance = kalman.gating_distance(mean, covariance, measured[frame], state)
        if frame % 7 == 0:
            continue  # an occlusion: predicted only
        mean, covariance = kalman.update(mean, covariance, measured[frame], state)
        for track, reference in enumerate(references):
            reference.update(measured[frame, track], R=noise(reference.x, state)[1])
            np.testing.assert_allclose(mean[track], reference.x, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(dense(covariance)[track], reference.P, rtol=1e-7, atol=1e-12)
            np.testing.assert_allclose(distance[track, track], reference.mahalanobis**2, rtol=1e-7)


@states
def test_gating_distance_is_mahalanobis_of_every_pair(state):
    """With a limit it is the same up to the limit, and infinite beyond."""
    measured = walkers(count=4, frames=2, state=state)
    mean, covariance = kalman.predict(*kalman.initiate(measured[0], state), state=state)
    near = measured[1] + np.array([10, 5, 0, 0])
    boxes = np.concatenate([walkers(count=6, frames=1, seed=1, state=state)[0], near])
    distance = kalman.gating_distance(mean, covariance, boxes, state)
    assert distance.shape == (4, 10)
    for track in range(4):
        innovation = dense(covariance)[track, :4, :4] + noise(mean[track], state)[1]
        for column, box in enumerate(boxes):
            difference = box - mean[track, :4]
            expected = difference @ np.linalg.inv(innovation) @ difference
            assert distance[track, column] == pytest.approx(expected, rel=1e-9)
    inside = 0
    for limit in (0.0, 0.1, 1.0, 9.4877, 1e3, *np.sort(distance.ravel())[[0, 5, 20]]):  # some exactly at a pair's
        limited = kalman.gating_distance(mean, covariance, boxes, state, limit)
        expected = [[value if value <= limit else np.inf for value in row] for row in distance]
        np.testing.assert_allclose(limited, expected, rtol=1e-12)
        inside += np.isfinite(limited).sum()
    assert 40 < inside < 8 * 40


def test_project_is_the_predicted_box_with_measurement_noise():
    mean, covariance = kalman.initiate(walkers(count=3, frames=1)[0])
    projected, innovation = kalman.project(mean, covariance)
    np.testing.assert_array_equal(projected, mean[:, :4])
    for track in range(3):
        expected = dense(covariance)[track, :4, :4] + noise(mean[track])[1]
        np.testing.assert_allclose(np.diag(innovation[track]), expected)


def test_step_of_several_frames():
    mean, covariance = kalman.initiate(walkers(count=3, frames=1)[0])
    mean[:, 4:] = [3, -2, 0, 0.5]
    ahead, uncertain = kalman.predict(mean, covariance, dt=5)
    np.testing.assert_allclose(ahead[:, :4], mean[:, :4] + 5 * mean[:, 4:])
    np.testing.assert_array_equal(ahead[:, 4:], mean[:, 4:])
    motion = np.eye(8) + 5 * np.eye(8, k=4)
    for track in range(3):
        expected = motion @ dense(covariance)[track] @ motion.T + noise_of(5, mean[track])
        np.testing.assert_allclose(dense(uncertain)[track], expected, atol=1e-12)
    still, same = kalman.predict(mean, covariance, dt=0)
    np.testing.assert_array_equal(still, mean)
    np.testing.assert_array_equal(same, covariance)


@states
def test_one_long_step_is_as_many_short_ones(state):
    """Of a box that keeps its size, since the noise follows it; and in between the covariance grows steadily."""
    mean, covariance = learned(state)
    mean[:, 6:] = 0
    once = kalman.predict(mean, covariance, dt=7, state=state)
    again = mean, covariance
    for _ in range(7):
        again = kalman.predict(*again, state=state)
    for one, other in zip(once, again, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    grown = [kalman.predict(mean, covariance, dt, state)[1][:, [0, 2]] for dt in np.linspace(0, 4, 81)]
    assert (np.diff(grown, axis=0) > 0).all()


def test_constant_velocity_is_learned():
    mean, covariance = kalman.initiate(np.array([[0.0, 0.0, 0.5, 100.0]]))
    for frame in range(1, 200):
        mean, covariance = kalman.predict(mean, covariance)
        mean, covariance = kalman.update(mean, covariance, np.array([[3.0 * frame, -1.0 * frame, 0.5, 100.0]]))
    np.testing.assert_allclose(mean[0, 4:], [3, -1, 0, 0], atol=1e-3)


def turned(angle, scale, shift):
    """(2, 3) rotation and scale about the origin, then a shift."""
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def carried(affine, state):
    """(8, 8) matrix and (8,) shift of a whole state, entry by entry."""
    matrix, shift = np.zeros((8, 8)), np.zeros(8)
    scale = np.sqrt(abs(np.linalg.det(affine[:, :2])))
    for half in (0, 4):  # positions, velocities
        matrix[half : half + 2, half : half + 2] = affine[:, :2]
        matrix[half + 2, half + 2] = 1 if state == "xyah" else scale
        matrix[half + 3, half + 3] = scale
    shift[:2] = affine[:, 2]
    return matrix, shift


def learned(state, frames=6):
    """Tracks with velocities, and with covariances of position and velocity."""
    measured = walkers(count=5, frames=frames, state=state)
    mean, covariance = kalman.initiate(measured[0], state)
    for boxes in measured[1:]:
        mean, covariance = kalman.predict(mean, covariance, state=state)
        mean, covariance = kalman.update(mean, covariance, boxes, state)
    return mean, covariance


@pytest.mark.parametrize(
    ("state", "affine"),
    [
        ("xyah", turned(0.3, 1.2, (40, -7))),
        ("xyah", turned(-2.5, 0.5, (0, 900))),
        ("xyah", turned(0, 1, (3, 5))),
        ("cxcywh", turned(0, 1.7, (40, -7))),
        ("cxcywh", turned(np.pi, 0.6, (40, -7))),
        ("cxcywh", np.array([[-1.0, 0, 640], [0, 1, 0]])),  # a mirror
    ],
)
def test_camera_motion_is_the_product_of_matrices(state, affine):
    """Nothing is left out for centres of one variance turned in any way, nor for those of two along the axes."""
    mean, covariance = learned(state)
    moved, spread = kalman.move(mean, covariance, affine, state)
    matrix, shift = carried(affine, state)
    for track in range(len(mean)):
        np.testing.assert_allclose(moved[track], matrix @ mean[track] + shift, rtol=1e-9, atol=1e-9)
        expected = matrix @ dense(covariance)[track] @ matrix.T
        np.testing.assert_allclose(dense(spread)[track], expected, rtol=1e-9, atol=1e-9)


@states
def test_camera_motion_that_mixes_coordinates_keeps_every_variance(state):
    """Shear, and for boxes of two variances rotation: what lies off the diagonals is left out, and only that."""
    affine = np.array([[1.1, 0.3, 5], [-0.1, 0.9, 7]])
    mean, covariance = learned(state)
    moved, spread = kalman.move(mean, covariance, affine, state)
    matrix, shift = carried(affine, state)
    for track in range(len(mean)):
        np.testing.assert_allclose(moved[track], matrix @ mean[track] + shift, rtol=1e-9, atol=1e-9)
        expected = matrix @ dense(covariance)[track] @ matrix.T
        for row, column in zip(range(4), range(4, 8), strict=True):
            for at in ((row, row), (row, column), (column, column)):
                np.testing.assert_allclose(dense(spread)[track][at], expected[at], rtol=1e-9)


@states
def test_camera_motion_and_back(state):
    mean, covariance = learned(state)
    there = turned(np.pi / 2, 1.3, (40, -7))
    back = np.linalg.inv(np.vstack([there, [0, 0, 1]]))[:2]
    again = kalman.move(*kalman.move(mean, covariance, there, state), back, state)
    np.testing.assert_allclose(again[0], mean, atol=1e-9)
    np.testing.assert_allclose(again[1], covariance, rtol=1e-9, atol=1e-12)


@settings(max_examples=30)
@given(
    st.sampled_from(["xyah", "cxcywh"]),
    st.lists(st.booleans(), min_size=1, max_size=150),
    st.floats(2, 2000),
    st.floats(0.05, 20),
    st.integers(0, 1000),
)
def test_covariance_stays_positive(state, seen, height, aspect, seed):
    rng = np.random.default_rng(seed)
    box = np.array([[500.0, 300.0, aspect if state == "xyah" else aspect * height, height]])
    mean, covariance = kalman.initiate(box, state)
    for update in seen:
        mean, covariance = kalman.predict(mean, covariance, rng.uniform(0, 4), state)
        if rng.random() < 0.2:
            affine = turned(rng.normal(), rng.uniform(0.8, 1.25), rng.normal(0, 50, 2))
            mean, covariance = kalman.move(mean, covariance, affine, state)
        if update:
            mean, covariance = kalman.update(mean, covariance, box * (1 + rng.normal(0, 0.02, (1, 4))), state)
        scale = np.sqrt(np.einsum("mii->mi", dense(covariance)))
        correlation = dense(covariance) / scale[:, :, None] / scale[:, None, :]
        assert np.linalg.eigvalsh(correlation).min() > 0


def test_inputs_are_not_changed_and_no_track_is_fine():
    measured = walkers(count=2, frames=1)[0]
    mean, covariance = kalman.initiate(measured)
    copies = mean.copy(), covariance.copy(), measured.copy()
    kalman.predict(mean, covariance)
    kalman.project(mean, covariance)
    kalman.update(mean, covariance, measured + 1)
    kalman.gating_distance(mean, covariance, measured)
    kalman.gating_distance(mean, covariance, measured, limit=9.0)
    kalman.move(mean, covariance, turned(0.1, 2, (3, 4)))
    for value, copy in zip((mean, covariance, measured), copies, strict=True):
        np.testing.assert_array_equal(value, copy)

    none = kalman.initiate(np.zeros((0, 4)))
    none = kalman.update(*kalman.predict(*none), np.zeros((0, 4)))
    assert none[0].shape == (0, 8) and none[1].shape == (0, 3, 4)
    assert kalman.gating_distance(*none, measured).shape == (0, 2)
    assert kalman.gating_distance(mean, covariance, np.zeros((0, 4))).shape == (2, 0)
    assert kalman.gating_distance(mean, covariance, np.zeros((0, 4)), limit=9.0).shape == (2, 0)
    assert kalman.gating_distance(*none, measured, limit=9.0).shape == (0, 2)
    assert kalman.move(*none, np.eye(2, 3))[1].shape == (0, 3, 4)

import filterpy.kalman
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker import kalman


def noise(height):
    """Process and measurement noise of one box, entry by entry."""
    position, velocity = height / 20, height / 160
    process = np.diag([position, position, 1e-2, position, velocity, velocity, 1e-5, velocity]) ** 2
    measurement = np.diag([position, position, 1e-1, position]) ** 2
    return process, measurement


def dense(covariance):
    """(M, 8, 8) covariance matrices of the (M, 3, 4) entries that are kept."""
    eye = np.eye(4)
    position, mixed, velocity = (covariance[:, i, :, None] * eye for i in range(3))
    return np.block([[position, mixed], [mixed, velocity]])


def walkers(count, frames, seed=0):
    """(frames, count, 4) noisy xyah measurements of boxes moving on straight lines."""
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
    return start + steps * speed + rng.normal(0, [1, 1, 0.01, 1], (frames, count, 4))


def test_initial_state():
    mean, covariance = kalman.initiate(np.array([[50.0, 60.0, 0.5, 100.0]]))
    assert mean.tolist() == [[50, 60, 0.5, 100, 0, 0, 0, 0]]
    expected = np.diag([10, 10, 1e-2, 10, 6.25, 6.25, 1e-5, 6.25]) ** 2
    np.testing.assert_allclose(dense(covariance)[0], expected)


def test_parity_with_filterpy():
    measured = walkers(count=5, frames=40)
    mean, covariance = kalman.initiate(measured[0])
    references = []
    for start_mean, start_covariance in zip(mean, dense(covariance), strict=True):
        reference = filterpy.kalman.KalmanFilter(dim_x=8, dim_z=4)
        reference.F = np.eye(8) + np.eye(8, k=4)
        reference.H = np.eye(4, 8)
        reference.x, reference.P = start_mean.copy(), start_covariance.copy()
        references.append(reference)
    for frame in range(1, 40):
        mean, covariance = kalman.predict(mean, covariance)
        for track, reference in enumerate(references):
            reference.predict(Q=noise(reference.x[3])[0])
            np.testing.assert_allclose(mean[track], reference.x, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(dense(covariance)[track], reference.P, rtol=1e-9, atol=1e-12)
        distance = kalman.gating_distance(mean, covariance, measured[frame])
        if frame % 7 == 0:
            continue  # an occlusion: predicted only
        mean, covariance = kalman.update(mean, covariance, measured[frame])
        for track, reference in enumerate(references):
            reference.update(measured[frame, track], R=noise(reference.x[3])[1])
            np.testing.assert_allclose(mean[track], reference.x, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(dense(covariance)[track], reference.P, rtol=1e-7, atol=1e-12)
            np.testing.assert_allclose(distance[track, track], reference.mahalanobis**2, rtol=1e-7)


def test_gating_distance_is_mahalanobis_of_every_pair():
    measured = walkers(count=4, frames=2)
    mean, covariance = kalman.predict(*kalman.initiate(measured[0]))
    boxes = walkers(count=6, frames=1, seed=1)[0]
    distance = kalman.gating_distance(mean, covariance, boxes)
    assert distance.shape == (4, 6)
    for track in range(4):
        innovation = dense(covariance)[track, :4, :4] + noise(mean[track, 3])[1]
        for column, box in enumerate(boxes):
            difference = box - mean[track, :4]
            expected = difference @ np.linalg.inv(innovation) @ difference
            assert distance[track, column] == pytest.approx(expected, rel=1e-9)


def test_project_is_the_predicted_box_with_measurement_noise():
    mean, covariance = kalman.initiate(walkers(count=3, frames=1)[0])
    projected, innovation = kalman.project(mean, covariance)
    np.testing.assert_array_equal(projected, mean[:, :4])
    for track in range(3):
        expected = dense(covariance)[track, :4, :4] + noise(mean[track, 3])[1]
        np.testing.assert_allclose(np.diag(innovation[track]), expected)


def test_step_of_several_frames():
    mean, covariance = kalman.initiate(walkers(count=3, frames=1)[0])
    mean[:, 4:] = [3, -2, 0, 0.5]
    ahead, uncertain = kalman.predict(mean, covariance, dt=5)
    np.testing.assert_allclose(ahead[:, :4], mean[:, :4] + 5 * mean[:, 4:])
    np.testing.assert_array_equal(ahead[:, 4:], mean[:, 4:])
    motion = np.eye(8) + 5 * np.eye(8, k=4)
    for track in range(3):
        expected = motion @ dense(covariance)[track] @ motion.T + 5 * noise(mean[track, 3])[0]
        np.testing.assert_allclose(dense(uncertain)[track], expected, atol=1e-12)
    still, same = kalman.predict(mean, covariance, dt=0)
    np.testing.assert_array_equal(still, mean)
    np.testing.assert_array_equal(same, covariance)


def test_constant_velocity_is_learned():
    mean, covariance = kalman.initiate(np.array([[0.0, 0.0, 0.5, 100.0]]))
    for frame in range(1, 200):
        mean, covariance = kalman.predict(mean, covariance)
        mean, covariance = kalman.update(mean, covariance, np.array([[3.0 * frame, -1.0 * frame, 0.5, 100.0]]))
    np.testing.assert_allclose(mean[0, 4:], [3, -1, 0, 0], atol=1e-3)


@settings(max_examples=30)
@given(
    st.lists(st.booleans(), min_size=1, max_size=150),
    st.floats(2, 2000),
    st.floats(0.05, 20),
    st.integers(0, 1000),
)
def test_covariance_stays_positive(seen, height, aspect, seed):
    rng = np.random.default_rng(seed)
    box = np.array([[500.0, 300.0, aspect, height]])
    mean, covariance = kalman.initiate(box)
    for update in seen:
        mean, covariance = kalman.predict(mean, covariance)
        if update:
            mean, covariance = kalman.update(mean, covariance, box * (1 + rng.normal(0, 0.02, (1, 4))))
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
    for value, copy in zip((mean, covariance, measured), copies, strict=True):
        np.testing.assert_array_equal(value, copy)

    none = kalman.initiate(np.zeros((0, 4)))
    none = kalman.update(*kalman.predict(*none), np.zeros((0, 4)))
    assert none[0].shape == (0, 8) and none[1].shape == (0, 3, 4)
    assert kalman.gating_distance(*none, measured).shape == (0, 2)
    assert kalman.gating_distance(mean, covariance, np.zeros((0, 4))).shape == (2, 0)

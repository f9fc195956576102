"""The yardstick is the published network: freeing its input size changes nothing, and its boxes come back in place."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks.yardstick import cell_grid, letterbox, load_session, people


@pytest.mark.shared
def test_another_input_size_is_the_same_network(shared: Path):
    file = shared / "data" / "weights" / "yolox_nano.onnx"
    images = np.random.default_rng(0).uniform(0, 255, (1, 3, 416, 416)).astype(np.float32)
    original = onnxruntime.InferenceSession(str(file)).run(None, {"images": images})[0]
    np.testing.assert_array_equal(load_session(file, (416, 416)).run(None, {"images": images})[0], original)
    wide = load_session(file, (384, 640)).run(None, {"images": np.zeros((1, 3, 384, 640), np.float32)})[0]
    assert wide.shape == (1, len(cell_grid((384, 640))[0]), 85)


def test_a_box_written_by_hand_returns_to_the_pixels_of_the_frame():
    size = (64, 96)
    images, scale = letterbox(np.full((128, 192, 3), 7, np.uint8), size)
    assert (images.shape, scale) == ((1, 3, 64, 96), 0.5)
    grid = cell_grid(size)
    output = np.zeros((len(grid[0]), 85), np.float32)
    row = 12 + 3  # second grid row of the 8 x 12 cells of stride 8, fourth column
    output[row, :6] = [0.5, 0.5, np.log(2), np.log(4), 0.9, 0.9]  # 16 x 32 around (28, 12), network pixels
    np.testing.assert_allclose(people(output, grid, scale), [[40, -8, 72, 56]], rtol=1e-5)

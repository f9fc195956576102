"""Exact search against a full sort, whatever the size of the tiles."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reid import neighbours
from reid.distances import squared_lengths
from reid.neighbours import nearest


def sorted_by_numpy(features, count):
    rows = features.double().numpy()
    squared = ((rows[:, None] - rows[None]) ** 2).sum(2)
    order = np.argsort(squared, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(squared, order, 1), squared


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 60),
    count=st.integers(1, 70),
    values=st.sampled_from([1, 2, 3, 50]),
    side=st.sampled_from([5, 16, 1000]),
    dense_share=st.sampled_from([0, 1 / 8, 1]),
    split=st.integers(0, 60),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_a_stable_sort(n, count, values, side, dense_share, split, seed):
    """Whole numbers: distances are exact, and there are as many ties as one could wish, up to all being equal."""
    features = torch.from_numpy(np.random.default_rng(seed).integers(0, values, (n, 4)).astype(np.float32))
    split = min(split, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_CPU_SIDE", side)
        patch.setattr(neighbours, "_DENSE_SHARE", dense_share)
        patch.setattr(neighbours, "_SPARE", 3)
        found = nearest(features, count, squared_lengths(features), split)
    indices, distances, squared = sorted_by_numpy(features, count)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, atol=1e-4)
    np.testing.assert_allclose(found.farthest, squared.max(1), atol=1e-4)
    np.testing.assert_allclose(found.across, squared[:split, split:], atol=1e-4)


@pytest.mark.parametrize("side", [13, 64, 500])
def test_unit_features(monkeypatch, side):
    features = torch.nn.functional.normalize(torch.randn(300, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    monkeypatch.setattr(neighbours, "_CPU_SIDE", side)
    found = nearest(features, 21)
    indices, distances, squared = sorted_by_numpy(features, 21)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, atol=1e-5)
    np.testing.assert_allclose(found.farthest, squared.max(1), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_finds_the_same():
    features = torch.nn.functional.normalize(torch.randn(300, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    here, there = nearest(features, 21, split=40), nearest(features.cuda(), 21, split=40)
    np.testing.assert_array_equal(there.indices.cpu(), here.indices)
    np.testing.assert_allclose(there.across.cpu(), here.across, atol=1e-5)


def test_progress_is_shown_on_a_terminal_alone(capsys):
    nearest(torch.eye(4), 2, progress="searching")
    assert capsys.readouterr().err == ""

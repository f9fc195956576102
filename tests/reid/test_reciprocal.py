"""Overlap of encodings against loops; sets, weights and averages are tested by the distances that are made of them."""

import numpy as np
import pytest
import scipy.sparse as sp

from reid import reciprocal
from reid.reciprocal import jaccard_similarity


@pytest.mark.parametrize("most", [1, 40, 10**6])
@pytest.mark.parametrize("least", [0.0, 0.15])
def test_similarity_equals_loops(monkeypatch, most, least):
    monkeypatch.setattr(reciprocal, "_BLOCK_PRODUCTS", most)
    rng = np.random.default_rng(0)
    first, second = (rng.random((n, 15)) * (rng.random((n, 15)) < 0.3) for n in (9, 20))
    first[4] = second[7] = second[:, 3] = 0
    for rows in (first, second):
        rows /= rows.sum(1, keepdims=True).clip(min=1e-9)
    shared = np.array([[np.minimum(a, b).sum() for b in second] for a in first])
    expected = shared / (2 - shared)
    expected[expected < least] = 0
    found = jaccard_similarity(sp.csr_array(first), sp.csr_array(second), least)
    assert found.shape == (9, 20) and found.nnz == np.count_nonzero(expected)
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-12)


def test_nothing_has_no_similarity():
    assert jaccard_similarity(sp.csr_array((0, 5)), sp.csr_array((3, 5))).shape == (0, 3)
    assert jaccard_similarity(sp.csr_array((2, 5)), sp.csr_array((3, 5))).nnz == 0

"""k-reciprocal encoding (Zhong et al., CVPR 2017) written with sets and loops."""

import functools

import numpy as np


def encode_by_loops(order, distance, k1, k2):
    """Dense encodings (N, N), of one image after the other.

    Args:
        order: (N, K) the images nearest to each, itself first.
        distance: (N, N) what members are weighted by.
        k1: size of the neighbourhood.
        k2: rows that are averaged.
    """

    @functools.cache
    def reciprocal(p, k):
        return {int(q) for q in order[p, : k + 1] if p in order[q, : k + 1]}

    n = len(order)
    encodings = np.zeros((n, n))
    for p in range(n):
        members = set(reciprocal(p, k1))
        for q in reciprocal(p, k1):
            half = reciprocal(q, int(np.around(k1 / 2)))
            if len(half & reciprocal(p, k1)) > 2 / 3 * len(half):
                members |= half
        for q in members:
            encodings[p, q] = np.exp(-distance[p, q])
        encodings[p] /= max(encodings[p].sum(), 1e-30)
    return np.array([encodings[order[p, :k2]].mean(axis=0) for p in range(n)]) if k2 > 1 else encodings


def encoded_distance(a, b):
    """Jaccard distance of two encodings, (N,) each of sum one."""
    shared = np.minimum(a, b).sum()
    return 1 - shared / (2 - shared)

import numpy as np
import pytest

from reclaim.errors import InputError
from reclaim.metrics import embedding
from reclaim.metrics.embedding import (
    centroid_accuracy,
    continuity,
    knn_accuracy,
    leave_one_out_accuracy,
    silhouette,
    trustworthiness,
)


def points(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def ranks(rows):
    """Rank of every other point by distance, 1 for the nearest, written out."""
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    np.fill_diagonal(distances, -1)
    return np.argsort(np.argsort(distances, axis=1), axis=1)


def trust_by_hand(originals, codes, k):
    n, total = len(originals), 0
    far, near = ranks(originals), ranks(codes)
    for i in range(n):
        for j in range(n):
            if i != j and near[i, j] <= k:
                total += max(0, far[i, j] - k)
    return 1 - 2 / (n * k * (2 * n - 3 * k - 1)) * total


@pytest.mark.parametrize("k", [1, 3, 7])
def test_trustworthiness_and_continuity_follow_their_formulas_and_differ(k):
    originals, codes = points(24, 5), points(24, 2, seed=1)
    assert trustworthiness(originals, codes, k) == pytest.approx(trust_by_hand(originals, codes, k), abs=1e-12)
    assert continuity(originals, codes, k) == pytest.approx(trust_by_hand(codes, originals, k), abs=1e-12)
    assert trustworthiness(originals, codes, k) != pytest.approx(continuity(originals, codes, k), abs=1e-3)


def test_an_isometric_embedding_is_perfect_and_a_scaled_one_as_good():
    rows = points(30, 3)
    rotation = np.linalg.qr(points(3, 3, seed=2))[0]
    for codes in (rows @ rotation, 100 * rows):
        assert trustworthiness(rows, codes) == continuity(rows, codes) == 1.0


@pytest.mark.parametrize("k", [0, 10, 15])
def test_trustworthiness_needs_fewer_neighbours_than_half_the_rows(k):
    with pytest.raises(InputError, match="less than half the rows"):
        trustworthiness(points(20, 3), points(20, 2), k)


def test_nearest_neighbour_is_of_the_training_rows():
    train, test = np.array([[0.0], [1.0], [5.0]]), np.array([[0.4], [0.6], [100.0]])
    assert knn_accuracy(train, np.array([7, 8, 9]), test, np.array([7, 8, 9])) == 1.0
    assert knn_accuracy(train, np.array([7, 8, 9]), test, np.array([8, 8, 9])) == pytest.approx(2 / 3)


def test_a_tie_goes_to_the_lowest_training_row():
    train = np.array([[1.0], [-1.0], [1.0]])
    assert knn_accuracy(train, np.array([5, 3, 4]), np.array([[0.0]]), np.array([5])) == 1.0
    assert knn_accuracy(train[::-1], np.array([4, 3, 5]), np.array([[0.0]]), np.array([4])) == 1.0


def test_ties_at_the_border_of_k_keep_the_lowest_rows():
    train = np.array([[1.0], [1.0], [1.0], [1.0]])
    assert knn_accuracy(train, np.array([0, 0, 1, 1]), np.array([[1.0]]), np.array([0]), k=3) == 1.0
    assert knn_accuracy(train, np.array([1, 1, 0, 0]), np.array([[1.0]]), np.array([1]), k=3) == 1.0


def test_k_neighbours_vote_and_equal_votes_go_to_the_lowest_label():
    train, labels = np.array([[0.0], [0.2], [0.3], [9.0]]), np.array([2, 1, 1, 0])
    assert knn_accuracy(train, labels, np.array([[0.0]]), np.array([2]), k=1) == 1.0
    assert knn_accuracy(train, labels, np.array([[0.0]]), np.array([1]), k=3) == 1.0
    assert knn_accuracy(train, labels, np.array([[0.0]]), np.array([1]), k=2) == 1.0


def test_agrees_with_scikit_learn_in_blocks_and_out(monkeypatch):
    from sklearn.neighbors import KNeighborsClassifier

    train, test, rng = points(90, 4), points(70, 4, seed=1), np.random.default_rng(3)
    labels, wanted = rng.integers(0, 4, 90), rng.integers(0, 4, 70)
    for cells in (2**22, 200):
        monkeypatch.setattr(embedding, "CELLS", cells)
        for k in (1, 2, 5):
            other = KNeighborsClassifier(k).fit(train, labels).score(test, wanted)
            assert knn_accuracy(train, labels, test, wanted, k) == pytest.approx(other)


def test_leave_one_out_does_not_see_the_row_itself(monkeypatch):
    rows, labels = points(40, 2), np.arange(40)
    assert knn_accuracy(rows, labels, rows, labels) == 1.0
    for cells in (2**22, 100):
        monkeypatch.setattr(embedding, "CELLS", cells)
        assert leave_one_out_accuracy(rows, labels) == 0.0
    twins = np.repeat(points(10, 2, seed=4), 2, axis=0)
    assert leave_one_out_accuracy(twins, np.repeat(np.arange(10), 2)) == 1.0


def test_centroids_are_the_means_of_training_codes():
    train, labels = np.array([[0.0], [10.0], [6.0], [8.0]]), np.array([0, 0, 1, 1])
    test = np.array([[5.9], [6.1]])
    assert centroid_accuracy(train, labels, test, np.array([0, 1])) == 1.0
    assert knn_accuracy(train, labels, test, np.array([0, 1])) == 0.5


def test_too_many_neighbours_are_refused():
    with pytest.raises(InputError, match="nearest neighbours"):
        knn_accuracy(points(3, 2), np.arange(3), points(2, 2), np.arange(2), k=4)
    with pytest.raises(InputError, match="nearest neighbours"):
        leave_one_out_accuracy(points(3, 2), np.arange(3), k=3)


def test_silhouette_does_not_depend_on_scale_or_rotation_and_needs_two_classes():
    rows, labels = points(30, 2), np.arange(30) % 3
    turned = 7 * rows @ np.linalg.qr(points(2, 2, seed=2))[0]
    assert silhouette(turned, labels) == pytest.approx(silhouette(rows, labels))
    assert silhouette(rows + 50 * labels[:, None], labels) > 0.9
    with pytest.raises(InputError, match="1 classes"):
        silhouette(rows, np.zeros(30, dtype=int))

"""Which rows each step sees: a function of the step, so that a resumed run goes on with the very batches it would have had."""

from collections.abc import Callable

import numpy as np

from reclaim.seeding import derive


def epoch_batches(num_rows: int, batch_size: int, seed: int) -> Callable[[int], tuple[int, np.ndarray]]:
    """Give a function from step (from 0) to (epoch, row indices): one permutation an epoch, any step in any order.

    The last rows of an epoch that do not fill a batch are left out of that epoch; a set smaller than one batch is one batch.
    """
    batch_size = min(batch_size, num_rows)
    per_epoch = num_rows // batch_size
    permutations: dict[int, np.ndarray] = {}

    def batch(step: int) -> tuple[int, np.ndarray]:
        epoch, position = divmod(step, per_epoch)
        if epoch not in permutations:
            permutations.clear()
            permutations[epoch] = np.random.default_rng(derive(seed, "order", epoch)).permutation(num_rows)
        return epoch, permutations[epoch][position * batch_size : (position + 1) * batch_size]

    return batch

"""The CRINGE loss (Adolphs et al., ACL 2023): language models trained with sequences that they must not produce.

`loss` is the loss itself, usable in any training loop; `unlikelihood` and `director` are the baselines it is compared with.
Around it is the procedure, generate, judge, add, train: `dialogues` and `utterances` (released data), `parts` and `rows` (what
is trained on), `training`, `decoding`, `judges`, `measures` and `experiment`.
"""

from reclaim.cringe.loss import CringeLoss, cringe_loss, linear_cringe_loss

__all__ = ["CringeLoss", "cringe_loss", "linear_cringe_loss"]

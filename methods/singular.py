"""The largest singular values of weights, kept in this process for the next adapter that starts from them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor

#: The number of power steps of the randomised SVD, as in the reference code of LoRA-XS and ABBA, and the seed
#: of LoRA-XS.
ITERATIONS, SVD_SEED = 10, 42

#: The largest total size in bytes of the decompositions that are kept.
MOST_BYTES = 2**28

Decomposition = tuple[Tensor, Tensor, Tensor]

#: The kept decompositions by hash of the weight, its shape and the rank, the least recently used first.
_kept: OrderedDict[tuple[bytes, tuple[int, ...], int], Decomposition] = OrderedDict()


def singular(weight: Tensor, rank: int) -> Decomposition:
    """Returns U (out, rank), Σ (rank,) and Vᵀ (rank, in) for the `rank` largest singular values of a weight.

    The three tensors are float64 and on the CPU, and the caller must not change them. A decomposition takes
    0.3 s for a weight of 768 × 768 at rank 4, and a trial of RoBERTa needs 72 decompositions.
    """
    matrix = weight.detach().double().cpu().numpy()
    key = (hashlib.sha256(matrix.tobytes()).digest(), matrix.shape, rank)
    if key not in _kept:
        # It takes half a second to import, and few methods need it.
        from sklearn.utils.extmath import randomized_svd

        u, s, vh = randomized_svd(matrix, rank, n_iter=ITERATIONS, random_state=SVD_SEED)
        _kept[key] = (torch.from_numpy(u), torch.from_numpy(s), torch.from_numpy(vh))
    _kept.move_to_end(key)
    while len(_kept) > 1 and sum(part.nbytes for parts in _kept.values() for part in parts) > MOST_BYTES:
        _kept.popitem(last=False)
    return _kept[key]

"""Handwritten digits of 8×8 pixels, included in scikit-learn: a task without a download."""

from __future__ import annotations

import numpy as np

from tensorbench.machine.files import sha256_of
from tensorbench.methods.errors import UserError
from tensorbench.tasks.task import Examples, Task


class Digits(Task):
    """Images of the ten digits by 13 writers, in ten classes.

    The writers of the images are not published, so images by the same writer are in several splits.
    """

    name = "digits"
    modality = "vision"
    classes = tuple("0123456789")
    data_hash = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    sizes = (1259, 270, 268)
    description = "handwritten digits of 8×8 pixels"
    license = "CC-BY-4.0"

    def examples(self) -> Examples:
        """Returns one example per image, converted from grey to RGB.

        An example's id is its position in scikit-learn's arrays. Raises UserError if the installed
        scikit-learn has other data.
        """
        from sklearn.datasets import load_digits

        digits = load_digits()
        images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
        actual = sha256_of(images.tobytes() + labels.tobytes())
        if actual != self.data_hash:
            raise UserError(
                f"task 'digits': the installed scikit-learn brings other data: "
                f"sha256 expected {self.data_hash}, got {actual}"
            )
        # Grey values are 0 to 16.
        grey = np.round(images * (255 / 16)).astype(np.uint8)
        return Examples(list(np.repeat(grey[..., None], 3, axis=3)), labels.tolist(), range(len(labels)))


DIGITS = Digits()

"""The 1,797 handwritten digits (8 x 8 pixels) that scikit-learn ships, split into training and test images.

The images are the test set of Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", 1998 (UCI Machine
Learning Repository).
"""

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

BRIGHTEST = 16
TEST_SHARE = 0.25
CLASSES = 10


@dataclass(frozen=True)
class Data:
    """Images (N, 64) in float32 from 0 to 1, and their labels (N,) from 0 to 9."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_data(seed):
    """The digits, a quarter of them for testing, every digit in the same proportion; the seed decides which."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / BRIGHTEST).astype(np.float32)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=TEST_SHARE, stratify=labels, random_state=seed
    )
    return Data(train_images, train_labels, test_images, test_labels)

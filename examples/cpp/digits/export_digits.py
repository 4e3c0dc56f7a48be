"""Writes scikit-learn's handwritten digits, 1797 images of 8 by 8 pixels, as CSV: 64 pixels and the digit in each line.

python export_digits.py digits.csv
"""

import sys

import numpy
from sklearn.datasets import load_digits

digits = load_digits()
numpy.savetxt(sys.argv[1], numpy.column_stack([digits.data, digits.target]), fmt="%d", delimiter=",")

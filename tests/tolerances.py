"""Every tolerance of the test suite, with its reason. None is to be relaxed to make a test pass."""

# Outputs in float32 against another implementation in float32: both err by some 1e-6.
FLOAT32 = 1e-5

# Gradients in float32, relative to the largest entry of each array.
FLOAT32_GRADIENT = 1e-5

# Outputs in float64 against another implementation in float64.
FLOAT64 = 1e-12

# Sentence vectors against sentence-transformers'.
SENTENCE_VECTORS = 2e-6

# Our error against a float64 reference, relative to PyTorch's own error in the same dtype.
ERROR_RATIO = 1.5

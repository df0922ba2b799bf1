"""Weights from tokens: one loop, handed a batch source and a loss."""

import os

# A number of threads must not show in the weights. MKL cuts long sums among its threads unless it is told not to
# (its strict mode of reproducibility), and it listens before its first product only: so before torch is at work.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

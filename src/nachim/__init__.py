"""nachim: a compute budget in, a sealed forecast and a verified model out."""

__version__ = "0.1.0"

"""AutoScale: scale-aware data mixing for pre-training language models."""

__version__ = "0.1.0"

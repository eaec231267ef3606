"""Mixture laws: how validation losses depend on the mixture, the tokens and the model size."""

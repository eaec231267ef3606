"""Mixture methods to compare: which probe runs each wants, and the mixture it makes of them."""

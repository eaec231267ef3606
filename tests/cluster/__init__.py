"""Hosts in network namespaces, and Slurm, for real; needs root. See `make test-cluster`."""

"""Tests on real clusters: hosts in network namespaces, and Slurm. Need root; see `make test-cluster`."""

"""What scripts/check_cluster.py runs: clusters on one machine, work for them, and their limits."""

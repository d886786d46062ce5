"""A run's report: one HTML file with the figures, curves, errors and examples of its last evaluation."""

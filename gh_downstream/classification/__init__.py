"""Domain-adaptive image classification: the baselines of the paper with Gradient Harmonization, and their data."""

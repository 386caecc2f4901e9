"""Domain-adaptive object detection: data sets, alignment heads, evaluation, and one folder for each engine."""

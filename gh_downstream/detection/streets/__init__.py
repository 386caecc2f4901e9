"""The streets of Mini-Cityscapes: what stands in them, how it looks, and the picture of it."""

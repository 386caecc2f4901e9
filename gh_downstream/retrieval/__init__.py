"""Image-text retrieval: fine-tune a dual encoder from one domain for another, with gradient harmonization."""

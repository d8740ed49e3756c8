"""Problems, prompts and batches: from text to arrays."""

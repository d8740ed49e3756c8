"""Tasks, tokenizers and the pipeline from text to arrays."""

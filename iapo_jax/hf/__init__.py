"""Hugging Face folders in and out: configuration, weights, tokenizer files."""

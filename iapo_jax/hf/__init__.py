"""Reading and writing Hugging Face folders: config, weights, tokenizer."""

"""Hugging Face's formats, both ways."""

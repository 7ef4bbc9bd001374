"""Texts to token ids: vocabularies, tokenizers, nouns and prompts."""

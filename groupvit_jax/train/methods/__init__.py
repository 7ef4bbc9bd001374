"""Successors of the published method, each an option of the contrastive task (docs/losses.md)."""

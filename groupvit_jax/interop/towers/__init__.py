"""Weights of other models for a single tower: plain ViTs, CLIP's texts."""

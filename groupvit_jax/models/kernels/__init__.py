"""Pallas kernels, and when each is used; the plain code beside each is its reference."""

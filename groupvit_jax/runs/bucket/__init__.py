"""Runs on a bucket: a local folder whose content is kept there, and copies for readers."""

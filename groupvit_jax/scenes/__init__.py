"""The embedded data set: drawn scenes with captions, and masks for the evaluation alone."""

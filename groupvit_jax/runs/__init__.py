"""The folder of a run: its layout, its configuration, and the checks before it starts."""

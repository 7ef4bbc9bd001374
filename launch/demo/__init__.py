"""The demonstration: its command is `__main__`."""

"""From files to arrays: storage, sources, images, text, evaluation sets, and the training input."""

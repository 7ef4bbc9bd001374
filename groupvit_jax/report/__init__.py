"""Pages, charts and pictures shared by evaluation, comparison and the demo."""

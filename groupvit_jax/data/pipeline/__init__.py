"""The endless, shuffled sequence of training examples, one module per task."""

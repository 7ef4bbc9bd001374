"""Random access to image-caption pairs, masks and labels, in tar shards and TFDS sets."""

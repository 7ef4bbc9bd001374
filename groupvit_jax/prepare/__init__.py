"""Raw image-caption pairs to training shards."""

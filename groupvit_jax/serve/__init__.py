"""A web page on this machine: photos and labels in, masks, scores and groups out."""

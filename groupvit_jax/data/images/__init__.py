"""Encoded images to pixels: decoding, cropping and augmentation."""

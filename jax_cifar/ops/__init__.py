"""Convolution and pooling with forms that are fast on every backend."""

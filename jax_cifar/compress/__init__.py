"""Smaller networks from trained ones: pure functions on parameter trees."""

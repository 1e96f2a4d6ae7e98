"""Prediction over a whole set, and how good it is."""

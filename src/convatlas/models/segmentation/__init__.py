"""Segmentation nets, one family a file."""

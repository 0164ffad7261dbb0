"""Data: sources (one file a format), preparation into verified splits, and batches that depend on seeds alone."""

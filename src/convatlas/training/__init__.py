"""One run: seeds, checkpoints, resuming, and the files it leaves behind."""

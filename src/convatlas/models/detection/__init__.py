"""Detection nets, one family a file."""

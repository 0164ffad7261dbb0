"""Classification nets, one family a file."""

"""What a study is: its variants, claims and figures, and the runs it plans."""

"""Sources: each file reads (or makes) one data set and returns it whole, before any split or scaling.

A source is a function `load(root: Path, **options) -> RawDataset`; `source._target_` in a `conf/data` file names it,
and the other keys below `source` are its options. `root` is the folder with the raw files; nothing is ever written
there.
"""

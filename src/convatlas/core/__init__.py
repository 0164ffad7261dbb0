"""The ground: errors, files, configuration, digests, seeds, processes; imports nothing else of the project."""

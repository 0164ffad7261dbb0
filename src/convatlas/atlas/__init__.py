"""The atlas: pages on which every net can be seen, drawn from the module itself."""

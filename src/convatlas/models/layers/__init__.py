"""Pieces that several nets share: drop paths, reversible coupling, normalisations, channel shuffles."""

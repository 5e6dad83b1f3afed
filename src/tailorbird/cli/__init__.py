"""One file per command: words in, one call out."""

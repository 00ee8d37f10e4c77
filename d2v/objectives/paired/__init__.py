"""Methods that compare two modalities of the same samples, one a file."""

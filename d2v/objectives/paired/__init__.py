"""Methods that compare two modalities of the same rows; each file is one, as in d2v/objectives."""

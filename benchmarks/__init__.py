"""Research questions, one a file: each runs a sweep, scores it and draws its figures."""

"""Claims of a finished run, and their verification."""

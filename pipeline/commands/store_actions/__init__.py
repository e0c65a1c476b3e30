"""The actions of `butd store`, one a file: its options, and what it does."""

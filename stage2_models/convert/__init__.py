"""Published checkpoints of other code into our model folders, a file for each kind."""

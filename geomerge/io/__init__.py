"""Files in and out: checkpoints, containers of weights, folders of runs."""

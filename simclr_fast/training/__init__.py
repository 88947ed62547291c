"""The parts of the training loop: views, step, state, metrics, signals, profile."""

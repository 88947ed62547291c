"""What an encoder learned: kNN, linear and few-label probes, always beside raw pixels and a random-init encoder."""

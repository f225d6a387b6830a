"""The parts of the preprocess stage."""

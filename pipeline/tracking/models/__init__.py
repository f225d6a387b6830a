"""The registry: versions of a model, how they are made, loaded, verified, described, and who is champion."""

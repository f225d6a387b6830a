"""Networks that are a stack of convolutions, with or without skip connections, at few sizes of their maps."""

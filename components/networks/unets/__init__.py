"""Networks with an encoder and a decoder: the maps become smaller and then larger again, with skip connections."""

"""How good a restored image is: metrics, intervals, tiled restoration and what a network has to beat.

Nothing is imported here, so that who computes a metric does not wait for figures, classical methods and networks.
"""

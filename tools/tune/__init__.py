"""Chooses the options of a recipe on held-out training images, and writes the table of what it tried."""

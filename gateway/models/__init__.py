"""Models: the catalogue, downloads, the contents of model files, and the served model."""

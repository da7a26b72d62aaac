"""Numbers of the papers for two sets of images, and the features that they are computed of."""

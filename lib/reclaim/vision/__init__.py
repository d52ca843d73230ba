"""Vision systems: segmentation of images (`stm_unet`, its rivals, training) and autoencoders for dimensionality reduction."""

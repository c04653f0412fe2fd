"""From files on disk to samples: formats, media, images, mixtures and generated data sets."""

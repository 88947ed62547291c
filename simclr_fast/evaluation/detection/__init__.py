"""Object detection on the pretrained backbone: data, detectors, training and the COCO metric."""

"""Backbones by name: torchvision's, timm's, those of a function of one's own, and a small one for digits."""

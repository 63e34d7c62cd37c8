"""What happens to pixels: geometry, decoding, augmentation."""

"""Bit-planes for activations, chosen from histograms of calibration batches."""

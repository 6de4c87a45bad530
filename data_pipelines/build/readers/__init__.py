"""Readers: files of every layout to Documents. Each module has `split`, into ranges, and `read`, of one range."""

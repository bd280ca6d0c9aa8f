"""The demonstration: a corpus that every Python has, a fleet of its own, and its proof."""

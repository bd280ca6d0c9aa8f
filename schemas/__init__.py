"""The contract between upstream services, the workers and the operators of embedfleet."""

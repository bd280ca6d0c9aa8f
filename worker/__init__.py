"""A fleet of stateless workers that turns document events into searchable vectors."""

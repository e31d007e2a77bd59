"""What a backend's interface asks of a network: measure, examine, train."""

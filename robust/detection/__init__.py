"""Object detectors: the protocol they keep to, what an attacker wants of them, and how that is scored."""

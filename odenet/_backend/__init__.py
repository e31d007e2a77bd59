"""The interface between odenet and a framework, and which backends there are."""

"""Named initial value problems with known solutions."""

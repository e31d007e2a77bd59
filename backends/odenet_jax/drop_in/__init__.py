"""Another library's functions over odenet's steps."""
